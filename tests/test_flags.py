"""Flags that programs cannot use are named in one line; help ends in examples."""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, environment, one_line_error

import jax_simcas
from jax_simcas import compare, convert, evaluate, summarize, train
from jax_simcas.__main__ import PROGRAMS
from jax_simcas.__main__ import main as simcas
from jax_simcas.backbones.ops.stacks import REMAT
from jax_simcas.benchmark import __main__ as benchmark
from jax_simcas.benchmark import attention, stages
from jax_simcas.checkpoints import hub
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.compile_check import __main__ as compile_check
from jax_simcas.compile_check import estimate, programs
from jax_simcas.evaluation import paired_bootstrap
from jax_simcas.experiments import __main__ as experiments
from jax_simcas.method.select import POLICIES
from jax_simcas.run import convert_model, overrides, summarize_files
from jax_simcas.run.config import Settings, default_config, from_config, to_json
from jax_simcas.run.config_file import override, read_config, settings_of
from jax_simcas.run.method_config import BUDGETED

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (evaluate, ["--workdir=nowhere"], "no config.json there"),
        (evaluate, ["--workdir={}", "--split=dev"], "split 'dev': the synthetic task has"),
        (evaluate, ["--workdir={}", "--step=99"], "99"),
        (evaluate, ["--workdir={}", "--output=/dev/null/x"], "--output=/dev/null/x: cannot be written"),
        (evaluate, ["--workdir={}", "--min-length=9"], "--min-length=9 exceeds max_length"),
        (evaluate, ["--workdir={}", "--config.simcas.threshold=2"], "error: --config.simcas.threshold=2.0: expected 0"),
        (evaluate, ["--workdir={}", "--config.simcas.budget=3"], "simcas.budget=3: the policy 'greedy' has no"),
        (summarize, ["--model={}", "--budget=3", "x"], "--budget=3: the policy 'greedy' has no budget; those with one"),
        (summarize, ["--model={}", "--config.simcas.threshold=2", "x"], "error: --config.simcas.threshold=2.0: "),
        (
            summarize,
            ["--model={}", "--config.generate.min_length=99"],
            "error: --config.generate.min_length=99 exceeds",
        ),
        (summarize, ["--model=nowhere/at/all", __file__], "no such folder"),
        (summarize, ["--model={}", "--query=Why?", "x"], "was trained without queries"),
        (summarize, ["--model={}", "--policy=topk", "x"], "budget"),
        (compare, ["a=nowhere"], "error: nowhere/scores.json: not found; run jax_simcas.evaluate first"),
        pytest.param(
            evaluate,
            ["--workdir={}", "--bertscore=nowhere/at/all"],
            "--bertscore=nowhere/at/all: cannot be loaded (",
            marks=needs_torch,
        ),
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
        (summarize, ["--model=x", "--policy=nosuch"], "--policy: 'nosuch': expected one of sample, greedy, "),
        (evaluate, ["--workdir=x", "--policy=nosuch"], "--policy: 'nosuch': expected one of sample, greedy, "),
        (summarize, ["--model=x", "--dtype=float16"], "--dtype: 'float16': expected one of float32, bfloat16"),
        (summarize, ["--model=x", "--capacity=1"], "--capacity: '1': expected a whole number from 2 to"),
        (summarize, ["--model=x", "--max-length=1"], "--max-length: '1': expected a whole number from 2 to"),
        (summarize, ["--model=x", "--max-length=5", "--min-length=6"], "--min-length=6 exceeds --max-length=5"),
        (evaluate, ["--workdir=x", "--max-input-len=2"], "--max-input-len: '2': expected a whole number from 3 to"),
        (summarize, ["--model=x", "--policy=greedy", "--budget=3"], "--budget=3: the policy 'greedy' has no budget; "),
        (evaluate, ["--workdir=x", "--policy=all", "--config.simcas.budget=3"], "those with one are topk, random"),
        (summarize, ["--model=x", "--html=page.pdf"], "--html: 'page.pdf': expected a file that ends in .html or .htm"),
        (evaluate, ["--compare", "x", "y", "--plot=p.pdf"], "--plot: 'p.pdf': expected a file that ends in .png"),
        (compare, ["A=x", "--plot=p.txt"], "--plot: 'p.txt': expected a file that ends in .png"),
        (compare, ["a"], "'a': expected NAME=FOLDER"),
        (compare, ["=x"], "'=x': expected NAME=FOLDER"),
        (compare, ["A="], "'A=': expected NAME=FOLDER"),
        (compare, ["A=x", "B=y", "A=z"], "'A=z': 'A' names x already; give each folder a name of its own"),
        (train, ["--config=nosuch", "--workdir=x"], "--config=nosuch: no config of this name; there are arxiv, "),
        (train, ["--config=embedded", "--workdir=x", "--distributed=foo"], "--distributed=foo: expected auto or "),
        (experiments, ["nosuch"], "EXPERIMENT=nosuch: no config of this name; there are ablation, "),
        (compile_check, ["--config=embedded", "--topology=v5e:1x1", "--tokens=2"], "--tokens: '2': expected 0 or "),
        (compile_check, ["--config=embedded", "--topology=nosuch"], "--topology=nosuch: expected one of v4, "),
        (attention, ["--topology=nosuch"], "--topology=nosuch: expected one of v4, "),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(tool, arguments, message, capsys):
    try:
        code = tool.main(arguments)
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and message in one_line_error(capsys.readouterr().err)


def test_what_flags_take_of_a_setting_its_section_takes():
    """Their bounds stand in the parser too, so that values that no model takes are wrong flags, and known at once."""
    values = [*map(str, range(4)), "8", "-3", "many", "greedy", "topk", "bfloat16", "float16", "0.5", "own.module:name"]
    for flag in overrides.OVERRIDES.values():
        section, leaf = flag.field.split(".")
        kind = type(getattr(Settings(), section))
        for value in values:
            try:
                taken = flag.kind(value)
            except argparse.ArgumentTypeError:
                continue
            kind(**({"budget": 3} if section == "simcas" else {}) | {leaf: taken})


@pytest.mark.parametrize(
    ("tool", "arguments", "flag"),
    [
        (summarize, ["--model={folder}", "--html={bad}", __file__], "--html"),
        (compile_check, ["--config=embedded", "--topology=v5e:1x1", "--json={bad}"], "--json"),
        (compare, ["A={folder}", "--plot={bad}"], "--plot"),
        (evaluate, ["--compare", "{folder}", "{folder}", "--plot={bad}"], "--plot"),
        (convert, ["{folder}", "{bad}", "--to=hf"], "DST"),
    ],
)
def test_an_output_that_cannot_be_written_is_known_before_the_work(
    tool, arguments, flag, tmp_path, capsys, monkeypatch
):
    for module, work in ((summarize_files, "load_model"), (estimate, "compile_stage"), (convert_model, "load_weights")):
        monkeypatch.setattr(module, work, None)
    monkeypatch.setattr(paired_bootstrap, "paired_differences", None)
    (tmp_path / "scores.json").write_text(json.dumps({"scores": {}, "kept_share": 0.5, "evidence": {}}))
    (tmp_path / "predictions.jsonl").write_text('{"id": "1", "prediction": "x", "reference": "y"}\n')
    (tmp_path / "a folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for bad in (tmp_path / "a folder", tmp_path / "scores.json" / "x", Path("/proc/nowhere/x")):
        if bad.is_dir() and flag == "DST":
            continue
        assert tool.main([argument.format(folder=tmp_path, bad=bad) for argument in arguments]) == 1
        captured = capsys.readouterr()
        assert f"error: {flag}={bad}: " in one_line_error(captured.err) and not captured.out
    assert sorted(tmp_path.rglob("*")) == before


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
    assert tuple(stages.MODELS) == benchmark.MODELS
    assert (tuple(REMAT), stages.REMAT) == (benchmark.REMATS, benchmark.REMAT)
    assert (tuple(POLICIES), BUDGETED) == (overrides.POLICIES, overrides.BUDGETED)


@pytest.mark.parametrize("name", PROGRAMS)
def test_version_and_help_of_every_program(name, capsys):
    for flag, shown in (("--version", f"jax_simcas {jax_simcas.__version__}\n"), ("--help", "exit codes: 0 ")):
        with pytest.raises(SystemExit) as exit:
            simcas([name, flag])
        assert exit.value.code == 0 and shown in capsys.readouterr().out


REQUIRED = {
    "train": ["--config=embedded", "--workdir=run"],
    "evaluate": ["--workdir=run"],
    "summarize": ["--model=run", "text"],
    "compare": ["a=b"],
    "convert": ["run", "out", "--to=hf"],
    "experiments": ["experiment.py"],
    "compile_check": ["--topology=v5e:2x2", "--config=embedded"],
    "check": ["folder"],
    "parity": ["folder"],
    "benchmark.checkpoint": ["--folder=out"],
    "benchmark.input": ["--folder=out"],
    "benchmark.upgrades": ["--python=python3"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_comes_where_no_package_is_installed_and_one_that_is_missing_is_one_line(name, tmp_path):
    # -S: Python without its installed packages, as one that is started outside the environment.
    options = {"env": environment(PYTHONPATH=str(ROOT)), "capture_output": True, "text": True, "cwd": tmp_path}
    run = lambda *flags: subprocess.run([sys.executable, "-S", "-m", f"jax_simcas.{name}", *flags], **options)
    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "") and "exit codes: 0 " in shown.stdout
    done = run(*REQUIRED.get(name, []))
    assert done.returncode == 1 and "is not installed" in one_line_error(done.stderr)


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


def test_a_runs_own_settings_are_a_config(tmp_path):
    settings = from_config(read_config("embedded"))
    path = tmp_path / "config.json"
    path.write_text(to_json(settings))
    assert from_config(read_config(str(path))) == settings
    arguments = train.parser().parse_args([f"--config={path}", "--workdir=x", "--config.loop.steps=7"])
    assert settings_of(arguments).loop.steps == 7
    with pytest.raises(UserError, match=f"--config={tmp_path}: a folder; give a file in it, such as {path}"):
        read_config(str(tmp_path))
    for text, message in (("{", "cannot be read as JSON"), ('{"loop": {"stepz": 1}}', "loop.stepz: no such field")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path}: .*{message}"):
            read_config(str(path))


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
