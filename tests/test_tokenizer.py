"""Tokenizers: trained, saved and loaded offline; offsets; errors for damaged and empty folders."""

import json
import pickle
import time
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.data import tokenizer as lib
from jax_simcas.data.rows import ListSource, Row

TEXTS = ["the quick brown fox jumps over the lazy dog . ", "the dog sleeps ; the fox does not !\n", "Grüße an 😀"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    lib.byte_level_bpe(iter(TEXTS), 300, folder)
    return folder


@pytest.fixture(scope="module")
def bpe(folder):
    return lib.load_tokenizer(folder)


def test_trained(bpe):
    assert [bpe.bos_token_id, bpe.pad_token_id, bpe.eos_token_id, bpe.unk_token_id] == [0, 1, 2, 3]
    assert bpe.convert_ids_to_tokens(range(5)) == lib.SPECIALS
    assert 261 < len(bpe) <= 300
    own = bpe("the fox")["input_ids"]
    assert own[0] == 0 and own[-1] == 2  # as BART's own, when called with specials


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(deadline=None)
def test_byte_level_loses_nothing(bpe, text):
    tokenized = lib.tokenize(bpe, text)
    assert tokenized.ids.dtype == np.int32 and tokenized.offsets.shape == (len(tokenized.ids), 2)
    if not any(special in text for special in lib.SPECIALS):
        assert bpe.decode(tokenized.ids, skip_special_tokens=False) == text
    # Offsets are characters: in order, and together they cover all but white space.
    start, end = tokenized.offsets.T
    assert (start <= end).all() and (np.diff(start) >= 0).all() and (end <= len(text)).all()
    covered = {i for a, b in tokenized.offsets for i in range(a, b)}
    assert all(i in covered or text[i].isspace() for i in range(len(text)))


def test_training_is_deterministic(folder, tmp_path):
    lib.byte_level_bpe(TEXTS, 300, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_long_texts(bpe):
    """No warning, and linear: sixteen times the text takes nowhere near 256 times as long."""
    text = " ".join(TEXTS) * 20

    def seconds(text):
        started = time.process_time()  # not what other programs take
        tokenized = lib.tokenize(bpe, text)
        return time.process_time() - started, len(tokenized.ids)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short, count = min(seconds(text) for _ in range(3))
        long, sixteen = min(seconds(text * 16) for _ in range(3))
    assert sixteen == pytest.approx(16 * count, rel=0.01)
    assert long < 200 * short
    assert len(lib.tokenize(bpe, "x" * 300_000).ids) > 0  # one word without an end


def test_words(tmp_path):
    lib.word_level(["b", "a", "b", "c-1"], tmp_path / "words")
    words = lib.load_tokenizer(tmp_path / "words")
    assert len(words) == len(lib.SPECIALS) + 3
    tokenized = lib.tokenize(words, "a  c-1 b\nz")
    np.testing.assert_array_equal(tokenized.ids, [6, 7, 5, 3])
    np.testing.assert_array_equal(tokenized.offsets, [[0, 1], [3, 6], [7, 8], [9, 10]])
    assert words.decode([0, 6, 7, 5, 2], skip_special_tokens=True) == "a c-1 b"


def test_light_tokenizer(bpe):
    light = pickle.loads(pickle.dumps(lib.LightTokenizer.of(bpe)))
    for a, b in zip(lib.tokenize(light, "the fox 😀"), lib.tokenize(bpe, "the fox 😀"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lib.LightTokenizer.of(light).eos_token_id == 2


def test_a_tokenizer_that_cuts_does_not(folder, tmp_path):
    """tokenizer.json can hold a truncation and a padding; neither touches documents."""
    setup = json.loads((folder / "tokenizer.json").read_text())
    setup["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    setup["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(setup))
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    assert 2 < len(lib.tokenize(lib.load_tokenizer(tmp_path), "the fox and the dog").ids) < 50


class Source:
    """Counts how often it is read."""

    notes = ()

    def __init__(self, rows, fingerprint=None):
        self.rows, self.reads, self.fingerprint = rows, 0, fingerprint

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.reads += 1
        return self.rows[index]


def test_trained_once_for_content_and_size(tmp_path):
    rows = [Row(str(i), text, "sum", query="why") for i, text in enumerate(TEXTS)]
    first = lib.train_on_rows(Source(rows), 290, tmp_path)
    folders = lambda: sorted((tmp_path / "tokenizers").iterdir())
    assert len(folders()) == 1
    stamp = (folders()[0] / "tokenizer.json").stat().st_mtime_ns
    again = lib.train_on_rows(Source(rows), 290, tmp_path)
    assert (folders()[0] / "tokenizer.json").stat().st_mtime_ns == stamp
    assert again.get_vocab() == first.get_vocab()
    lib.train_on_rows(Source(rows), 280, tmp_path)
    lib.train_on_rows(Source(rows[:1]), 290, tmp_path)
    assert len(folders()) == 3
    known = Source(rows, "digest")
    lib.train_on_rows(known, 290, tmp_path)
    reads = known.reads
    assert reads == len(rows)
    lib.train_on_rows(known, 290, tmp_path)
    assert known.reads == reads  # what has a fingerprint is not read again
    with pytest.raises(UserError, match=r"config\.data\.vocab_size=100: expected at least 261"):
        lib.train_on_rows(Source(rows), 100, tmp_path)


def test_repeated_texts_count_once():
    row = Row("1", "document", "summary", ("summary", "another"), query="query")
    texts = list(lib.distinct_texts(ListSource([row, row, Row("2", "document", "new")])))
    assert texts == ["document", "summary", "another", "query", "new"]


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="tells where SentencePiece is not installed")
def test_a_model_of_sentencepiece_names_the_package_that_reads_it(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MBart50Tokenizer"}')
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(UserError, match=r"a model of SentencePiece, .*: pip install sentencepiece$"):
        lib.load_tokenizer(tmp_path)


def test_saved_whole_or_not_at_all(bpe, tmp_path, monkeypatch):
    save = type(bpe).save_pretrained

    def full(self, folder):
        save(self, folder)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(type(bpe), "save_pretrained", full)
        with pytest.raises(UserError, match=r"here: the tokenizer cannot be written there \(No space left"):
            lib.save_tokenizer(bpe, tmp_path / "here")
    assert list(tmp_path.iterdir()) == []
    lib.save_tokenizer(bpe, tmp_path / "deep" / "here")
    lib.save_tokenizer(bpe, tmp_path / "deep" / "here")  # what is there stays
    assert lib.load_tokenizer(tmp_path / "deep" / "here").get_vocab() == bpe.get_vocab()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written there"):
        lib.save_tokenizer(bpe, tmp_path / "file" / "here")


def test_bart_folder_without_tokenizer_json(bpe, folder, tmp_path):
    """vocab.json and merges.txt beside a config, as facebook/bart-base is published."""
    setup = json.loads((folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(setup["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in setup["merges"]))
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    loaded = lib.load_tokenizer(tmp_path)
    np.testing.assert_array_equal(lib.tokenize(loaded, TEXTS[0]).ids, lib.tokenize(bpe, TEXTS[0]).ids)


def test_bad_folders(folder, tmp_path):
    config = (folder / "tokenizer_config.json").read_text()
    whole = (folder / "tokenizer.json").read_text()

    def fails(files, message):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        for name, content in files.items():
            (place / name).write_text(content)
        with pytest.raises(UserError, match=message) as error:
            lib.load_tokenizer(place)
        assert str(error.value).startswith(str(place)) and "\n" not in str(error.value)

    fails({}, "no tokenizer could be loaded .*; expected tokenizer.json .*, there is nothing")
    fails({"tokenizer_config.json": config}, "no tokenizer could be loaded .* there is tokenizer_config.json")
    fails({"config.json": '{"model_type": "bart"}'}, "has no vocabulary, only special tokens; .* there is config.json")
    fails({"tokenizer_config.json": config, "tokenizer.json": whole[:1000]}, "tokenizer.json: cannot be read as JSON")
    usual = {"tokenizer_config.json": config, "tokenizer.json": whole}
    fails({**usual, "added_tokens.json": "{"}, "added_tokens.json: cannot be read as JSON")
    t5 = {"tokenizer.json": whole, "config.json": '{"model_type": "t5", "dropout_rate": null}'}
    strict = hasattr(transformers.T5Config, "__validators__")
    # Early versions 5 of transformers take the config, and fail at the tokenizer.
    fails(t5, "config.json: transformers refuses it .*'dropout_rate'" if strict else "no tokenizer could be loaded")
    fails({"tokenizer_config.json": config, "tokenizer.json": '{"model": 3}'}, "no tokenizer could be loaded")
    fails({"tokenizer.json": whole}, "has no eos_token_id: a summary needs a token that ends it")
    remote = json.dumps(
        {**json.loads(config), "tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    )
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    fails({"tokenizer_config.json": remote, "tokenizer.json": whole, "own.py": code}, "no tokenizer could be loaded")
    assert not (tmp_path / "ran").exists()
    for name in (tmp_path / "gone", "runs/none/tokenizer", tmp_path / "0" / "own.py"):
        with pytest.raises(UserError, match="no such folder"):
            lib.load_tokenizer(name)
