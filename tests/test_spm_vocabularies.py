"""M2M100's and Marian's checkpoints with the files that they have: sentencepiece models and a vocab.json.

tests/data/sentencepiece/make.py wrote what sentencepiece and transformers' slow tokenizers give.
"""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import one_line_error
from test_checkpoints import SHORT, generated, save_model
from tokenizers import AddedToken

import jax_simcas
from jax_simcas import convert, summarize
from jax_simcas.common.errors import UserError
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import sentencepiece_model
from jax_simcas.data.features import FeatureConfig, featurize
from jax_simcas.data.rows import ListSource, Row
from jax_simcas.data.tokenizer import LightTokenizer, frame_of, load_tokenizer, tokenize
from jax_simcas.run import build

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parent / "data/sentencepiece"
EXPECTED = {kind: json.loads((DATA / f"{kind}.json").read_text()) for kind in ("m2m100", "marian")}
NAMES = {
    "m2m100": {"vocab_file": "vocab.json", "spm_file": "sentencepiece.bpe.model"},
    "marian": {"vocab": "vocab.json", "source_spm": "source.spm", "target_spm": "target.spm"},
}
CLASSES = {"m2m100": "M2M100Tokenizer", "marian": "MarianTokenizer"}
TEXT = "def getValue(self): return self.value  # \u2603\u2603 of \u2026 2024 caf\u00e9"


@pytest.fixture(autouse=True)
def _cache(cache):
    """Compiled programs are kept."""


@pytest.fixture
def no_sentencepiece(monkeypatch):
    """As on a machine without the package, whatever there is here."""
    monkeypatch.setitem(sys.modules, "sentencepiece", None)


def folder_of(folder, kind, **settings):
    """A tokenizer's files as the published checkpoints have them."""
    folder.mkdir(exist_ok=True)
    expected = EXPECTED[kind]
    for argument, model in expected["files"].items():
        shutil.copy(DATA / f"{model}.model", folder / NAMES[kind][argument])
    tokens = expected["vocabulary"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    names = {"tokenizer_class": CLASSES[kind]} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def checkpoint(folder, kind, **settings):
    """A model with random weights, and the tokenizer's files."""
    folder_of(folder, kind, **settings)
    size = EXPECTED[kind]["size"]
    ends = {"eos_token_id": 0, "pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    if kind == "m2m100":
        return save_model(folder, "M2M100", size)
    return save_model(folder, "Marian", size, generation=SHORT | ends, **ends)


@pytest.mark.usefixtures("no_sentencepiece")
@pytest.mark.parametrize("kind", EXPECTED)
def test_ids_and_texts_are_those_of_transformers(kind, tmp_path):
    expected = EXPECTED[kind]
    languages = {"src_lang": "en", "tgt_lang": "de"} if kind == "m2m100" else {}
    first = load_tokenizer(folder_of(tmp_path / "a", kind), **languages)
    first.save_pretrained(tmp_path / "b")
    light = pickle.loads(pickle.dumps(LightTokenizer.of(first)))
    for tokenizer in (first, load_tokenizer(tmp_path / "b")):
        for line, ids, targets in zip(*(expected[name] for name in ("lines", "ids", "targets")), strict=True):
            found = tokenize(tokenizer, line)
            assert found.ids.tolist() == ids == tokenizer(line, add_special_tokens=False).input_ids, line
            assert tokenize(tokenizer, line, target=True).ids.tolist() == targets, line
            assert tokenizer(text_target=line, add_special_tokens=False).input_ids == targets, line
            assert (found.offsets[:, 0] <= found.offsets[:, 1]).all() and (found.offsets <= len(line)).all()
            for target in (False, True):
                np.testing.assert_array_equal(tokenize(light, line, target).ids, tokenize(tokenizer, line, target).ids)
        for frame in (frame_of(tokenizer), frame_of(light)):
            assert [[*frame.prefix, *frame.suffix], [*frame.target_prefix, *frame.target_suffix]] == expected["frames"]
        for skip, texts in zip((False, True), expected["decoded"], strict=True):
            assert [tokenizer.decode(ids, skip_special_tokens=skip) for ids in expected["drawn"]] == texts
    assert len(first) == expected["size"]


@pytest.mark.parametrize("kind", EXPECTED)
def test_tokens_know_their_characters(kind, tmp_path):
    text = "  return \t \u2603\u2603 self.x"
    cut = tokenize(load_tokenizer(folder_of(tmp_path, kind)), text)
    assert "".join(text[start:end].strip() for start, end in cut.offsets) == "return\u2603\u2603self.x"


@pytest.mark.parametrize("text", ["\x7fself.x", "\x01\x7f\x01self.x", "self.x\x7f"])
def test_characters_that_are_left_out_move_no_others(text):
    model = sentencepiece_model.read_model((DATA / "controls.model").read_bytes())
    cut = sentencepiece_model.Cutter.of(model)(text)
    assert "".join(text[start:end].strip("\x01\x7f") for start, end in cut.offsets) == text.translate({1: "", 127: ""})
    assert "".join(cut.pieces).replace("\u2581", "") == text.translate({1: "", 127: ""})


@pytest.mark.parametrize("kind", EXPECTED)
def test_an_added_token_takes_the_spaces_that_it_may(kind, tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, kind))
    tokenizer.add_tokens([AddedToken("<topic>", lstrip=True, rstrip=True)])
    for text in ("return  <topic>  value", "\u2603 <topic> x"):
        for target in (False, True):
            found = tokenize(tokenizer, text, target).ids.tolist()
            given = {"text_target" if target else "text": text}
            assert found == tokenizer(**given, add_special_tokens=False).input_ids and len(tokenizer) - 1 in found


@pytest.mark.usefixtures("no_sentencepiece")
@pytest.mark.parametrize("kind", EXPECTED)
def test_the_model_type_is_enough(kind, tmp_path):
    expected = load_tokenizer(folder_of(tmp_path, kind))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": {"m2m100": "m2m_100"}.get(kind, kind)}))
    found = load_tokenizer(tmp_path)
    assert type(found) is type(expected) and frame_of(found) == frame_of(expected)
    (tmp_path / "tokenizer_config.json").unlink()
    assert type(load_tokenizer(tmp_path)) is type(expected)


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_saved_has_the_published_files(kind, tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path / "a", kind))
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if "config" not in path.name}
    tokenizer.add_tokens(["NEW_LINE", "<topic>"])
    shutil.rmtree(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    text = "value NEW_LINE <topic>value"
    for target in (False, True):
        found = tokenize(again, text, target).ids.tolist()
        assert found == tokenize(tokenizer, text, target).ids.tolist() and {*found} > {len(again) - 2, len(again) - 1}
    assert {name: (tmp_path / "b" / name).read_bytes() for name in before} == before
    assert json.loads((tmp_path / "b/tokenizer_config.json").read_text())["tokenizer_class"] == CLASSES[kind]
    assert not (tmp_path / "b/tokenizer.json").exists()


@pytest.mark.parametrize("listed", [False, True])
def test_languages_are_special_where_the_files_list_them(listed, tmp_path):
    folder = folder_of(tmp_path, "m2m100")
    if listed:
        (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["__de__", "__fr__"]}))
    tokenizer = load_tokenizer(folder, "fr", "de")
    french, german = (tokenizer.lang_code_to_id[code] for code in ("fr", "de"))
    frame = frame_of(tokenizer)
    assert (frame.prefix, frame.suffix) == ((french,), (2,)) and (frame.target_prefix, frame.target_suffix) == (
        (german,),
        (2,),
    )
    assert (german in tokenize(tokenizer, "x __de__ y").ids) == listed
    assert ("__de__" in tokenizer.decode([german, 2], skip_special_tokens=True)) != listed
    with pytest.raises(UserError, match="src_lang='xx': the tokenizer has no such language code; there are af, am"):
        load_tokenizer(folder, "xx")


@pytest.mark.usefixtures("no_sentencepiece")
@pytest.mark.parametrize("kind", EXPECTED)
def test_a_document_of_one_chunk_gives_what_transformers_gives(kind, tmp_path, capsys):
    model = checkpoint(tmp_path / "model", kind)
    (tmp_path / "text.txt").write_text(TEXT)
    flags = ["--src-lang=fr", "--tgt-lang=de"] if kind == "m2m100" else []
    tokenizer = load_tokenizer(tmp_path / "model", *(["fr", "de"] if flags else []))
    forced = {"forced_bos_token_id": tokenizer.lang_code_to_id["de"]} if flags else {}
    batch = tokenizer(TEXT, return_tensors="pt")
    assert batch.input_ids[0].tolist() == [*frame_of(tokenizer).prefix, *tokenize(tokenizer, TEXT).ids, 2 * bool(flags)]
    expected = tokenizer.decode(generated(model, batch, **forced), skip_special_tokens=True).strip()
    assert summarize.main([f"--model={tmp_path / 'model'}", *flags, "--json", str(tmp_path / "text.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == expected != ""
    assert convert.main([str(tmp_path / "model"), str(tmp_path / "flax"), "--to=flax"]) == 0
    plain = jax_simcas.load(tmp_path / "model").summarize(TEXT).summary
    assert jax_simcas.load(tmp_path / "flax").summarize(TEXT).summary == plain
    capsys.readouterr()
    assert summarize.main([f"--model={tmp_path / 'model'}", "--src-lang=cobol", str(tmp_path / "text.txt")]) == 1
    error = one_line_error(capsys.readouterr().err)
    assert ("knows no languages" if kind == "marian" else "has no such language code") in error


def test_training_cuts_targets_by_their_own_model(tmp_path):
    checkpoint(tmp_path, "marian")
    ours = build.load_model(str(tmp_path))
    target = "the \u2603\u2603 value"
    features = featurize(Row("1", TEXT, target), ours.tokenizer, build.pipeline_config(ours.settings))
    document, label = (tokenize(ours.tokenizer, text, text == target).ids for text in (TEXT, target))
    assert label.tolist() != tokenize(ours.tokenizer, target).ids.tolist()
    np.testing.assert_array_equal(features["input_ids"][features["token_mask"]], [*document, 0])
    np.testing.assert_array_equal(features["target_ids"][1:], [*label, 0])


def test_cached_tokens_know_how_texts_are_cut(tmp_path):
    source = ListSource([Row("1", TEXT, "the value")])
    first = load_tokenizer(folder_of(tmp_path, "marian"))
    shutil.copy(tmp_path / "source.spm", tmp_path / "target.spm")
    second = load_tokenizer(tmp_path)
    config = FeatureConfig(chunk_length=16, max_input_len=64, max_target_len=8)
    keys = {cache_lib.key_of(source, tokenizer, config) for tokenizer in (first, LightTokenizer.of(first), second)}
    assert len(keys) == 2


@pytest.mark.usefixtures("no_sentencepiece")
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("m2m100", {"language_codes": "most"}, "language_codes='most': expected 'm2m100' or 'wmt21'"),
        ("m2m100", {"src_lang": "cobol"}, "the tokenizer has no language 'cobol'; there are af, am"),
        ("marian", {"separate_vocabs": True}, "targets with a vocabulary of their own are not supported"),
        ("m2m100", "sentencepiece.bpe.model", "no sentencepiece.bpe.model, from which M2M100's tokenizer is read"),
        ("marian", "target.spm", "no target.spm, from which Marian's tokenizer is read"),
        ("marian", "vocab.json", "no vocab.json, from which Marian's tokenizer is read"),
        ("marian", ["a"], "vocab.json is not a JSON object of tokens and ids"),
        ("marian", {"vocab": {"a": "b"}}, "vocab.json is not a JSON object of tokens and ids"),
        ("marian", {"vocab": {"a": 0, "b": 1.5}}, "vocab.json is not a JSON object of tokens and ids"),
        ("m2m100", {"vocab": {"a": 0, "b": 2}}, "vocab.json has ids other than 0 to 1, each once"),
        ("marian", {"vocab": {"<unk>": 0, "</s>": 1}}, "vocab.json has no '<pad>'"),
    ],
)
def test_what_cannot_be_read_is_one_line(kind, change, message, tmp_path):
    given = change if isinstance(change, dict) else {}
    folder_of(tmp_path, kind, **{name: value for name, value in given.items() if name != "vocab"})
    if isinstance(change, str):
        (tmp_path / change).unlink()
    elif "vocab" in change or change == ["a"]:
        (tmp_path / "vocab.json").write_text(json.dumps(given.get("vocab", change)))
    with pytest.raises(UserError) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value) and message in str(raised.value) and "\n" not in str(raised.value)
