"""`benchmark.upgrades` tells what agrees to rounding from what does not, and a refusal from a crash."""

import math
import sys

import numpy as np
import pytest
from helpers import one_line_error

from jax_simcas.benchmark import upgrade_runs, upgrades
from jax_simcas.benchmark.fault_programs import Ended
from jax_simcas.benchmark.upgrade_runs import RESUMES, Result, differences, judged


def result(loss=2.0, weight=1.0):
    return Result({(1, "train"): {"loss": 4.0}, (2, "train"): {"loss": loss}}, {"w": np.float32([3.0, 4.0 * weight])})


def test_differences_are_relative_to_the_largest_figure_and_to_the_norm():
    assert differences(result(), result()) == (0.0, 0.0)
    figures, params = differences(result(loss=2.4, weight=1.25), result())
    assert figures == pytest.approx(0.1) and params == pytest.approx(0.2)
    fewer = Result({(1, "train"): {"loss": 4.0}}, result().params)
    assert differences(fewer, result()) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("loss", "same", "agrees"), [(2.0, True, True), (2.001, True, False), (2.001, False, True), (2.1, False, False)]
)
def test_one_environment_has_to_agree_to_the_last_bit_and_two_to_rounding(loss, same, agrees):
    outcome = judged(Ended(0, RESUMES), result(loss), result(), same)
    assert (outcome.problem == "") is agrees
    assert agrees or "differs by" in outcome.problem


def test_a_refusal_in_one_line_is_no_fault_and_a_traceback_is_one():
    refused = judged(Ended(1, "a warning\nerror: the checkpoint is newer\n"), None, result(), False)
    assert refused.refused == "error: the checkpoint is newer" and not refused.problem
    for ended in (Ended(1, "Traceback\nerror: x\n"), Ended(1, "error: x\nerror: y\n"), Ended(134, "error: x\n")):
        assert judged(ended, None, result(), False).problem.startswith(f"ended with {ended.code}")
    assert judged(Ended(0, "Traceback"), result(), result(), True).problem.startswith("ended with 0")


def test_a_run_that_is_not_resumed_is_no_agreement():
    assert judged(Ended(0, ""), result(), result(), True).problem.startswith("trained anew")


@pytest.mark.parametrize(
    ("python", "why"), [("no-such-python", "cannot run no-such-python"), (sys.executable, "cannot import")]
)
def test_an_environment_that_cannot_be_used_is_named(python, why, monkeypatch, capsys):
    monkeypatch.setattr(upgrade_runs, "VERSIONS", "import no_such_package")
    assert upgrades.main([f"--python={python}"]) == 1
    assert why in one_line_error(capsys.readouterr().err)


@pytest.mark.slow
def test_a_run_resumes_within_its_own_environment(capsys):
    assert upgrades.main([f"--python={sys.executable}"]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert cells[0] == cells[1] and cells[2:] == ["0", "0"]
