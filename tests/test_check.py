"""Checkpoints made by transformers here are held against transformers, and wrong ones are noticed."""

import json
import shutil

import pytest
from helpers import one_line_error
from safetensors.numpy import load_file, save_file

from jax_simcas import check

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tiny_models import DEEP, TYPES, Folders  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def bart(folders, tmp_path):
    """To be changed."""
    return shutil.copytree(folders["bart"], tmp_path / "model")


def checked(capsys, *arguments):
    """(exit code, output, errors) of the program."""
    code = check.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def failures(path):
    return [row["quantity"] for row in json.loads(path.read_text())["checks"] if not row["holds"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_a_model_does_here_what_it_does_in_transformers(kind, folders, tmp_path, capsys):
    code, out, err = checked(capsys, folders[kind], "--long", f"--json={tmp_path / 'check.json'}")
    assert code == 0, out + err
    figures = json.loads((tmp_path / "check.json").read_text())
    assert figures["holds"] and figures["model_type"] == TYPES[kind].get("model_type", kind)
    cases = {row["case"]: [] for row in figures["checks"]}
    for row in figures["checks"]:
        cases[row["case"]].append(row["quantity"])
    read = ["encoder states", "logits", "loss", "greedy tokens", "beam tokens"]
    assert cases == {
        "one chunk": ["tokens of the texts", *read],
        "several chunks, mean": read,
        "several chunks, shift": read,
    }
    assert out.strip().splitlines()[-1].endswith("does here what it does in transformers: all 16 comparisons hold")
    assert "guessing has 5.7" in err  # random weights predict nothing


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEEP)
def test_so_does_a_model_of_as_many_layers_as_are_published(kind, folders, capsys):
    code, out, err = checked(capsys, folders[kind])
    assert code == 0, out + err


@pytest.mark.slow
def test_weights_in_bfloat16_are_compared_in_float32(folders, tmp_path, capsys):
    """The type of T5Gemma 2's encoder is in the config of its text part, and counts whatever is asked for."""
    folder = tmp_path / "model"
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folders["t5gemma2"], dtype=torch.bfloat16)
    shutil.copytree(folders["t5gemma2"], folder)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["encoder"]["text_config"]["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    code, out, err = checked(capsys, folder)
    assert code == 0, out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "relu"},
        {"scale_embedding": True},
    ],
)
def test_another_activation_or_scale_is_noticed(fields, folders, bart, tmp_path, capsys):
    change(bart, **fields)
    figures = tmp_path / "check.json"
    code, out, _ = checked(capsys, bart, f"--reference={folders['bart']}", f"--json={figures}")
    assert code == 1
    assert {"encoder states", "logits"} <= set(failures(figures))
    assert "does NOT do here what" in out.splitlines()[-1]


def test_other_tokens_and_other_generation_settings_are_noticed(folders, bart, tmp_path, capsys):
    made = json.loads((bart / "tokenizer.json").read_text())
    made["post_processor"]["single"].pop(0)  # no <s>
    (bart / "tokenizer.json").write_text(json.dumps(made))
    path = bart / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 9}))
    figures = tmp_path / "check.json"
    assert checked(capsys, bart, f"--reference={folders['bart']}", f"--json={figures}")[0] == 1
    assert failures(figures) == ["tokens of the texts", "greedy tokens", "beam tokens"]


def test_texts_of_the_users_own_are_read(folders, tmp_path, capsys):
    short, long = tmp_path / "a.txt", tmp_path / "b.txt"
    short.write_text("Une phrase, c'est tout.")
    long.write_text("A text of more than one chunk. " * 6)
    code, out, _ = checked(capsys, folders["bart"], "--long", "--max-length=7", "--text", short, long)
    assert code == 0 and "all 16 comparisons hold" in out
    code, _, err = checked(capsys, folders["bart"], "--long", "--text", short)
    assert code == 1 and "no text of --text has more than 62 tokens" in one_line_error(err)


def without_a_norm(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.encoder.layers.1.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: not found"),
        (lambda f: change(f, model_type="gpt2"), "config.json: model_type is 'gpt2'"),
        (without_a_norm, "missing model/encoder/layers/1/final_layer_norm/scale"),
        (lambda f: (f / "tokenizer.json").unlink(), "expected tokenizer.json"),
        (lambda f: (f / "checkpoints").mkdir(), "a workdir, which transformers cannot read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"{"), "model.safetensors: not a readable safetensors file"),
    ],
)
def test_what_is_wrong_is_one_line(damage, message, bart, capsys):
    damage(bart)
    code, out, err = checked(capsys, bart)
    assert code == 1 and out == "" and message in one_line_error(err)


def test_what_transformers_cannot_read_needs_a_reference(folders, bart, tmp_path, capsys):
    from jax_simcas import convert

    target = tmp_path / "flax"
    assert convert.main([str(bart), str(target), "--to=flax"]) == 0
    capsys.readouterr()
    code, _, err = checked(capsys, target)
    assert code == 1 and "give the model that it was made of as --reference" in one_line_error(err)
    code, out, _ = checked(capsys, target, f"--reference={folders['bart']}")
    assert code == 0 and f"what {folders['bart']} does in transformers" in out


def test_the_reference_has_to_be_whole(folders, bart, capsys):
    without_a_norm(bart)
    code, _, err = checked(capsys, folders["bart"], f"--reference={bart}")
    assert code == 1
    assert "transformers finds no model.encoder.layers.1.final_layer_norm.weight" in one_line_error(err)


def test_without_pytorch_there_is_a_line_that_tells_what_to_install(monkeypatch, folders, capsys):
    from jax_simcas.run import check_model

    monkeypatch.setattr(check_model.importlib.util, "find_spec", lambda name: None)
    code, out, err = checked(capsys, folders["bart"])
    assert (code, out) == (1, "")
    assert err == "error: jax_simcas.check needs PyTorch; pip install 'jax_simcas[torch]'\n"
