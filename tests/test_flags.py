"""Flags that programs cannot use are named in one line; help ends in examples."""

import importlib
import subprocess
import sys

import pytest
from helpers import ROOT, environment, one_line_error

import jax_simcas
from jax_simcas import compare, convert, evaluate, summarize, train
from jax_simcas.__main__ import PROGRAMS
from jax_simcas.__main__ import main as simcas
from jax_simcas.backbones.ops.stacks import REMAT
from jax_simcas.benchmark import __main__ as benchmark
from jax_simcas.benchmark import stages
from jax_simcas.checkpoints import hub
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.compile_check import __main__ as compile_check
from jax_simcas.compile_check import programs
from jax_simcas.run.config import default_config, from_config
from jax_simcas.run.config_file import override, read_config


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (evaluate, ["--workdir=nowhere"], "no config.json there"),
        (evaluate, ["--workdir={}", "--split=dev"], "split 'dev': the synthetic task has"),
        (evaluate, ["--workdir={}", "--step=99"], "99"),
        (evaluate, ["--workdir={}", "--output=/dev/null/x"], "--output=/dev/null/x: cannot be written"),
        (evaluate, ["--workdir={}", "--min-length=9"], "--min-length=9 exceeds max_length"),
        (summarize, ["--model=nowhere/at/all", __file__], "no such folder"),
        (summarize, ["--model={}", "--query=Why?", "x"], "was trained without queries"),
        (summarize, ["--model={}", "--policy=topk", "x"], "budget"),
        (compare, ["a"], "expected NAME=FOLDER"),
        (compare, ["a=nowhere"], "run jax_simcas.evaluate first"),
        (evaluate, ["--workdir={}", "--bertscore=nowhere/at/all"], "--bertscore=nowhere/at/all: cannot be loaded ("),
    ],
)
def test_flags_that_cannot_be_used_are_named(tool, arguments, message, workdir, cache, capsys):
    assert tool.main([argument.format(workdir) for argument in arguments]) == 1
    assert message in one_line_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (train, ["--config=embedded"], "required: --workdir"),
        (train, ["--workdir=x"], "required: --config"),
        (evaluate, ["--workdir=x", "--step=first"], "--step: 'first': expected best, latest or a number"),
        (evaluate, ["--workdir=x", "--limit=0"], "--limit: '0': expected a whole number from 1 to 2147483647"),
        (evaluate, ["--workdir=x", "--conflig.data.batch_size=2"], "unrecognized arguments: --conflig"),
        (evaluate, ["--workdir=x", "--plot=x.png"], "--measures and --plot go with --compare"),
        (summarize, ["--model=x", "--length-penalty=nan"], "--length-penalty: 'nan': expected a number"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(tool, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main(arguments)
    assert exit.value.code == 2 and message in one_line_error(capsys.readouterr().err)


@pytest.mark.parametrize("tool", [train, evaluate, summarize, compare])
def test_help_has_examples(tool, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main(["--help"])
    assert exit.value.code == 0 and "examples:\n  python -m jax_simcas." in capsys.readouterr().out


def test_choices_of_flags_are_those_of_the_tables():
    """Parsers hold them as words, so that --help needs no jax."""
    assert set(convert.LAYOUTS) == set(hub.LAYOUTS)
    assert set(compile_check.STAGES) == set(programs.STAGES)
    assert (tuple(stages.STAGES), tuple(stages.SIDES)) == (benchmark.STAGES, benchmark.SIDES)
    assert tuple(stages.SIZES) == benchmark.SIZES
    assert (tuple(REMAT), stages.REMAT) == (benchmark.REMATS, benchmark.REMAT)


@pytest.mark.parametrize("name", PROGRAMS)
def test_version_and_help_of_every_program(name, capsys):
    for flag, shown in (("--version", f"jax_simcas {jax_simcas.__version__}\n"), ("--help", "exit codes: 0 ")):
        with pytest.raises(SystemExit) as exit:
            simcas([name, flag])
        assert exit.value.code == 0 and shown in capsys.readouterr().out


def test_help_comes_without_jax_and_a_missing_package_is_one_line(tmp_path):
    for name in ("jax", "ml_collections", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('none', name='{name}')")
    env = environment(PYTHONPATH=f"{tmp_path}:{ROOT}")
    run = lambda *flags: subprocess.run(
        [sys.executable, "-m", "jax_simcas.train", *flags], env=env, capture_output=True, text=True
    )
    assert run("--help").returncode == 0
    done = run("--config=embedded", "--workdir=run")
    assert done.returncode == 1 and "package 'jax' is not installed" in one_line_error(done.stderr)


def test_simcas_lists_its_programs_and_refuses_others(capsys):
    assert simcas(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in PROGRAMS)
    assert simcas(["frob"]) == 2 and "simcas frob: expected one of train" in one_line_error(capsys.readouterr().err)


def test_configs_are_found_by_name_and_mistakes_name_the_file_and_line(tmp_path, monkeypatch):
    assert from_config(read_config("embedded")) == from_config(read_config(str(ROOT / "configs" / "embedded.py")))
    monkeypatch.chdir(tmp_path)
    for name, text, message in (
        ("configs/embedded.py", None, "no such file; the one that comes with jax_simcas is --config=embedded"),
        ("embeded", None, "no config of this name; there are arxiv, "),
        ("syntax.py", "def get_config(:\n", "syntax.py:1: invalid syntax"),
        ("none.py", "x = 1\n", "none.py: no function get_config()"),
        ("returns.py", "def get_config():\n    pass\n", "returns.py: get_config() returned NoneType"),
        ("raises.py", "def get_config():\n    return 1 / 0\n", "raises.py:2: ZeroDivisionError"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as error:
            read_config(name)
        assert message in str(error.value)


def test_spellings_of_a_setting():
    field = "data.chunk_buckets"
    for arguments, changes in (
        (["--config.loop.steps=3", "-config.loop.seed", "4"], [("loop.steps", "3"), ("loop.seed", "4")]),
        (["--noconfig.data.cache", "--config.x.y"], [("data.cache", "False"), ("x.y", "True")]),
        ([f"--config.{field}=8", f"--config.{field}=32"], [(field, "8"), (field, "32")]),
    ):
        rest = ["file", "--", "--config.x=1"]
        assert cli.split_changes(["file", *arguments, *rest[1:]]) == (rest, changes)
    changed = lambda *values: override(default_config(), [(field, value) for value in values]).data.chunk_buckets
    assert changed("8", "32") == (8, 32) and changed("(8,)", "(9,)") == (9,) and changed("8", "()") == ()


@pytest.mark.parametrize("program", ["summarize", "evaluate", "experiments"])
def test_a_config_is_not_swallowed_by_programs_that_take_none(program, capsys):
    """As argparse would have it, which completes names."""
    needed = {"summarize": ["--model=M"], "evaluate": ["--workdir=W"], "experiments": ["ablation"]}[program]
    module = importlib.import_module(f"jax_simcas.{program}" + (".__main__" if program == "experiments" else ""))
    with pytest.raises(SystemExit) as stopped:
        module.main([*needed, "--config=configs/embedded.py"])
    assert stopped.value.code == 2
    assert "--config=configs/embedded.py" in one_line_error(capsys.readouterr().err)
