"""Files that come from elsewhere run no code, name no file outside their folder, and ask for no memory out of reason.

Each file here would leave a mark if anything in it ran. What may run, config files and the names in them, does.
"""

import ast
import hashlib
import importlib.util
import io
import json
import pickle
import re
import shutil
import struct
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from helpers import PARITY, ROOT, TINY, one_line_error, tiny_bert, tiny_params
from packaging.requirements import Requirement
from stand_in_hub import hub as hub

from jax_simcas import convert, summarize, train
from jax_simcas.checkpoints.hub import load, save
from jax_simcas.checkpoints.run_state import Checkpointer, load_params
from jax_simcas.common import files
from jax_simcas.common.errors import UserError
from jax_simcas.common.metric_log import read_metrics
from jax_simcas.data.documents import text_of
from jax_simcas.data.features import FeatureConfig, featurize
from jax_simcas.data.formats import open_rows
from jax_simcas.data.rows import Fields, Row
from jax_simcas.data.sentencepiece_model import read_model
from jax_simcas.data.text_files import CsvSource, JsonlSource
from jax_simcas.data.tokenizer import load_tokenizer
from jax_simcas.evaluation.files import read_rows
from jax_simcas.evaluation.highlight import Shown, page
from jax_simcas.evaluation.summarizer import ReadTokens
from jax_simcas.run import build
from jax_simcas.run import config as config_lib
from jax_simcas.run import workdir as workdir_lib
from jax_simcas.run.allowed_code import ALLOWED, NAMED
from jax_simcas.run.parity_cases import read_cases

MODEL = ROOT / "examples" / "quickstart_model"
MARKUP = "{document.__class__} {0} {{query}} {% raw %} ${HOME} $(true) `true` %s <script>1</script> =1+1 \\u003c"
DEEP = "[" * 200_000


class Touch:
    """A pickle of it makes the file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """A file that must not be there when the test ends."""
    file = tmp_path / "ran"
    yield file
    assert not file.exists()


@pytest.fixture
def model(tmp_path):
    """A folder with a model of the tests' size, without a tokenizer."""
    save(tmp_path / "model", TINY, tiny_params())
    return tmp_path / "model"


@pytest.fixture
def marking_module(tmp_path, monkeypatch):
    """The name of a module that can be imported, and the file that importing it makes."""
    name, mark = "imported_by_a_name", tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nsame = lambda boundary, real, axis_name: boundary\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delenv(ALLOWED, raising=False)
    yield name, mark
    sys.modules.pop(name, None)


def refused(source, match=None, read=load):
    """The one line of the error."""
    with pytest.raises(UserError, match=match) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path, **values):
    """A JSON file with other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Weights


@pytest.mark.parametrize("protocol", ["zip", "bare"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_generation.bin", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("held", ["alone", "as metadata"])
def test_code_in_weights_of_torch_is_never_run(name, protocol, held, model, marker):
    torch = pytest.importorskip("torch")
    value = Touch(marker) if held == "alone" else {"a": torch.zeros(2), "_metadata": Touch(marker)}
    (model / "model.safetensors").unlink()
    torch.save(value, model / name, _use_new_zipfile_serialization=protocol == "zip")
    if "-of-" in name:
        (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert refused(model).endswith("not readable as weights only (damaged, or with code in it, which is never run)")


def test_a_bare_pickle_is_not_weights(model, marker):
    pytest.importorskip("torch")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(marker)))
    refused(model, "not readable as weights only")


def test_a_torch_that_may_run_code_is_refused(model, marker, monkeypatch):
    torch = pytest.importorskip("torch")
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.5.1+cpu"))
    refused(model, r"needs torch 2\.6 or newer, as 2\.5\.1\+cpu may run code in it; update torch, or convert")


def test_the_encoder_of_bertscore_runs_no_code(tmp_path, marker):
    torch = pytest.importorskip("torch")
    from jax_simcas.evaluation import bertscore

    folder = tiny_bert(tmp_path / "bert")
    with_code(folder, marker)
    bertscore.load_encoder(f"{folder}@2")
    (folder / "model.safetensors").unlink()
    torch.save(Touch(marker), folder / "pytorch_model.bin")
    refused(f"{folder}@2", "cannot be loaded", bertscore.load_encoder)


def array(shape, dtype, data=bytes(8), kind=1):
    """An array as Flax packs it."""
    return msgpack.ExtType(kind, msgpack.packb((shape, dtype, data)))


@pytest.mark.parametrize(
    "content",
    [
        msgpack.packb({"a": msgpack.ExtType(99, b"code")}),
        msgpack.packb({"a": array((1,), "object")}),
        msgpack.packb({"a": array((1,), "os.system")}),
        msgpack.packb({"a": array((), "O", kind=3)}),
        msgpack.packb({"a": array((2**40,), "float32")}),
        msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": 1}}}),
        msgpack.packb({"../../a": array((2,), "float32")}),
        b"\xdd\xff\xff\xff\xff",  # a list of 2^32 - 1 elements
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a" * 200_000 + b"\xc0",
    ],
)
def test_msgpack_holds_arrays_alone(content, model):
    (model / "model.safetensors").unlink()
    (model / "flax_model.msgpack").write_bytes(content)
    refused(model, r"flax_model\.msgpack")


def test_msgpack_with_a_pickle_is_not_read(model, marker):
    (model / "model.safetensors").unlink()
    (model / "flax_model.msgpack").write_bytes(pickle.dumps(Touch(marker)))
    refused(model, "not a readable Flax msgpack file|does not fit|other than arrays|differ")


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (2**60, b"{}"),
        (None, {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        (None, {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
        (None, {"a": {"dtype": "os.system", "shape": [1], "data_offsets": [0, 4]}}),
        (None, DEEP.encode()),
    ],
)
def test_sizes_in_the_head_of_safetensors_are_checked_before_memory_is_taken(size, header, model):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", size or len(head)) + head)
    refused(model, "not a readable safetensors file")


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "name", ["../secret", "../../x", "/etc/hostname", "..", ".", "", "sub/x", "a\0b", "a\nb", "x" * 5_000, 7, None]
)
def test_a_list_of_parts_names_files_of_its_folder_alone(name, index, model):
    pytest.importorskip("torch")
    shutil.move(model / "model.safetensors", model.parent / "secret")
    (model / index).write_text(json.dumps({"weight_map": {"a": name}}))
    message = refused(model)
    where = ("names a file outside its folder", "names a file that cannot be", "no weight_map in it", "cannot be read")
    assert any(told in message for told in where)


def test_what_a_link_leads_to_is_not_in_the_message(model, tmp_path):
    (tmp_path / "private").write_text("a secret")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        kept = (model / name).read_bytes() if (model / name).exists() else None
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(tmp_path / "private")
        assert "secret" not in refused(model)
        (model / name).unlink()
        if kept is not None:
            (model / name).write_bytes(kept)


# Settings of a model


@pytest.mark.parametrize(
    "values",
    [
        {"activation_function": "__import__('os').abort()"},
        {"activation_function": "os:abort"},
        {"activation_function": ["gelu"]},
        {"model_type": "os.path"},
        {"model_type": {"a": 1}},
        {"encoder_layers": 10**6},
        {"decoder_layers": 2**31 - 1},
        {"max_position_embeddings": 10**13},
        {"vocab_size": 10**15},
        {"d_model": 10**9},
        {"bos_token_id": 10**30},
        {"eos_token_id": "0; import os"},
    ],
    ids=str,
)
def test_values_of_a_config_are_checked_not_evaluated(values, model):
    changed(model / "config.json", **values)
    refused(model)


@pytest.mark.parametrize("family", ["t5", "t5gemma"])
def test_no_family_describes_a_million_layers(family, tmp_path):
    stack = {"num_hidden_layers": 10**6}
    sizes = {"t5": {"num_layers": 10**6}, "t5gemma": {"encoder": stack, "decoder": stack}}[family]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **sizes}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert re.search(r"layers=1000000: expected 1 to 1000", refused(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "jax_simcas.json"])
@pytest.mark.parametrize("content", [DEEP, "!!python/object/apply:os.abort []", '{"py/reduce": [', "\0"])
def test_a_json_file_is_json(name, content, model):
    (model / name).write_text(content)
    refused(model, f"{name}: cannot be read as JSON")


def test_names_of_code_that_are_not_read_do_nothing(model):
    changed(model / "config.json", dtype="os:abort", torch_dtype=["os"], custom_pipelines={"a": {"impl": "x.X"}})
    load(model)


def with_code(folder, marker):
    """The folder with code in it that every loader that knows of such would be told to run."""
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass X: pass\n"
    for name in ("modeling_x", "tokenization_x", "configuration_x", "__init__", "conftest", "setup"):
        (folder / f"{name}.py").write_text(code)
    classes = {"AutoConfig": "configuration_x.X", "AutoModel": "modeling_x.X", "AutoModelForSeq2SeqLM": "modeling_x.X"}
    classes["AutoTokenizer"] = ["tokenization_x.X", "tokenization_x.X"]
    changed(folder / "config.json", auto_map=classes, trust_remote_code=True)
    template = "{% for m in messages %}{{ m.__class__ }}{% endfor %}{{ cycler.__init__ }}"
    changed(folder / "tokenizer_config.json", auto_map=classes, chat_template=template, trust_remote_code=True)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def model_with_code(tmp_path, marker):
    shutil.copytree(MODEL, tmp_path / "quickstart")
    return with_code(tmp_path / "quickstart", marker)


def test_code_beside_a_model_is_never_run(model_with_code, marker, monkeypatch, hub):
    """From a folder, in that folder, and from the hub, which is not even asked for it."""
    tokens = load_tokenizer(MODEL)("Anna lives in Oslo.")["input_ids"]
    assert load_tokenizer(model_with_code)("Anna lives in Oslo.")["input_ids"] == tokens
    build.load_model(str(model_with_code))
    hub.add("someone/model", {path.name: path.read_bytes() for path in model_with_code.iterdir()})
    build.load_model("someone/model")
    assert not [path for path in hub.asked("GET", "/resolve/") if path.endswith((".py", ".jinja"))]
    monkeypatch.chdir(model_with_code)
    build.load_model(".")


def test_a_tokenizer_of_code_alone_is_refused(model_with_code, tmp_path):
    changed(model_with_code / "tokenizer_config.json", tokenizer_class="X")
    (model_with_code / "tokenizer.json").unlink()
    refused(model_with_code, "tokenizer", load_tokenizer)


@pytest.mark.parametrize("kind", ["os", "builtins.eval", "../../x", "subprocess.Popen", "jax_simcas.run.build.load"])
def test_the_class_of_a_tokenizer_is_looked_up_among_tokenizers(kind, model_with_code):
    changed(model_with_code / "tokenizer_config.json", tokenizer_class=kind)
    try:
        tokenizer = load_tokenizer(model_with_code)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert type(tokenizer).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    "content", [b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x02\x08", pickle.dumps({"a": 1}), b"\xff" * 99]
)
def test_a_model_of_sentencepiece_is_a_message_of_pieces(content):
    refused(content, "sentencepiece model", read_model)


def test_the_card_of_a_model_holds_no_objects(tmp_path, marker, capsys):
    shutil.copytree(MODEL, tmp_path / "quickstart")
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath ['{marker}']]"
    (tmp_path / "quickstart" / "README.md").write_text(f"---\nlicense: {tag}\n---\n# A model\n")
    convert.main([str(tmp_path / "quickstart"), str(tmp_path / "out"), "--to=hf"])
    assert "Traceback" not in capsys.readouterr().err


# Names of code in settings


@pytest.mark.parametrize("field", NAMED)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_settings_that_come_with_a_model_import_nothing(field, place, tmp_path, marking_module, hub, capsys):
    name, mark = marking_module
    folder = tmp_path / "quickstart"
    shutil.copytree(MODEL, folder)
    settings = json.loads((folder / "jax_simcas.json").read_text())
    section, _, leaf = field.rpartition(".")
    (settings[section] if section else settings)[leaf] = f"{name}:same"
    (folder / "jax_simcas.json").write_text(json.dumps(settings))
    source = str(folder)
    if place == "hub":
        source = "someone/model"
        hub.add(source, {path.name: path.read_bytes() for path in folder.iterdir()})
    told = (
        rf"{source}: its settings: {field}='{name}:same' names code, .* set the environment variable {ALLOWED}={name}"
    )
    refused(source, told, build.load_summarizer)
    assert summarize.main([f"--model={source}", str(ROOT / "examples" / "quickstart.txt")]) == 1
    assert re.search(told, one_line_error(capsys.readouterr().err))
    assert not mark.exists()


def test_the_user_may_allow_a_module(tmp_path, marking_module, monkeypatch):
    name, mark = marking_module
    shutil.copytree(MODEL, tmp_path / "quickstart")
    settings = json.loads((MODEL / "jax_simcas.json").read_text())
    settings["simcas"]["align"] = f"{name}:same"
    (tmp_path / "quickstart" / "jax_simcas.json").write_text(json.dumps(settings))
    monkeypatch.setenv(ALLOWED, f"another, {name}")
    build.load_summarizer(tmp_path / "quickstart")
    assert mark.exists()


def test_every_setting_that_may_name_code_is_known():
    """What `package.module:name` may stand in is what the explanations of the settings say it may."""
    explained = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w.]+)` \| str \| .*(?:package\.module:name|of your own|or your own).*\|$", explained, re.M
    )
    assert set(rows) == set(NAMED)


def test_config_files_and_the_names_in_them_are_code(tmp_path, marking_module):
    """As docs/security.md says."""
    name, mark = marking_module
    settings = config_lib.Settings()
    path = tmp_path / "config.json"
    path.write_text(config_lib.to_json(settings).replace('"align": "mean"', f'"align": "{name}:same"'))
    read = config_lib.read_json(path)
    assert not mark.exists()
    read.model()
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("run.json", '{"simcas": {"__class__": "x"}}', "no such field"),
        ("run.json", '{"py/object": "os.system"}', "no such field"),
        ("run.json", "!!python/object/apply:os.abort []", "cannot be read as JSON"),
        ("run.yaml", "a: !!python/object/apply:os.abort []", "invalid syntax"),
        ("run.toml", "[a]\nb = 1", "NameError"),
    ],
)
def test_a_config_is_python_or_json(name, content, told, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    assert train.main([f"--config={tmp_path / name}", f"--workdir={tmp_path / 'run'}"]) != 0
    assert told in one_line_error(capsys.readouterr().err)


# The state of a run


def sealed(body):
    """Metadata as a checkpoint has it: anyone can compute the digest."""
    text = json.dumps(body)
    return json.dumps({"json": text, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()})


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {"params/../../../../x": {"is": "float32[2]", "key": None, "digest": [0, 0]}}},
        {"arrays": {"params/w": {"is": "float32[2]", "key": "os:abort", "digest": [0, 0]}}},
        {"arrays": {"params/w": {"py/reduce": ["os.abort"]}}},
        {"best": ["loss", "os:abort"], "metrics": {"loss": "__import__('os').abort()"}},
        {"best": []},
        {"arrays": [1], "meta": 7},
    ],
    ids=str,
)
def test_metadata_of_a_checkpoint_names_nothing_outside_it(change, tmp_path):
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(1, {"params": {"w": jnp.arange(2.0)}}, {"loss": 1.0}, {"step": 1})
    place = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    body = json.loads(json.loads(place.read_text())["json"])
    place.write_text(sealed(body | change))
    try:
        params, _ = load_params(tmp_path / "checkpoints")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(params["w"], [0, 1])


def test_objects_in_arrays_are_never_read(tmp_path, marker, capsys):
    folder = tmp_path / "parity"
    shutil.copytree(PARITY, folder)
    for file in folder.glob("*.npz"):
        np.savez(file, a=np.array([Touch(marker)], object))
    refused(folder, "cannot be read", read_cases)
    manifest = json.loads((folder / "manifest.json").read_text())
    first, settings = next(iter(manifest.items()))
    (folder / "manifest.json").write_text(json.dumps({f"{first.split('_')[0]}_/../../x": settings}))
    refused(folder, "is of no known kind", read_cases)


def test_an_index_in_the_cache_with_objects_is_made_anew(tmp_path, marker):
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"document": "a b", "summary": "c"}\n')
    JsonlSource(rows, Fields(), tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "indexes").iterdir()
    names = np.load(index).files
    np.savez(index, **{name: np.array([Touch(marker)], object) for name in names})
    assert JsonlSource(rows, Fields(), tmp_path / "cache")[0].document == "a b"


def test_an_object_in_a_bucket_is_not_written_outside_the_copy(tmp_path, monkeypatch):
    bucket, disk = tmp_path / "bucket", LocalFileSystem(auto_mkdir=True)
    monkeypatch.setattr(fsspec_backend, "fs", lambda path: DirFileSystem(str(bucket), disk))
    (bucket / "gs:" / "b" / "run").mkdir(parents=True)
    (bucket / "gs:" / "b" / "run" / "config.json").write_text("{}")
    real = workdir_lib._files
    monkeypatch.setattr(workdir_lib, "_files", lambda path: (each.parent / ".." / each.name for each in real(path)))
    with pytest.raises(UserError, match=r"--workdir=gs://b/run: has \.\./config\.json, which would be written outside"):
        workdir_lib.Workdir.at("gs://b/run", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("config.json"))


# Data


def test_markup_in_rows_and_templates_is_text(tmp_path):
    """Braces, tags, formulas and shell words of a document reach the tokenizer as they are."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"document": MARKUP, "summary": MARKUP}) + "\n")
    (tmp_path / "a.csv").write_text('document,summary\n"{0}","{0}"\n'.replace("{0}", MARKUP))
    tokenizer = load_tokenizer(MODEL)
    for source in (JsonlSource, CsvSource):
        row = source(tmp_path / f"a.{source.label[:-6].lower()}", Fields(), tmp_path / "cache")[0]
        assert row.document == row.summary == MARKUP
    template = "{document.__class__} {query.__init__} {0} {document}"
    config = FeatureConfig(64, 256, 64, input_template=template)
    row = Row(id="1", document="Anna", summary="x")
    plain = tokenizer.backend_tokenizer.encode(template.replace("{document}", "Anna"), add_special_tokens=False).ids
    features = featurize(row, tokenizer, config)
    assert features["input_ids"][features["content_mask"]].tolist() == plain
    with pytest.raises(ValueError, match=r"expected '\{document\}' in it, once"):
        FeatureConfig(64, 256, 64, input_template="{document.__class__}")


def test_a_page_of_what_was_kept_holds_no_markup_of_a_document():
    read = ReadTokens(np.zeros((0, 2), int), np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(1)">' + MARKUP
    html = page(Shown(evil, evil, evil, read, query=evil, references=[evil], scores={evil: 1.0}))
    assert "<img" not in html and html.count("<script") == 2 and "'unsafe" not in html
    assert "default-src 'none'" in html


def test_too_deep_json_is_one_line_everywhere(tmp_path):
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "predictions.jsonl").write_text(DEEP + "\n")
    (tmp_path / "metrics.jsonl").write_text(DEEP + '\n{"step": 1, "split": "train"}\n')
    refused(tmp_path / "deep.json", "nested too deeply", lambda path: files.read_json(path, ""))
    refused(tmp_path, "nested too deeply", read_rows)
    refused(tmp_path / "predictions.jsonl", "nested too deeply", lambda path: JsonlSource(path, Fields(), tmp_path))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "split": "train"}]


def test_a_prepared_set_imports_no_other_library(tmp_path, marking_module):
    tfds = pytest.importorskip("tensorflow_datasets")
    name, mark = marking_module
    assert tfds.__version__
    folder = tmp_path / "data" / "someones" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "someones", "version": "1.0.0", "fileFormat": "array_record"}')
    inner = {"pythonClassName": f"{name}.Feature", "json": {"json": "{}"}}
    for features in (
        inner,
        {"type": f"{name}.Feature", "content": {}},
        {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
         "featuresDict": {"features": {"document": inner}}},
        {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
         "jsonFeature": {"json": json.dumps({"type": f"{name}.Feature"})}},
    ):  # fmt: skip
        (folder / "features.json").write_text(json.dumps(features))
        with pytest.raises(UserError, match=rf"features\.json: names the class '{name}\.Feature', which is none of"):
            open_rows("tfds:someones", str(tmp_path / "data"), "train", Fields(), tmp_path / "cache")
    (folder / "features.json").write_text(DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        open_rows("tfds:someones", str(tmp_path / "data"), "train", Fields(), tmp_path / "cache")
    assert not mark.exists()


def test_a_library_that_may_run_scripts_is_refused(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(
        UserError, match=r"needs datasets 4 or newer, as 3\.6\.0 may run code that comes with data: pip"
    ):
        open_rows(f"datasets:{tmp_path}", "", "train", Fields(), tmp_path / "cache")


# Documents


def docx(text, **more):
    """A DOCX whose main part is `text`, with further members."""
    out = io.BytesIO()
    from docx import Document

    Document().save(out)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(out.getvalue())) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, text if name == "word/document.xml" else old.read(name))
        for name, content in more.items():
            new.writestr(name.replace("_", "/"), content)
    return made.getvalue()


def test_a_docx_takes_nothing_from_outside_and_unpacks_nothing(tmp_path, monkeypatch):
    pytest.importorskip("docx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private").write_text("a secret")
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = f"<w:document {space}><w:body><w:p><w:r><w:t>words &x;</w:t></w:r></w:p></w:body></w:document>"
    head = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/private">]>'
    try:
        text = text_of(docx(head + body, **{".._.._unpacked": b"x", "_tmp_unpacked-by-a-test": b"x"}), "a.docx")
    except UserError as error:
        text = str(error)
    assert "secret" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"private"}
    assert not Path("/tmp/unpacked-by-a-test").exists()


def test_html_of_a_document_takes_nothing_from_outside(tmp_path):
    pytest.importorskip("inscriptis")
    (tmp_path / "private").write_text("a secret")
    head = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{tmp_path}/private">]>'
    html = f'{head}<html><body>words &x;<script>"ran"</script><iframe src="file://{tmp_path}/private"></iframe></body>'
    text = text_of(html.encode(), "a.html")
    assert "words" in text and "secret" not in text and "ran" not in text


# The source


def test_nothing_in_the_source_loads_pickles_or_evaluates_text():
    """A pickle is read nowhere, and every loader that could read one is told not to, in so many words."""
    banned = {
        *("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.loads", "dill.loads"),
        *("yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "marshal.loads", "shelve.open", "joblib.load"),
        *("subprocess.getoutput", "np.fromregex", "zipfile.extractall", "tarfile.open", "shutil.unpack_archive"),
    }
    needed = {"torch.load": "weights_only", "np.load": "allow_pickle"}
    promised = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False, "shell": False}
    found = []
    for path in [
        *(ROOT / "jax_simcas").rglob("*.py"),
        *(ROOT / "launch").glob("*.py"),
        *(ROOT / "configs").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            where = f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
            found += [where] if name in banned else []
            found += [where] if name in needed and needed[name] not in given else []
            if re.fullmatch(r"Auto\w+\.from_pretrained", name):
                found += [] if "trust_remote_code" in given else [where]
            found += [
                where for flag, value in given.items() if flag in promised and ast.unparse(value) != str(promised[flag])
            ]
    assert found == []


# Licences


def load_generator():
    spec = importlib.util.spec_from_file_location("make_licences", ROOT / "docs" / "make_licences.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_table_of_licences_has_every_direct_dependency():
    pytest.importorskip("setuptools")
    made = load_generator()
    text = made.PAGE.read_text(encoding="utf-8")
    assert {name: needed_by for name, (needed_by, _) in made.rows(text).items()} == {
        name: ", ".join(extras) for name, extras in made.requirements().items()
    }, "run python docs/make_licences.py"
    assert made.UNKNOWN not in text


def test_the_table_of_licences_is_what_the_pinned_packages_say():
    """Other versions may say the same in other words."""
    pytest.importorskip("setuptools")
    made = load_generator()
    listed = made.rows(made.PAGE.read_text(encoding="utf-8"))
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    pinned = {plain(each.name): each for each in pins if each.marker is None or each.marker.evaluate()}
    for name, (_, licence) in listed.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if plain(name) in pinned and pinned[plain(name)].specifier.contains(version):
            assert made.licence_of(name) == licence, "run python docs/make_licences.py"
