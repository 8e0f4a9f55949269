"""Runs what `jax_simcas.benchmark.faults` was asked for, and prints its tables."""

from __future__ import annotations

import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_simcas.benchmark import fault_kills, fault_programs
from jax_simcas.benchmark.fault_cases import Case, Place, Tried, clock_set_back, full_disks, two_trainings
from jax_simcas.benchmark.fault_processes import lost_processes
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import markdown_table, plural

CASES: Mapping[str, Case] = {
    "disk": full_disks,
    "workdir": two_trainings,
    "clock": clock_set_back,
    "processes": lost_processes,
}
# Of all kills: a training is where they cost most.
SHARES = {"training": 0.4, "making of a cache": 0.2, "evaluation": 0.2, "experiment": 0.2}


def run(arguments: Any) -> int:
    """Prints a table of kills and one of other faults.

    Raises:
      UserError: something was not as it should be.
    """
    # A shell ignores Ctrl-C for what it runs in the background, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        fault_programs.prepare(folder, arguments.seed)
        if "kills" in arguments.only:
            problems += kills(folder, arguments.kills, arguments.seed)
        cases = [case for case in CASES if case in arguments.only]
        if cases:
            problems += others(folder, cases, arguments.fills, arguments.seed)
    for problem in problems:
        print(f"fault: {problem}")
    if problems:
        raise UserError(f"{plural(len(problems), 'fault')}: see above")
    return 0


def kills(folder: Path, count: int, seed: int) -> list[str]:
    """Prints the table of kills; returns what was wrong."""
    made = []
    for program in fault_programs.programs(folder):
        rng = random.Random(f"{seed} {program.name}")
        each = max(1, round(count * SHARES[program.name]))
        made.append((program, fault_kills.kill(program, folder, folder / "kills", each, rng)))
    rows = list(fault_kills.rows(made))
    print(markdown_table(rows, [*rows[0]]))
    return [problem for _, killed in made for problem in killed.problems]


def others(folder: Path, cases: list[str], fills: int, seed: int) -> list[str]:
    """Prints the table of the other faults; returns what was wrong."""
    expected, _, problems = fault_kills.undisturbed(fault_programs.training(), folder, folder / "undisturbed")
    tried = [Tried("none", "undisturbed", "", problem) for problem in problems]
    for case in cases:
        place = Place(folder, folder / case, random.Random(f"{seed} {case}"), expected)
        place.folder.mkdir()
        for one in CASES[case](place, fills):
            print(f"{label(one)}: {one.problem or one.ended}", file=sys.stderr, flush=True)
            tried.append(one)
    print(table(tried))
    return [f"{label(one)}: {one.problem}" for one in tried if one.problem]


def label(one: Tried) -> str:
    """The fault and where it was."""
    return f"{one.fault}, {one.where}" if one.where else one.fault


def table(tried: Sequence[Tried]) -> str:
    """A line for each fault and way to end."""
    counts = Counter((one.fault, one.ended if not one.problem else "a fault") for one in tried)
    rows = [{"fault": fault, "what happens": ended, "times": count} for (fault, ended), count in counts.items()]
    return markdown_table(rows, ["fault", "what happens", "times"])
