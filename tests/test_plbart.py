"""PLBart's checkpoints with the files that they have: a sentencepiece model, no tokenizer.json.

tests/data/sentencepiece/make.py wrote what sentencepiece and transformers' PLBartTokenizer give.
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

import jax_simcas
from jax_simcas import convert, summarize
from jax_simcas.common.errors import UserError
from jax_simcas.data.features import featurize
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import LightTokenizer, frame_of, load_tokenizer, tokenize
from jax_simcas.run import build

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parent / "data/sentencepiece"
EXPECTED = {kind: json.loads((DATA / f"{kind}.json").read_text()) for kind in ("bpe", "unigram")}
KINDS = [(kind, codes) for kind in EXPECTED for codes in ("base", "multi")]
TEXT = "def getValue ( self ) : NEW_LINE INDENT return self . value </s> the value <pad> of \u2026 2024"


@pytest.fixture(autouse=True)
def _cache(cache):
    """Compiled programs are kept."""


@pytest.fixture
def no_sentencepiece(monkeypatch):
    """As on a machine without the package, whatever there is here."""
    monkeypatch.setitem(sys.modules, "sentencepiece", None)


def folder_of(folder, kind="bpe", **settings):
    """A tokenizer's files as the published checkpoints have them."""
    folder.mkdir(exist_ok=True)
    shutil.copy(DATA / f"{kind}.model", folder / "sentencepiece.bpe.model")
    names = {"tokenizer_class": "PLBartTokenizer", "language_codes": "base", "src_lang": None, "tgt_lang": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    specials = {"bos_token": "<s>", "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True}}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    return folder


def checkpoint(folder, **settings):
    """A model with random weights, and the tokenizer's files."""
    folder_of(folder, **settings)
    multi = settings.get("language_codes") == "multi"
    size = EXPECTED["bpe"]["multi" if multi else "base"]["size"]
    return save_model(folder, "PLBart", size, generation=SHORT | {"decoder_start_token_id": size - 2})


@pytest.mark.usefixtures("no_sentencepiece")
@pytest.mark.parametrize(("kind", "codes"), KINDS)
def test_ids_and_texts_are_those_of_transformers(kind, codes, tmp_path):
    lines, expected = EXPECTED[kind]["lines"], EXPECTED[kind][codes]
    tokenizer = load_tokenizer(folder_of(tmp_path, kind, language_codes=codes), "java", "__en_XX__")
    light = pickle.loads(pickle.dumps(LightTokenizer.of(tokenizer)))
    assert len(tokenizer) == expected["size"]
    for line, ids in zip(lines, expected["ids"], strict=True):
        found = tokenize(tokenizer, line)
        # transformers takes <mask> for <unk> where the vocabulary has none
        assert found.ids.tolist() == ids or (codes == "multi" and "<mask>" in line), line
        np.testing.assert_array_equal(tokenize(light, line).ids, found.ids)
        assert (found.offsets[:, 0] <= found.offsets[:, 1]).all() and (found.offsets <= len(line)).all()
    document, target = expected["frames"]
    for frame in (frame_of(tokenizer), frame_of(light)):
        assert (*frame.prefix, *frame.suffix) == tuple(document)
        assert (*frame.target_prefix, *frame.target_suffix) == tuple(target)
    for skip, texts in zip((False, True), expected["decoded"], strict=True):
        assert [tokenizer.decode(ids, skip_special_tokens=skip) for ids in expected["drawn"]] == texts


def test_tokens_know_their_characters(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path))
    text = "  return \t self\uff0ex"
    cut = tokenize(tokenizer, text)
    spelled = [text[start:end].strip() for start, end in cut.offsets]
    assert "".join(spelled) == "returnself\uff0ex"


@pytest.mark.parametrize(
    ("settings", "languages", "suffixes"),
    [
        ({}, ("", ""), ([2], [2])),
        ({}, ("python", ""), ([2, "__python__"], [2])),
        ({"src_lang": "java", "tgt_lang": "__python__"}, ("", ""), ([2, "__java__"], [2, "__python__"])),
        ({"src_lang": "java", "tgt_lang": "python"}, ("", "__en_XX__"), ([2, "__java__"], [2, "__en_XX__"])),
        ({"language_codes": "multi"}, ("", ""), ([2, "__en_XX__"], [2])),
        ({"language_codes": "multi"}, ("go", "php"), ([2, "__go__"], [2, "__php__"])),
    ],
)
def test_languages(settings, languages, suffixes, tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path / "a", **settings), *languages)
    tokenizer.save_pretrained(tmp_path / "b")
    for made in (tokenizer, load_tokenizer(tmp_path / "b")):
        frame = frame_of(made)
        ids = [tuple(made.convert_tokens_to_ids(t) if isinstance(t, str) else t for t in part) for part in suffixes]
        assert [frame.suffix, frame.target_suffix] == ids and not frame.prefix and not frame.target_prefix


def test_what_is_saved_has_the_published_files(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path / "a", src_lang="java"))
    tokenizer.add_tokens(["NEW_LINE", "<topic>"])
    shutil.rmtree(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    text = "value NEW_LINE <topic>value"
    assert tokenize(again, text).ids.tolist() == tokenize(tokenizer, text).ids.tolist()
    assert tokenize(again, text).ids.max() == len(again) - 1 == EXPECTED["bpe"]["base"]["size"] + 1
    assert (tmp_path / "b/sentencepiece.bpe.model").read_bytes() == (DATA / "bpe.model").read_bytes()
    assert json.loads((tmp_path / "b/tokenizer_config.json").read_text())["tokenizer_class"] == "PLBartTokenizer"
    assert not (tmp_path / "b/tokenizer.json").exists()


@pytest.mark.usefixtures("no_sentencepiece")
def test_a_document_of_one_chunk_gives_what_transformers_gives(tmp_path, capsys):
    model = checkpoint(tmp_path / "plbart", src_lang="java", tgt_lang="en_XX")
    (tmp_path / "text.txt").write_text(TEXT)
    tokenizer = load_tokenizer(tmp_path / "plbart")

    def of_transformers(code, **options):
        ids = [*tokenize(tokenizer, TEXT).ids.tolist(), 2, tokenizer.convert_tokens_to_ids(code)]
        batch = transformers.BatchEncoding({"input_ids": [ids], "attention_mask": [[1] * len(ids)]}, tensor_type="pt")
        return tokenizer.decode(generated(model, batch, **options), skip_special_tokens=True).strip()

    first = of_transformers("__java__")
    assert first and jax_simcas.load(tmp_path / "plbart").summarize(TEXT).summary == first
    start = tokenizer.convert_tokens_to_ids("__en_XX__")
    second = of_transformers("__python__", decoder_start_token_id=start)
    flags = ["--src-lang=python", "--tgt-lang=en_XX", "--json", str(tmp_path / "text.txt")]
    assert summarize.main([f"--model={tmp_path / 'plbart'}", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == second != first
    assert convert.main([str(tmp_path / "plbart"), str(tmp_path / "flax"), "--to=flax"]) == 0
    assert jax_simcas.load(tmp_path / "flax").summarize(TEXT).summary == first
    capsys.readouterr()
    assert summarize.main([f"--model={tmp_path / 'plbart'}", "--src-lang=go", str(tmp_path / "text.txt")]) == 1
    assert "--src-lang='go': the tokenizer has no such language code" in one_line_error(capsys.readouterr().err)


def test_training_reads_documents_and_targets_as_transformers_does(tmp_path):
    checkpoint(tmp_path, src_lang="java", tgt_lang="en_XX")
    ours = build.load_model(str(tmp_path))
    features = featurize(Row("1", TEXT, "the value"), ours.tokenizer, build.pipeline_config(ours.settings))
    java, english = (ours.tokenizer.convert_tokens_to_ids(code) for code in ("__java__", "__en_XX__"))
    label = torch.tensor([[*tokenize(ours.tokenizer, "the value").ids.tolist(), 2, english]])
    reads = transformers.models.plbart.modeling_plbart.shift_tokens_right(label, 1)[0]
    document = [*tokenize(ours.tokenizer, TEXT).ids.tolist(), 2, java]
    np.testing.assert_array_equal(features["input_ids"][features["token_mask"]], document)
    np.testing.assert_array_equal(features["target_ids"][:-1], reads)
    np.testing.assert_array_equal(features["target_ids"][1:], label[0])


def test_a_mask_is_text_where_the_vocabulary_has_none(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, language_codes="multi"))
    ids = tokenize(tokenizer, "the <mask> of").ids.tolist()
    assert max(ids) < EXPECTED["bpe"]["multi"]["frames"][0][1] and 3 not in ids
    assert tokenizer.decode(ids) == "the <mask> of"


@pytest.mark.usefixtures("no_sentencepiece")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language_codes": "most"}, "language_codes='most': expected 'base' or 'multi'"),
        ({"src_lang": "cobol"}, "the tokenizer has no language 'cobol'; there are java, python, en_XX"),
        ("missing", "no sentencepiece.bpe.model, from which PLBart's tokenizer is read"),
        ("damaged", "not a sentencepiece model, or a damaged one"),
        ("empty", "its sentencepiece model has no pieces"),
        (
            {"tokenizer_class": "BartphoTokenizer"},
            "transformers has no fast BartphoTokenizer, and a slow one does not tell where in the text a token is; add "
            "a tokenizer.json of the same ids, "
            'and "tokenizer_class": "PreTrainedTokenizerFast" to tokenizer_config.json',
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(change, message, tmp_path):
    folder_of(tmp_path, **(change if isinstance(change, dict) else {}))
    model = tmp_path / "sentencepiece.bpe.model"
    if change == "missing":
        model.unlink()
    elif isinstance(change, str):
        model.write_bytes(b"no model" if change == "damaged" else b"")
    (tmp_path / "dict.txt").write_text("\u2581the 1\n")  # which BARTpho has beside it
    with pytest.raises(UserError) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value) and message in str(raised.value) and "\n" not in str(raised.value)


def test_a_fast_tokenizer_beside_the_model_stays_what_is_read(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path)
    assert not hasattr(read, "lang_code_to_id")
    assert tokenize(read, TEXT).ids.tolist() == tokenize(tokenizer, TEXT).ids.tolist()
