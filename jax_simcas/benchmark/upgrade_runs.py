"""Trains in one environment and resumes in another: what `jax_simcas.benchmark.upgrades` runs."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jax_simcas
from jax_simcas.benchmark.fault_programs import LIMIT, TIMES, Ended, finished, start, training
from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common import progress
from jax_simcas.common.errors import UserError
from jax_simcas.common.metric_log import METRICS, read_metrics
from jax_simcas.common.tables import markdown_table, plural

HALF = 8  # steps: a run is as long as two
RESUMES = f"resuming at step {HALF} of {2 * HALF}"  # what the second training says; the first gives the same numbers
SOURCE = str(Path(jax_simcas.__file__).parents[1])  # every environment runs this code, whichever it has
ROUNDING = 1e-3  # relative: what is called agreement, after 16 steps in float32
VERSIONS = """
import platform
from importlib.metadata import version
import jax_simcas
print(f"Python {platform.python_version()}, jax {version('jax')}, orbax {version('orbax-checkpoint')}")
"""

Figures = dict[tuple[int, str], Mapping[str, float]]  # of each step and split


class Result(NamedTuple):
    """What a run gave: figures of metrics.jsonl without times, and parameters of the last checkpoint."""

    figures: Figures
    params: dict[str, Any]


class Outcome(NamedTuple):
    """What came of a run that another environment resumed: relative differences, or how that one refused."""

    figures: float = math.nan
    params: float = math.nan
    refused: str = ""
    problem: str = ""


def run(arguments: Any) -> int:
    """Prints a table of pairs of environments.

    Raises:
      UserError: an environment cannot train, or a pair does not agree.
    """
    names = {python: versions(python) for python in dict.fromkeys(arguments.python)}
    with tempfile.TemporaryDirectory(prefix="upgrades-") as name:
        base = Path(name)
        with progress.Progress(len(names) * (1 + len(names)), unit="runs") as shown:
            whole = {}
            for number, python in enumerate(names):
                whole[python] = trained(python, base, base / str(number))
                shown.update()
            outcomes = []
            for number, first in enumerate(names):
                for second in names:
                    outcome = resumed(second, base, base / str(number), whole[first], same=first == second)
                    outcomes.append((names[first], names[second], outcome))
                    shown.update()
    print(table(outcomes))
    start, *others = whole.values()
    for other, given in zip(list(names)[1:], others, strict=True):
        print(f"without a change, {names[other]} differs from the first by {_differences(*differences(given, start))}")
    problems = [f"{first}, then {second}: {made.problem}" for first, second, made in outcomes if made.problem]
    for problem in problems:
        print(f"fault: {problem}")
    if problems:
        raise UserError(f"{plural(len(problems), 'fault')}: see above")
    return 0


def versions(python: str) -> str:
    """The versions of an environment in words.

    Raises:
      UserError: it has no jax_simcas.
    """
    command = [python, "-c", VERSIONS]
    try:
        found = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": SOURCE}, capture_output=True, text=True, timeout=LIMIT
        )
    except OSError as error:
        raise UserError(f"--python: cannot run {python} ({error.strerror})") from None
    if found.returncode:
        why = found.stderr.strip().splitlines()[-1:]
        raise UserError(f"--python: {python} cannot import what is needed{''.join(f' ({line})' for line in why)}")
    return found.stdout.strip()


def trained(python: str, base: Path, folder: Path) -> Result:
    """A whole run in a folder of its own."""
    ended = _train(python, base, folder)
    if ended.code:
        raise UserError(f"{python}: the training ended with {ended.code}: {ended.err.strip()[-300:]}")
    return result(folder / "run")


def resumed(python: str, base: Path, folder: Path, whole: Result, same: bool) -> Outcome:
    """Resumes a copy of the run in `folder` from its middle, and compares it with the whole run."""
    with tempfile.TemporaryDirectory(dir=base) as name:
        copy = Path(name)
        shutil.copytree(folder / "run", copy / "run")
        shutil.rmtree(copy / "run" / "checkpoints" / str(2 * HALF))
        ended = _train(python, base, copy)
        return judged(ended, result(copy / "run") if not ended.code else None, whole, same)


def judged(ended: Ended, given: Result | None, whole: Result, same: bool) -> Outcome:
    """Holds how the resumed run ended, and what it gave, against the whole run."""
    if "Traceback" in ended.err or given is None:
        errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
        if "Traceback" in ended.err or len(errors) != 1 or ended.code != 1:
            return Outcome(problem=f"ended with {ended.code}: {ended.err.strip()[-300:]}")
        return Outcome(refused=errors[0])
    if RESUMES not in ended.err:
        return Outcome(problem="trained anew, without a word about the checkpoint")
    figures, params = differences(given, whole)
    limit = 0.0 if same else ROUNDING
    problem = "" if max(figures, params) <= limit else f"differs by {_differences(figures, params)}"
    return Outcome(figures, params, problem=problem)


def result(workdir: Path) -> Result:
    """What a run has left."""
    rows = [row for row in read_metrics(workdir / METRICS) if row["split"] != "checkpoint"]
    figures: Figures = {
        (row["step"], row["split"]): {
            name: value for name, value in row.items() if isinstance(value, float) and name not in TIMES
        }
        for row in rows
    }
    return Result(figures, load_params(workdir / "checkpoints", "latest")[0])


def differences(given: Result, expected: Result) -> tuple[float, float]:
    """(figures, parameters): largest difference of a figure, relative to the largest value that it has in the run; norm
    of the parameters' difference, relative to that of the parameters. Infinite where one lacks what the other has.
    """
    if {place: set(row) for place, row in given.figures.items()} != {
        place: set(row) for place, row in expected.figures.items()
    }:
        return math.inf, math.inf
    largest: dict[str, float] = {}
    off: dict[str, float] = {}
    for place, row in expected.figures.items():
        for name, value in row.items():
            largest[name] = max(largest.get(name, 0.0), abs(value))
            off[name] = max(off.get(name, 0.0), abs(given.figures[place][name] - value))
    figures = max((off[name] / largest[name] for name in off if off[name]), default=0.0)
    pairs = list(zip(jax.tree.leaves(given.params), jax.tree.leaves(expected.params), strict=True))
    norm = math.sqrt(sum(float(np.sum(np.square(b, dtype=np.float64))) for _, b in pairs))
    apart = math.sqrt(sum(float(np.sum(np.square(a.astype(np.float64) - b))) for a, b in pairs))
    return figures, apart / norm


def _differences(figures: float, params: float) -> str:
    return f"{figures:.1g} in figures and {params:.1g} in parameters"


def _train(python: str, base: Path, folder: Path) -> Ended:
    often = f"--config.loop.checkpoint_every={HALF}"
    return finished(start(training(2 * HALF), base, folder, often, python=python, PYTHONPATH=SOURCE))


def table(outcomes: Sequence[tuple[str, str, Outcome]]) -> str:
    """A line for each pair of environments: the one that trained, the one that resumed, and what came of it."""
    rows = [
        {
            "trained with": first,
            "resumed with": second,
            "figures differ by": outcome.refused or f"{outcome.figures:.1g}",
            "parameters": f"{outcome.params:.1g}",
        }
        for first, second, outcome in outcomes
    ]
    return markdown_table(rows, [*rows[0]])
