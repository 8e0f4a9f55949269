"""Flags that programs cannot use are named in one line; help ends in examples."""

import pytest
from helpers import one_line_error

from jax_simcas import compare, evaluate, summarize


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (evaluate, ["--workdir=nowhere"], "no config.json there"),
        (evaluate, ["--workdir={}", "--split=dev"], "split 'dev': the synthetic task has"),
        (evaluate, ["--workdir={}", "--step=first"], "--step=first: expected best, latest or a number"),
        (evaluate, ["--workdir={}", "--step=99"], "99"),
        (evaluate, ["--workdir={}", "--output=/dev/null/x"], "--output=/dev/null/x: cannot be written"),
        (evaluate, ["--workdir={}", "--min-length=9"], "min_length"),
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


@pytest.mark.parametrize("tool", [evaluate, summarize, compare])
def test_help_has_examples(tool, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main(["--help"])
    assert exit.value.code == 0 and "examples:\n  python -m jax_simcas." in capsys.readouterr().out
