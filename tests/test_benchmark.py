"""The benchmark: every stage runs, exponents are right, and bad flags are named."""

import json
import math
import sys

import jax
import numpy as np
import pytest
from helpers import slow_but

from jax_simcas.benchmark import __main__ as benchmark
from jax_simcas.benchmark import checkpoint, growth, save_times, summarize_speed, timing
from jax_simcas.benchmark import input as input_side
from jax_simcas.benchmark.stages import SIDES, STAGES, TRAINING_STAGES, Task, compiled, prepare_task

# The types of transformers of which tiny_models.py has sizes.
KINDS = (
    *("bart", "mbart", "pegasus", "plbart", "mvp", "marian", "m2m_100", "blenderbot", "led"),
    *("t5", "flan-t5", "mt5", "umt5", "t5gemma", "t5gemma2"),
)


def small(stage, size="tiny", **changes):
    return Task(stage, size=size, length=128, chunk_length=32, target=8, selected=16, **changes)


@pytest.mark.parametrize("dtype", slow_but(["float32", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_traces(stage, dtype):
    run, arguments = prepare_task(small(stage, dtype=dtype))
    assert jax.tree.leaves(jax.eval_shape(run, *arguments))


@pytest.mark.parametrize("stage", ["reward", "transformer", "selector", "summarize"])
def test_stages_trace_for_other_families(stage):
    run, arguments = prepare_task(small(stage, "tiny-t5"))
    assert jax.tree.leaves(jax.eval_shape(run, *arguments))


def test_the_document_has_the_length_that_was_asked_for():
    _, (_, document) = prepare_task(small("encode"))
    assert document.input_ids.shape == (4, 32) and document.token_mask.all() and document.chunk_mask.all()


@pytest.mark.parametrize("stage", TRAINING_STAGES)
def test_training_stages_continue_from_their_own_state(stage):
    run, seconds = compiled(small(stage))
    assert seconds > 0
    changed = "selector" if stage == "selector" else "model"
    first, second = (jax.device_get(run()[0].params[changed]) for _ in range(2))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


@pytest.mark.slow
def test_checkpoints_are_timed(tmp_path, capsys):
    rows = save_times.time_saves(small("transformer"), tmp_path, repeats=1)
    assert [row["saving"] for row in rows] == ["beside training", "training waits"]
    for row in rows:
        assert 0 < row["stall"] <= row["on disk after"] and row["cost"] < 60 and row["state MB"] > 1
    assert checkpoint.main([f"--folder={tmp_path}", "--size=tiny"]) == 1
    assert "not empty; give a new one" in capsys.readouterr().err


def test_the_input_pipeline_is_measured_and_reuses_its_folder(tmp_path, capsys):
    flags = [
        f"--folder={tmp_path}",
        "--rows=48",
        "--tokens=200,900",
        "--sample=16",
        "--workers=0",
        "--chunk-length=128",
    ]
    tables = []
    for _ in range(2):
        assert input_side.main([*flags, "--consumed=10"]) == 0
        out = capsys.readouterr().out
        lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
        tables.append([dict(zip(map(str.strip, lines[0]), map(str.strip, line), strict=True)) for line in lines[2:]])
    assert "cache: " not in out  # it was there
    assert [row["input"] for row in tables[0]] == ["tokenising", "cache", "cache, sorted"]
    assert [row["rows"] for row in tables[0]] == ["16", "48", "48"]
    for first, second in zip(*tables, strict=True):
        assert first["tokens"] == second["tokens"]
        assert float(first["tokens/s"]) > 0
        assert float(first["times the training"]) == pytest.approx(float(first["tokens/s"]) / 10, abs=1)
    tokens, whole, by_length = (int(row["tokens"]) / int(row["rows"]) for row in tables[0])
    assert all(300 < count < 800 for count in (tokens, whole, by_length))
    assert int(tables[0][2]["padding %"]) < int(tables[0][1]["padding %"])
    assert input_side.main([*flags, "--tokens=9,3"]) == 2
    assert "--tokens=9,3" in capsys.readouterr().err


@pytest.mark.slow
def test_summaries_alone_and_in_batches_are_measured(capsys):
    flags = ["--size=tiny", "--documents=4", "--tokens=20,40", "--part=4", "--chunk-length=64", "--max-length=4"]
    assert summarize_speed.main(flags) == 0
    out = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    rows = {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in lines[2:]}
    assert set(rows) == {"in batches", "one by one"} and all(speed > 0 for row in rows.values() for speed in row[:2])
    ratio = rows["in batches"][1] / rows["one by one"][1]
    assert float(out.split("in batches ")[-1].split()[0]) == pytest.approx(ratio, rel=0.05)
    assert summarize_speed.main(["--tokens=9,3"]) == 2
    assert "--tokens=9,3" in capsys.readouterr().err


def test_half_of_the_tokens_are_selected_and_fit():
    run, _ = compiled(small("transformer"))
    _, metrics = run()
    kept, of = metrics["selection/kept"]
    assert kept == of // 2 == 62  # of 4 x 31
    assert metrics["selection/overflow"][0] == 0


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents(power):
    lengths = [1, 10, 100]
    assert growth.exponent(lengths, [3 * n**power for n in lengths]) == pytest.approx(power)
    assert math.isnan(growth.exponent([5], [1.0]))


@pytest.mark.slow
def test_a_run_measures_prints_and_draws(tmp_path, capfd):
    pytest.importorskip("torch")
    flags = ["--stages=encode", "--size=tiny", "--lengths=1024,4096", "--repeats=2", f"--output={tmp_path}"]
    flags += ["--sides=jax,torch"]
    assert benchmark.main(flags) == 0
    out = capfd.readouterr().out
    assert "| encode |   jax | float32 |" in out and "| encode | torch | float32 |" in out and "exponent of time" in out
    results = json.loads((tmp_path / "benchmark.json").read_text())["results"]
    assert [r["length"] for r in results] == [1024, 4096] * 2
    assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 and r["peak_bytes"] > 1e8 for r in results)
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        ("--lengths=100", 2, "length=100: expected at least one chunk of 512 tokens"),
        ("--output=/proc/nowhere", 1, "cannot be written"),
        ("--chunk-length=2048", 2, "--chunk-length=2048: base has positions for 1024 tokens"),
        ("--target=2000", 2, "--target=2000: base has positions for 1024 tokens"),
    ],
)
def test_bad_flags_are_named(flag, code, message, capsys):
    assert benchmark.main([flag]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--stages=sleep", "--stages: 'sleep': expected some of encode"),
        ("--sides=tensorflow", "--sides: 'tensorflow': expected some of jax, torch, "),
        ("--dtypes=float16", "--dtypes: 'float16': expected some of float32"),
        ("--model=t6", "--model/--size: 't6': expected some of base, large, tiny, tiny-t5, bart-base, "),
        ("--lengths=many", "--lengths: 'many': expected a whole number"),
    ],
)
def test_wrong_flags_are_named(flag, message, capsys):
    with pytest.raises(SystemExit) as exit:
        benchmark.main([flag])
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # transformers' own about generation settings
@pytest.mark.parametrize("stage", slow_but(SIDES["torch"], "transformer"))
def test_the_peers_stages_run(stage):
    torch = pytest.importorskip("torch")
    from jax_simcas.benchmark.torch_peer_stages import prepared

    for size in ("tiny", "tiny-t5"):
        out = prepared(small(stage, size, side="torch"))()
        assert torch.isfinite(out.states if stage == "select" else out).all()


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("kind", slow_but(KINDS, "bart", "t5gemma2"))
def test_both_sides_encode_the_same_with_the_same_weights(kind, tmp_path):
    """Of every family, by its config.json."""
    pytest.importorskip("torch")
    from tiny_models import save_config

    from jax_simcas.benchmark.torch_peer_stages import prepared

    size = str(save_config(kind, tmp_path))
    ours, _ = compiled(small("encode", size))
    theirs = prepared(small("encode", size, side="torch"))
    np.testing.assert_allclose(ours(), theirs(), atol=1e-4, rtol=1e-4)


def test_without_pytorch_the_peer_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing.importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["--sides=jax,torch", f"--output={tmp_path / 'out'}"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: --sides=torch: needs PyTorch; pip install 'jax_simcas[torch]'\n"
    assert captured.out == "" and not (tmp_path / "out").exists()


def test_a_stage_that_the_peer_lacks_is_named():
    with pytest.raises(ValueError, match="side torch has encode"):
        small("summarize", side="torch")


# The least that a clone of the authors' code has to offer, in their names.
CLONE = {
    "label_smoothing_loss.py": """
from torch import nn
class label_smoothing_loss(nn.Module):
    def __init__(self, ignore_index, epsilon):
        super().__init__()
    def forward(self, scores, gold):
        return nn.functional.cross_entropy(scores, gold)
""",
    "modeling_bart_ours.py": """
import torch
from torch import nn
class Agent(nn.Module):
    def get_action_and_value(self, states, background, action=None):
        return action, None, None, None
class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed, self.agent = nn.Embedding(config.vocab_size, config.d_model), Agent()
    def forward(self, input_ids, attention_mask=None, return_dict=None):
        hidden = self.embed(input_ids)
        actions = [self.agent.get_action_and_value(hidden[:, k, 1:], None)[0] for k in range(hidden.shape[1])]
        assert sum(int(action.sum()) for action in actions) == 62  # half of 4 x 31
        return hidden
class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
class BartSimCAS(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model, self.head = Inner(config), nn.Linear(config.d_model, config.vocab_size)
""",
    "model.py": """
from torch import nn
class SimCAS(nn.Module):
    def forward(self, ids, target):
        return {"probs": self.model.head(self.model.model.encoder(ids).mean((1, 2))).expand(1, target.shape[1], -1)}
    def generate(self, encoder_outputs, **options):
        assert options["num_beams"] == 4
        return encoder_outputs[0]
""",
}


@pytest.mark.parametrize("stage", slow_but(SIDES["released"], "encode"))
def test_the_released_codes_stages_are_driven_through_its_own_names(stage, tmp_path):
    pytest.importorskip("torch")
    for name, text in CLONE.items():
        (tmp_path / name).write_text(text)
    worker = timing.Worker(
        small(stage, side="released"), timing.Others(released=timing.Released(tmp_path, sys.executable))
    )
    try:
        assert worker.read()["peak_bytes"] > 1e8
        assert worker.run() > 0
    finally:
        worker.close()


def test_the_released_code_is_skipped_where_absent(tmp_path, capfd):
    clone = tmp_path / "clone"
    clone.mkdir()
    run = lambda *flags: benchmark.main(["--sides=released", f"--output={tmp_path}/out", *flags])
    assert run() == 1 and "give --released PATH" in capfd.readouterr().err
    assert run(f"--released={clone}") == 1 and "is no clone of xjw-nlp/SimCAS" in capfd.readouterr().err
    (clone / "modeling_bart_ours.py").touch()
    assert run(f"--released={clone}", "--released-python=/nowhere/python") == 1
    assert "--released-python=/nowhere/python: No such file" in capfd.readouterr().err
    assert run(f"--released={clone}") == 1 and "lacks torch or transformers 4" in capfd.readouterr().err


def test_a_model_that_the_released_code_lacks_is_named(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(timing.Released, "problem", lambda self: None)
    flags = ["--model=tiny-t5", "--sides=released", f"--released={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert benchmark.main(flags) == 1
    error = capfd.readouterr().err
    assert "skipped: side released for tiny-t5: it is t5, and the released code BART\nerror: nothing is left" in error
    with pytest.raises(ValueError, match="side released is bart"):
        small("encode", "tiny-t5", side="released")


def test_a_folder_that_is_no_model_is_one_line(tmp_path, capfd):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert benchmark.main([f"--model={tmp_path}", f"--output={tmp_path / 'out'}"]) == 1
    assert f"error: {tmp_path}/config.json: model_type is 'gpt2', expected one of " in capfd.readouterr().err


def python_of(path, command):
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_the_peer_can_run_in_another_python(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)  # from where this package is not found
    other = python_of(tmp_path / "python", f'echo "$@" >> {tmp_path}/calls; exec {sys.executable} "$@"')
    timing.check_torch(["torch"], other)
    worker = timing.Worker(small("encode", side="torch"), timing.Others(torch_python=other))
    try:
        assert worker.read()["peak_bytes"] > 0 and worker.run() > 0
    finally:
        worker.close()
    assert "jax_simcas.benchmark.worker" in (tmp_path / "calls").read_text().splitlines()[1]
    assert timing.worker_argv(small("encode"), timing.Others(torch_python=other))[0] == sys.executable


def test_a_python_without_torch_is_one_line(tmp_path, capfd):
    flags = ["--sides=jax,torch", f"--output={tmp_path / 'out'}"]
    assert benchmark.main([*flags, "--torch-python=/nowhere/python"]) == 1
    assert "error: --torch-python=/nowhere/python: No such file" in capfd.readouterr().err
    bare = python_of(tmp_path / "python", "echo 'No module named torch' >&2; exit 1")
    assert benchmark.main([*flags, f"--torch-python={bare}"]) == 1
    assert f"{bare}: lacks PyTorch or what jax_simcas needs (No module named torch)" in capfd.readouterr().err


def test_stages_that_a_side_lacks_are_named(tmp_path, capfd):
    pytest.importorskip("torch")
    assert benchmark.main(["--sides=torch", "--stages=summarize", f"--output={tmp_path}"]) == 1
    assert "skipped: side torch has no stage summarize" in capfd.readouterr().err
