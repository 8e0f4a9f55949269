"""Runs readers on odd input in processes that may hang or die, and counts: what `benchmark.odd_input` runs."""

from __future__ import annotations

import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.benchmark.odd_kinds import KINDS
from jax_simcas.common import cli, progress
from jax_simcas.common.errors import FlagError, UserError
from jax_simcas.common.tables import markdown_table

LONGEST_LINE = 1_500  # characters of an error
MEMORY = 8 << 30  # bytes that reading may take
READ, REFUSED, FAULT, SLOW = "read", "refused", "faults", "hang or die"
HALF_WRITTEN = ("*.tmp*", "*.part", "*.incomplete")


class Outcome(NamedTuple):
    """What became of one input; `detail` of a fault."""

    kind: str
    number: int
    result: str
    detail: str = ""
    seconds: float = 0.0


def run(arguments: Any) -> int:
    """Prints a table of kinds, and each fault."""
    cli.prepare_jax()
    kinds = arguments.kinds.split(",") if arguments.kinds else [*KINDS]
    for kind in kinds:
        if kind not in KINDS:
            raise FlagError(f"--kinds={arguments.kinds}: no kind {kind!r}; there are {', '.join(KINDS)}")
    if arguments.only is not None:
        outcomes = [read_one(kind, arguments.only, arguments.seed, trace=True) for kind in kinds]
    else:
        total = sum(KINDS[kind].share for kind in kinds)
        counts = {kind: max(1, round(arguments.count * KINDS[kind].share / total)) for kind in kinds}
        outcomes = list(_outcomes(counts, arguments.seed, arguments.seconds))
    faults = [outcome for outcome in outcomes if outcome.result in (FAULT, SLOW)]
    for fault in faults:
        print(f"fault: --kinds {fault.kind} --seed {arguments.seed} --only {fault.number}: {fault.detail}")
    print(table(outcomes))
    if faults:
        raise UserError(f"{len(faults)} of {len(outcomes)} inputs are neither read nor refused by one line")
    return 0


def table(outcomes: list[Outcome]) -> str:
    """Counts of each kind."""
    kinds = [*dict.fromkeys(outcome.kind for outcome in outcomes)]
    groups = {kind: [outcome for outcome in outcomes if outcome.kind == kind] for kind in kinds} | {"all": outcomes}
    rows = [{"kind": kind} | _counts(group) for kind, group in groups.items()]
    return markdown_table(rows, [*rows[0]])


def _counts(outcomes: list[Outcome]) -> dict[str, Any]:
    results = Counter(outcome.result for outcome in outcomes)
    counts = {"inputs": len(outcomes)} | {result: results[result] for result in (READ, REFUSED, FAULT, SLOW)}
    return counts | {"slowest, s": f"{max(outcome.seconds for outcome in outcomes):.1f}"}


def read_one(kind: str, number: int, seed: int, trace: bool = False) -> Outcome:
    """Makes an input and lets it be read.

    Args:
      trace: prints the exception of a fault.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="odd-") as name:
        result, detail = _read(kind, number, seed, Path(name), trace)
        left = [path.name for pattern in HALF_WRITTEN for path in Path(name).rglob(pattern)]
    if left and result != FAULT:
        result, detail = FAULT, f"left behind: {', '.join(left)}"
    return Outcome(kind, number, result, detail, time.monotonic() - started)


def _read(kind: str, number: int, seed: int, folder: Path, trace: bool) -> tuple[str, str]:
    read = KINDS[kind].write(folder, random.Random(f"{seed} {kind} {number}"))
    try:
        read()
    except UserError as error:
        line = str(error)
        if "\n" in line.strip() or not line.strip() or len(line) > LONGEST_LINE:
            return FAULT, f"an error of {len(line)} characters in {len(line.splitlines())} lines: {line[:300]!r}"
        return REFUSED, ""
    except BaseException as error:  # what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        if trace:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        return FAULT, f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:300]!r}"
    return READ, ""


def _serve(pipe: Connection, seed: int) -> None:
    """Reads the inputs that it is sent until it is sent None."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115  # libraries' warnings
    while (task := pipe.recv()) is not None:
        kind, number = task
        pipe.send(read_one(kind, number, seed))


class Reader:
    """A process that reads inputs, and another one after each that does not come back.

    seconds: that an input may take.
    """

    def __init__(self, seed: int, seconds: int) -> None:
        self._seed, self._seconds = seed, seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._seed), daemon=True)
        self._process.start()
        other.close()
        self._pipe.send(("text", 0))  # imports take their time
        self._pipe.recv()

    def read(self, kind: str, number: int) -> Outcome:
        """What became of this input."""
        self._pipe.send((kind, number))
        try:
            if self._pipe.poll(self._seconds):
                found: Outcome = self._pipe.recv()
                return found
            detail = f"more than {self._seconds} s"
        except EOFError:
            self._process.join()
            detail = f"the process died ({self._process.exitcode})"
        self._process.kill()
        self._start()
        return Outcome(kind, number, SLOW, detail, float(self._seconds))

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.send(None)
        self._process.join()


def _outcomes(counts: dict[str, int], seed: int, seconds: int) -> Iterator[Outcome]:
    reader = Reader(seed, seconds)
    with progress.Progress(sum(counts.values()), unit="inputs") as shown:
        for kind, count in counts.items():
            for number in range(count):
                yield reader.read(kind, number)
                shown.update()
    reader.stop()
