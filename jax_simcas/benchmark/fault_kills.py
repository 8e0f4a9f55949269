"""Programs that are ended by signals at random moments and started again, until they end by themselves."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jax_simcas.benchmark.fault_programs import Ended, Left, Program, difference, files_of, finished, left, start
from jax_simcas.common.cli import EXIT_INTERRUPTED, EXIT_STOPPED
from jax_simcas.common.metric_log import METRICS

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Exit codes: that of the program, and that of a process which has not come to handling signals.
CODES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (EXIT_STOPPED, -signal.SIGTERM),
    signal.SIGINT: (EXIT_INTERRUPTED, -signal.SIGINT),
}
LOADED = 1.5  # seconds from a start to the first signal: Ctrl-C before is Python's to tell, which imports then
# What Python prints of a Ctrl-C that fell into a callback of garbage collection, and drops.
DROPPED = re.compile(r"Exception ignored in: .*\nTraceback \(most recent.*\n(?:  .*\n)+KeyboardInterrupt: *\n")


class Strike(NamedTuple):
    """A signal, so many seconds after the start; whether it came in time; what is wrong after it, or "".

    seconds: from the start of the program to its end.
    """

    how: signal.Signals
    after: float
    seconds: float
    landed: bool
    problem: str


class Killed(NamedTuple):
    """What became of a program: its strikes, how often it ended in spite of them, and what was wrong."""

    strikes: list[Strike]
    rounds: int
    problems: list[str]


def undisturbed(program: Program, base: Path, folder: Path) -> tuple[Left, float, list[str]]:
    """What it leaves, the seconds that it takes, and what is wrong: runs it twice, so that all is compiled."""
    results, seconds, problems = [], 0.0, []
    for number in range(2):
        begun = time.monotonic()
        ended = finished(start(program, base, folder / str(number)))
        seconds = time.monotonic() - begun
        if ended.code:
            problems.append(f"{program.name}, undisturbed: exit code {ended.code}: {ended.err.strip()[-300:]}")
        results.append(left(folder / str(number)))
    if other := difference(*results):
        problems.append(f"{program.name}: two undisturbed runs are not alike: {other}")
    shutil.rmtree(folder)
    return results[0], seconds, problems


def kill(program: Program, base: Path, folder: Path, kills: int, rng: random.Random) -> Killed:
    """Strikes until `kills` strikes have landed; each time the program ends by itself, it starts in a new folder."""
    expected, seconds, problems = undisturbed(program, base, folder / "undisturbed")
    made = Killed([], 0, problems)
    landed = 0
    while landed < kills:
        place = folder / str(made.rounds)
        while landed < kills:
            strike = struck(
                program, base, place, SIGNALS[len(made.strikes) % len(SIGNALS)], rng.uniform(LOADED, seconds)
            )
            made.strikes.append(strike)
            landed += strike.landed
            print(_line(program, strike, landed, kills), file=sys.stderr, flush=True)
            if not strike.landed:
                seconds = max(LOADED, min(seconds, strike.seconds))  # the machine is faster than before
                break
        problem = resumed(program, base, place, expected)
        made = made._replace(rounds=made.rounds + 1, problems=[*made.problems, *([problem] if problem else [])])
        shutil.rmtree(place)
    return made._replace(
        problems=[*made.problems, *(f"{program.name}: {s.problem}" for s in made.strikes if s.problem)]
    )


def _line(program: Program, strike: Strike, landed: int, kills: int) -> str:
    what = f"{strike.how.name} after {strike.after:.1f} s" if strike.landed else "ended by itself"
    return f"{program.name}, {landed} of {kills}: {what}{f': {strike.problem}' if strike.problem else ''}"


def struck(program: Program, base: Path, folder: Path, how: signal.Signals, after: float) -> Strike:
    """Starts the program and sends it a signal: Ctrl-C to its children too, as terminals do."""
    begun = time.monotonic()
    process = start(program, base, folder)
    while process.poll() is None and time.monotonic() < begun + after:
        time.sleep(0.005)
    landed = process.poll() is None
    if landed:
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    ended = finished(process)
    landed = landed and (ended.code != 0 or how == signal.SIGKILL)
    return Strike(how, after, time.monotonic() - begun, landed, first_problem(how, ended, landed, folder))


def first_problem(how: signal.Signals, ended: Ended, landed: bool, folder: Path) -> str:
    """What is wrong with how a struck program ended, or with its files; "" if nothing is."""
    codes = CODES[how] if landed else (0,)
    err = DROPPED.sub("", ended.err) if how == signal.SIGINT else ended.err
    if ended.code not in codes:
        return f"exit code {ended.code} after {how.name}, expected {codes}: {err.strip()[-300:]}"
    if "Traceback" in err:
        return f"a traceback after {how.name}: {err.strip()[-600:]}"
    broken = [str(path.relative_to(folder)) for path in files_of(folder) if not is_whole(path)]
    return f"not whole after {how.name}: {', '.join(broken)}" if broken else ""


def is_whole(path: Path) -> bool:
    """Whether a file of JSON or JSONL can be read; the last line of metrics may be cut."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl" and path.name != METRICS:
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        return False
    return True


def resumed(program: Program, base: Path, folder: Path, expected: Left) -> str:
    """Lets a program that was struck end, and tells what is not as it should be; "" if all is."""
    ended = finished(start(program, base, folder))
    if ended.code:
        return f"{program.name}, started again: exit code {ended.code}: {ended.err.strip()[-300:]}"
    if "Traceback" in ended.err:
        return f"{program.name}, started again: a traceback: {ended.err.strip()[-600:]}"
    other = difference(left(folder), expected)
    return f"{program.name}, started again: {other}" if other else ""


def rows(killed: Sequence[tuple[Program, Killed]]) -> Iterator[dict[str, object]]:
    """The table's lines."""
    for program, made in killed:
        signals = Counter(strike.how for strike in made.strikes if strike.landed)
        yield {
            "program": program.name,
            "kills": signals.total(),
            **{how.name: signals[how] for how in SIGNALS},
            "ends": made.rounds,
            "faults": len(made.problems),
        }
