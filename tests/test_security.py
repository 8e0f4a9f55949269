"""Files that come from elsewhere run no code, name no file outside their folder, and ask for no memory out of reason.

Each file here would leave a mark if anything in it ran. What may run, config files and the names in them, does.
"""

import ast
import json
import pickle
import re
import shutil
import struct

import msgpack
import pytest
from helpers import ROOT, one_line_error, tiny_bert
from hostile import DEEP, MODEL, Touch, changed, refused
from hostile import marker as marker
from hostile import marking_module as marking_module
from hostile import model as model
from stand_in_hub import hub as hub

from jax_simcas import convert, summarize, train
from jax_simcas.checkpoints.hub import load
from jax_simcas.common.errors import UserError
from jax_simcas.data.sentencepiece_model import read_model
from jax_simcas.data.tokenizer import load_tokenizer
from jax_simcas.run import build
from jax_simcas.run import config as config_lib
from jax_simcas.run.allowed_code import ALLOWED, NAMED

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
