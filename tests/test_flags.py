"""Flags that programs cannot use are named in one line; help ends in examples."""

import pytest
from helpers import one_line_error

from jax_simcas import compare, evaluate, summarize, train


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
        (evaluate, ["--workdir=x", "--limit=0"], "--limit: '0': expected a whole number of at least 1"),
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
