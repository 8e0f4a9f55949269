"""Fetching models from the hub with huggingface_hub's client, from a stand-in on this machine."""

import json
import shutil

import numpy as np
import pytest
from helpers import TINY, largest_file, one_line_error, tiny_params
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.numpy import load_file, save_file
from stand_in_hub import TOKEN
from stand_in_hub import hub as hub

from jax_simcas import summarize
from jax_simcas.checkpoints.hub import load, save
from jax_simcas.common.errors import UserError

# What each tokenizer of transformers keeps its vocabulary in.
TOKENIZERS = [
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "target_vocab.json", "dict.txt", "bpe.codes", "tekken.json"),
    *("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "source.spm", "target.spm", "cl100k.tiktoken"),
]
NOT_NEEDED = [
    *("README.md", ".gitattributes", "tf_model.h5", "model.onnx", "rust_model.ot", "chat_template.jinja"),
    *("onnx/tokenizer.json", "model.fp16.safetensors", "training_args.bin", "optimizer.pt", "tokenizer.py"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of a model in the hub's layout."""
    folder = tmp_path_factory.mktemp("weights")
    save(folder, TINY, tiny_params())
    (folder / "generation_config.json").write_text('{"num_beams": 3}')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_the_model(loaded):
    held, expected = (params["model"]["shared"]["embedding"] for params in (loaded.params, tiny_params()))
    return np.array_equal(held, expected)


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


def sharded(weights, folder, names=("model-00001-of-00002.safetensors", "second.safetensors")):
    """The same model with its weights in two files and a list of them."""
    (folder / "whole.safetensors").write_bytes(weights["model.safetensors"])
    tensors = load_file(folder / "whole.safetensors")
    where = {tensor: names[number % 2] for number, tensor in enumerate(sorted(tensors))}
    out = without(weights, "model.safetensors")
    for part in names:
        save_file({tensor: tensors[tensor] for tensor in where if where[tensor] == part}, folder / part)
        out[part] = (folder / part).read_bytes()
    return out | {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": where}).encode()}


def test_what_a_model_needs_is_fetched_and_nothing_else(hub, weights):
    others = [*TOKENIZERS, *NOT_NEEDED, "pytorch_model.bin", "flax_model.msgpack"]
    hub.add("someone/model", weights | {name: name.encode() for name in others})
    loaded = load("someone/model")
    assert sorted(path.name for path in loaded.folder.iterdir()) == sorted([*weights, *TOKENIZERS])
    assert is_the_model(loaded) and loaded.generation["num_beams"] == 3 and not loaded.notes
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in hub.asked("GET", "/resolve/")}
    assert fetched == {*weights, *TOKENIZERS}


def test_other_weights_of_a_repository_are_told(hub, tmp_path):
    save(tmp_path / "out", TINY, tiny_params(), "flax")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    hub.add("someone/model", files | {"pytorch_model.bin": b"not fetched", "adapter_config.json": b"{}"})
    adapter, weights = load("someone/model").notes
    assert weights == (
        "warning: someone/model: flax_model.msgpack is read; transformers reads pytorch_model.bin, which may hold "
        "another model"
    )
    assert adapter.startswith("warning: someone/model: the adapter of peft beside the model is not applied")


@pytest.mark.parametrize("layout", ["hf", "flax", "released"])
def test_each_layout_is_fetched(layout, hub, tmp_path):
    if layout == "released":
        pytest.importorskip("torch")
    save(tmp_path / "out", TINY, tiny_params(), layout)
    hub.add("someone/model", {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert is_the_model(load("someone/model"))


def test_parts_are_those_that_the_list_names(hub, weights, tmp_path):
    unlisted = {"model-00009-of-00009.safetensors": b"another", "pytorch_model.bin.index.json": b"{}"}
    hub.add("someone/model", sharded(weights, tmp_path) | unlisted)
    folder = load("someone/model").folder
    assert not {path.name for path in folder.iterdir()} & {*unlisted}
    hub.faults["GET", "/"] = (503, "out of order")
    assert load("someone/model").folder == folder
    (folder / "second.safetensors").unlink()
    with pytest.raises(UserError, match=r"someone/model: .* \(503: out of order\); try again later, or give a local"):
        load("someone/model")


def test_a_list_that_names_files_elsewhere_is_refused(hub, weights):
    parts = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../other/secret"}}).encode()}
    hub.add("someone/model", without(weights, "model.safetensors") | parts)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json: names a file outside its folder"):
        load("someone/model")


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, weights):
    made = hub.add("someone/model", weights)
    first = made.branches["main"]
    made.commit("main", {"generation_config.json": b'{"num_beams": 7}'})
    made.commit("fast/one", weights | {"generation_config.json": b'{"num_beams": 1}'})
    beams = {name: load(f"someone/model{name}").generation["num_beams"] for name in ("", "@fast/one", f"@{first}")}
    assert beams == {"": 7, "@fast/one": 1, f"@{first}": 3}
    with pytest.raises(UserError, match=r"someone/model@no: .*\(it has no 'no'\); give a branch, tag or commit"):
        load("someone/model@no")


def test_without_network_what_was_fetched_serves(hub, weights, monkeypatch):
    """Though the repository has files that were not fetched."""
    hub.add("someone/model", weights | dict.fromkeys(NOT_NEEDED, b"x"))
    folder = load("someone/model").folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = f"someone/model: the hub could not be asked (offline mode); the copy in {folder} is used"
    loaded = load("someone/model")
    assert (loaded.folder, loaded.notes) == (folder, (told,))
    with pytest.raises(
        UserError, match=r"not to be had from the hub \(offline mode\); unset HF_HUB_OFFLINE, or give a"
    ):
        load("someone/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.close()
    close_session()
    assert load("someone/model").folder == folder
    with pytest.raises(UserError, match=r"\(.*refused.*\); check the network and HF_ENDPOINT, or give a local folder"):
        load("someone/other")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("someone/none", "no such repository there, or a private one); check the name and log in (hf auth login, or"),
        ("none", "no such repository there, or a private one); check the name"),
        ("someone/gated", "gated); accept its conditions on its page on the hub and log in"),
        (
            "someone/empty",
            "this repository on the hub holds no model that can be read; expected config.json and one of",
        ),
        ("someone/model@", "no such folder"),
        ("a/b/c", "no such folder"),
        ("someone/mo--del", "no such folder"),
    ],
)
def test_what_cannot_be_had_is_one_line(name, told, hub, weights, capsys):
    hub.add("someone/gated", weights, gated=True)
    hub.add("someone/empty", {"README.md": b"x", "tokenizer.json": b"{}"})
    assert summarize.main([f"--model={name}", __file__]) == 1
    error = one_line_error(capsys.readouterr().err)
    assert error.startswith(f"error: --model={name}: ") and told in error and TOKEN not in error


def test_a_private_model_needs_a_token_that_is_accepted(hub, weights, monkeypatch):
    hub.add("someone/model", weights, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        UserError, match=r"\(your token is not accepted: .*\); log in anew \(hf auth login\), or correct"
    ):
        load("someone/model")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"a private one\); check the name and log in \(hf auth login, or the variable"):
        load("someone/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert is_the_model(load("someone/model"))


def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(hub, weights, tmp_path):
    hub.add("someone/model", weights)
    with largest_file(4_096), pytest.raises(UserError) as caught:
        load("someone/model")
    assert "File too large); set HF_HOME to a folder on a disk with space" in str(caught.value)
    assert not list((tmp_path / "hub-cache").rglob("model.safetensors"))
    assert is_the_model(load("someone/model"))


def test_a_folder_comes_before_the_hub(hub, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.add("someone/model", weights)
    shutil.copytree(load("someone/model").folder, "someone/model")
    hub.requests.clear()
    assert str(load("someone/model").folder) == "someone/model" and not hub.requests
