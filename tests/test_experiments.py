"""Experiments: every ready one can be run, stopped ones resume, failures are named; one is run for real."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import CONFIGS, ROOT, as_flags, environment, one_line_error

from jax_simcas.experiments import __main__ as experiments
from jax_simcas.experiments import output, plan, runner, spec
from jax_simcas.experiments.plan import Plan
from jax_simcas.experiments.spec import Evaluation, Experiment, Variant, cells
from jax_simcas.experiments.table import TableRow
from jax_simcas.run.config import differences, from_config
from jax_simcas.run.config_file import load_module
from jax_simcas.run.config_file import read_config as read_file

READY = sorted(path.stem for path in (CONFIGS / "experiments").glob("*.py"))

EXPERIMENT = """
from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config as get_config

def get_experiment(config):
    variants = (Variant("good"), Variant("other", {"simcas.align": "none"}))
    return Experiment(variants, (Evaluation("own"), Evaluation("random", "random")), seeds=(0, 1))
"""
# In place of train and evaluate: counts its calls, takes its time, scores by seed and document.
STUB = """
import json, os, sys, time
from pathlib import Path

flags = dict(flag[2:].split("=", 1) for flag in sys.argv[2:])
folder = Path(flags["output" if sys.argv[1] == "evaluate" else "workdir"])
with (folder / "calls").open("a") as file:
    file.write("called\\n")
time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
if os.environ.get("STUB_FAILS", "nothing") in str(folder):
    sys.exit("error: the loss is not finite")
if sys.argv[1] == "evaluate":
    value = 10.0 * int(folder.parent.parent.name[-1])
    rows = [
        {"index": i, "scores": {"f1": value + i}, "kept": i, "candidates": 4, "evidence": None, "nll": [2.0, 1]}
        for i in range(3)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    (folder / "scores.json").write_text(json.dumps({"source": "made up"}))
"""
# The program with the stub in place of what it starts.
DRIVER = """
import sys
from jax_simcas.experiments import __main__ as experiments, plan

stub = sys.argv[1]
plan.Command.argv = property(lambda command: [sys.executable, stub, command.program, *command.flags])
sys.exit(experiments.main(sys.argv[2:]))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an experiment, whose commands are stubs."""
    for name, text in (("experiment.py", EXPERIMENT), ("stub.py", STUB), ("driver.py", DRIVER)):
        (tmp_path / name).write_text(text)
    argv = lambda command: [sys.executable, str(tmp_path / "stub.py"), command.program, *command.flags]
    monkeypatch.setattr(plan.Command, "argv", property(argv))
    return tmp_path


def main(here, *flags):
    return experiments.main([str(here / "experiment.py"), f"--workdir={here / 'runs'}", *flags])


def calls(here):
    return {
        path.parent.relative_to(here / "runs").as_posix(): path.read_text().count("called")
        for path in sorted((here / "runs").rglob("calls"))
    }


def table(here):
    return list(csv.DictReader((here / "runs" / "table.csv").read_text().splitlines()))


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("base", ["", "qmsum"])
def test_ready_experiments_are_grids_of_valid_settings(name, base, tmp_path):
    path = str(CONFIGS / "experiments" / f"{name}.py")
    module = load_module(Path(path))
    assert f"python -m jax_simcas.experiments configs/experiments/{name}.py" in module.__doc__
    assert "Other data: --base=" in module.__doc__
    config = read_file(str(CONFIGS / f"{base}.py")) if base else module.get_config()
    experiment = module.get_experiment(config)
    commands = Plan(path, config, tmp_path).commands(experiment)
    runs = len(experiment.variants) * len(experiment.seeds)
    assert len(commands) == runs * (1 + len(experiment.evaluations)) and len(
        {command.folder for command in commands}
    ) == len(commands)
    trained = [command.request for command in commands if command.program == "train"]
    assert len({json.dumps(request, sort_keys=True) for request in trained}) == runs  # no two are the same
    assert {request["loop.seed"] for request in trained} == {0, 1, 2}
    labels = [cell.label for cell in spec.cells(experiment)]
    assert len(set(labels)) == len(labels)
    assert bool(experiment.axis) == any(cell.x is not None for cell in spec.cells(experiment))


def test_these_experiments_are_ready():
    expected = "ablation alignment boundaries chunk_length chunk_position chunking evidence length low_resource policy"
    assert [*expected.split(), "table"] == READY


def test_flags_say_what_overrides_mean():
    config = read_file(str(CONFIGS / "qmsum.py"))
    overrides = {"simcas.capacity": 7, "data.chunk_buckets": (3, 9), "loop.epochs": 2, "simcas.align": "none"}
    changed = plan.settings_with(config, plan.as_flags(overrides))
    assert differences(from_config(config), changed) == [
        "simcas.align: 'mean' -> 'none'",
        "simcas.capacity: 2048 -> 7",
        "data.chunk_buckets: (16, 32) -> (3, 9)",
        "loop.epochs: 0 -> 2",
    ]
    flat = plan.flatten(changed)
    assert flat["simcas.capacity"] == 7 and flat["data.chunk_buckets"] == [3, 9] and flat["optimizer.ppo.epochs"] == 2


def test_a_grid_is_run_once_and_becomes_a_table(here, capsys):
    assert main(here) == 0
    out = capsys.readouterr()
    assert "[12/12] other, seed 1: evaluation random, about 0:00 left" in out.err
    assert len(calls(here)) == 12 and set(calls(here).values()) == {1}
    assert main(here) == 0
    assert set(calls(here).values()) == {1}
    # f1 is 10 x seed + document: 1 and 11.
    assert "6.0 ± 7.1" in capsys.readouterr().out
    rows = table(here)
    labels = ["good, own", "good, random", "other, own", "other, random"]
    assert [row["run"] for row in rows if row["measure"] == "f1"] == labels
    assert {row["mean"] for row in rows if row["measure"] == "kept %"} == {"25"}
    assert {row["difference"] for row in rows if row["run"] == "other, own"} == {"0"}
    assert (here / "runs" / "table.md").read_text().startswith("# experiment\n")
    assert (here / "runs" / "plot.png").stat().st_size > 1000


def test_a_command_that_fails_is_named_and_the_others_run(here, capsys, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "good/seed-1")
    assert main(here) == 1
    err = capsys.readouterr().err
    assert "error: good, seed 1: training: the loss is not finite\n" in err
    assert err.count("skipped, the training that it needs failed") == 2 and "Traceback" not in err
    assert len(calls(here)) == 10
    text = (here / "runs" / "table.md").read_text()
    assert "- good, seed 1: training\n" in text and "- good, seed 0" not in text
    monkeypatch.delenv("STUB_FAILS")
    assert main(here) == 0
    assert calls(here).pop("good/seed-1") == 2 and sum(calls(here).values()) == 13
    assert "Not in the table" not in (here / "runs" / "table.md").read_text()


def test_training_can_start_from_another_variant(here, capsys, monkeypatch):
    text = EXPERIMENT.replace('"none"}', '"none"}, start="good"')
    (here / "experiment.py").write_text(text)
    monkeypatch.setenv("STUB_FAILS", "good/seed-1")
    assert main(here) == 1
    assert "error: other, seed 1: training: skipped, the training that it needs failed\n" in capsys.readouterr().err
    assert main(here, "--dry-run", "--only=other") == 0
    out = capsys.readouterr().out
    assert "good, seed" not in out and out.count(f"--config.pretrained={here / 'runs' / 'good' / 'seed-1'}\n") == 1
    monkeypatch.delenv("STUB_FAILS")
    assert main(here, "--only=other") == 1
    assert "other, seed 1: training: skipped, the training that it needs has not finished" in capsys.readouterr().err
    assert main(here) == 0 and sum(calls(here).values()) == 13
    (here / "experiment.py").write_text(text.replace('start="good"', 'start="later"'))
    assert main(here) == 1
    assert "variant 'other': start='later', expected one of ['good']" in one_line_error(capsys.readouterr().err)


def test_other_settings_in_an_old_folder_are_refused(here, capsys):
    assert main(here, "--only=good", "--seeds=0") == 0
    capsys.readouterr()
    before = calls(here)
    assert main(here, "--config.optimizer.max_lr=0.5") == 1
    assert "good/seed-0 holds other settings (optimizer.max_lr: 0.021 -> 0.5)" in one_line_error(
        capsys.readouterr().err
    )
    assert main(here, "--limit=2") == 1
    assert "holds other settings (limit: '' -> 2)" in one_line_error(capsys.readouterr().err)
    assert calls(here) == before
    assert main(here, "--only=good", "--seeds=0", "--config.data.data_dir=elsewhere") == 0  # where things lie is free
    assert "some of this was done with config.data.data_dir=" in capsys.readouterr().err
    assert calls(here) == before


def test_only_some_seeds_and_variants(here, capsys):
    assert main(here, "--only=other", "--seeds=1") == 0
    assert list(calls(here)) == ["other/seed-1", "other/seed-1/evaluation/own", "other/seed-1/evaluation/random"]
    assert main(here, "--dry-run", "--seeds=1") == 0
    out = capsys.readouterr().out
    assert "to do good, seed 1: training\n" in out and "done  other, seed 1: training\n" in out
    assert "--config.simcas.align=none --config.loop.seed=1" in out and "--policy=random" in out
    assert main(here, "--table") == 0
    assert "- good, seed 0: training" in capsys.readouterr().out and len(calls(here)) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=best"], "--only=best: the variants are good, other"),
        (["--config.loop.stepz=3"], "--config.loop.stepz: no such field"),
        (["--config.loop.steps.more=3"], "--config.loop.steps.more: no such field"),
        (["--config.loop.steps=many"], "many"),
        (["--config.simcas.align=median"], "variant 'good': config.simcas.align='median'"),
        (["--config.simcas.chunk_length=128"], "variant 'good': config.simcas.chunk_length=128 exceeds"),
        (["--base=configs/nothing.py"], "--base=configs/nothing.py: no such file"),
        (["--workdir=/proc/nowhere"], "--workdir=/proc/nowhere: cannot be written"),
    ],
)
def test_flags_that_cannot_be_used_are_named(here, capsys, flags, message):
    assert main(here, *flags) == 1
    assert message in one_line_error(capsys.readouterr().err)


def test_seeds_come_once(here, capsys):
    for flag in ("--seeds=0,0", "--seeds=1,-1", "--seeds="):
        with pytest.raises(SystemExit) as stopped:
            main(here, flag)
        assert stopped.value.code == 2 and "--seeds: " in one_line_error(capsys.readouterr().err)


def test_a_table_of_nothing_is_no_table(here, capsys):
    assert main(here, "--table") == 1
    assert f"--table: no evaluation of this experiment has finished in {here}/runs;" in one_line_error(
        capsys.readouterr().err
    )
    assert not (here / "runs").exists()


@pytest.mark.parametrize("flags", [["--dry-run"], ["--table"], []])
def test_a_file_is_no_workdir(here, flags, capsys):
    (here / "runs").write_text("")
    assert main(here, *flags) == 1
    assert one_line_error(capsys.readouterr().err) == f"error: --workdir={here}/runs: a file; give a folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("def get_config(:", "experiment.py:1: invalid syntax"),
        ("from jax_simcas.run.presets import embedded_config as get_config", "get_experiment"),
    ],
)
def test_an_experiment_that_cannot_be_read_is_one_line(tmp_path, capsys, text, message):
    (tmp_path / "experiment.py").write_text(text)
    assert main(tmp_path) == 1
    assert message in one_line_error(capsys.readouterr().err)


def test_a_damaged_folder_says_what_to_do(here, capsys):
    assert main(here, "--only=good", "--seeds=0") == 0
    (here / "runs" / "good" / "seed-0" / "evaluation" / "own" / "predictions.jsonl").write_text("{")
    assert main(here, "--table") == 1
    error = one_line_error(capsys.readouterr().err)
    assert "own/predictions.jsonl:1: not JSON" in error and "own, which is then run again" in error
    (here / "runs" / "good" / "seed-0" / "step.json").write_text("{")
    assert main(here, "--table") == 1
    assert "remove" in one_line_error(capsys.readouterr().err)


def test_the_time_left_is_shown_once_every_kind_has_run():
    programs = ["train", "evaluate"] * 3
    assert runner.time_left(programs, [None] * 6, 0) == ""
    assert runner.time_left(programs, [10.0, *[None] * 5], 1) == ""
    assert runner.time_left(programs, [10.0, 2.0, 20.0, None, None, 4.0], 3) == ", about 0:18 left"


def start(here):
    env = environment(STUB_SECONDS=60)
    command = [sys.executable, str(here / "driver.py"), str(here / "stub.py"), str(here / "experiment.py")]
    child = subprocess.Popen([*command, f"--workdir={here / 'runs'}"], env=env, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 100
    while not calls(here):
        assert child.poll() is None and time.monotonic() < end, child.stderr.read()
        time.sleep(0.01)
    return child


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_experiment_resumes(here, how):
    with start(here) as child:
        child.send_signal(how)
        err = child.stderr.read() if how == signal.SIGTERM else ""
    assert child.returncode == (75 if how == signal.SIGTERM else -how)
    assert err.count("stopped by SIGTERM; the same command resumes") == (how == signal.SIGTERM)
    state = json.loads((here / "runs" / "good" / "seed-0" / "step.json").read_text())
    assert state["seconds"] is None
    if how == signal.SIGKILL:
        os.kill(orphan(here), signal.SIGKILL)
    assert main(here) == 0  # waits for the folder as long as anybody is at work there
    assert calls(here).pop("good/seed-0") == 2 and sum(calls(here).values()) == 13


def orphan(here):
    """The child process that outlived its parent."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(here / "stub.py") in path.read_text():
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError("the child ended with its parent")


@pytest.mark.slow
def test_a_small_experiment_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_SIMCAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    flags = [*as_flags({"data.validation_split": "validation"}), "--split=test", "--limit=5"]
    assert main(tmp_path, *flags) == 0
    rows = table(tmp_path)
    assert {row["run"] for row in rows} == {"good, own", "good, random", "other, own", "other, random"}
    scores = {"exact_match", "f1", "authors/exact_match", "authors/f1"}
    evidence = {f"evidence {name} %" for name in ("recall", "precision", "attended")} | {"others kept %"}
    measures = scores | evidence | {"times as likely", "nll", "kept %"}
    assert {row["measure"] for row in rows} == measures
    assert {row["seeds"] for row in rows} == {"2"}
    kept = {row["run"]: row["by_seed"] for row in rows if row["measure"] == "kept %"}
    assert kept["good, own"] == kept["good, random"]  # an equal budget
    scores = tmp_path / "runs" / "good" / "seed-1" / "evaluation" / "own" / "scores.json"
    mean = json.loads(scores.read_text())["nll"]["mean"]
    (by_seed,) = (row["by_seed"] for row in rows if row["run"] == "good, own" and row["measure"] == "nll")
    assert float(by_seed.split("1=")[1]) == pytest.approx(mean, rel=1e-4)
    begun = time.monotonic()
    assert main(tmp_path, *flags) == 0 and time.monotonic() - begun < 10


def test_evaluations_at_the_same_place_of_a_plot_do_not_hide_one_another(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(output.plots, "plot_lines", lambda panels, *rest: drawn.update(panels))
    evaluations = (
        Evaluation("", x=None),
        Evaluation("random", policy="random"),
        Evaluation("longer", overrides={"simcas.max_input_len": 9}),
    )
    variants = tuple(Variant(f"{count} rows", x=count, line="SimCAS") for count in (10, 100))
    rows = [
        TableRow(cell, "", None, {"nll": SimpleNamespace(score=(cell.variant.x, cell.evaluation.name))})
        for cell in cells(Experiment(variants, evaluations))
    ]
    output.draw("title", rows, "rows", tmp_path / "plot.png")
    assert drawn == {
        "nll": {
            "SimCAS": {10: (10, ""), 100: (100, "")},
            "SimCAS, random": {10: (10, "random"), 100: (100, "random")},
            "SimCAS, longer": {10: (10, "longer"), 100: (100, "longer")},
        }
    }
