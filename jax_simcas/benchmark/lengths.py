"""Timing stages at several lengths, as tables and a plot: what `jax_simcas.benchmark` runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_simcas.backbones import families
from jax_simcas.benchmark import gpu, growth
from jax_simcas.benchmark.stages import PEERS, RELEASED, SIDES, Task, shape_of
from jax_simcas.benchmark.timing import Others, Released, check_torch, machine, time_tasks
from jax_simcas.common import cli, files, plots, tables
from jax_simcas.common.errors import FlagError, UserError


def choose_sides(arguments: Any, stages: Sequence[str]) -> tuple[list[str], Others]:
    """The sides that can run, and what runs them; what is skipped is named on stderr.

    Raises:
      UserError: PyTorch is missing.
    """
    sides = list(arguments.sides)
    check_torch(sides, arguments.torch_python)
    released = Released(Path(arguments.released), arguments.released_python) if arguments.released else None
    if released:
        sides = list(dict.fromkeys([*sides, "released"]))
    if "released" in sides:
        problem = released.problem() if released else "give --released PATH, a clone of xjw-nlp/SimCAS"
        if problem:
            print(f"skipped: the released code: {problem}", file=sys.stderr)
            sides.remove("released")
    if "released" in sides:
        for size in arguments.size:
            if (family := shape_of(size).family) != RELEASED:
                print(f"skipped: side released for {size}: it is {family}, and the released code BART", file=sys.stderr)
    for side in sides:
        lacking = [stage for stage in stages if stage not in SIDES[side]]
        if lacking:
            print(f"skipped: side {side} has no stage {', '.join(lacking)}", file=sys.stderr)
    return sides, Others(arguments.torch_python, released)


def check_room(size: str, chunk_length: int, target: int) -> None:
    """Checks that the model has positions for a chunk and for a target.

    Raises:
      FlagError: it has fewer.
    """
    shape = shape_of(size)
    room = {f"--chunk-length={chunk_length}": families.chunk_positions(shape), f"--target={target}": shape.positions}
    for (flag, most), tokens in zip(room.items(), (chunk_length, target), strict=True):
        if most is not None and tokens > most:
            raise FlagError(f"{flag}: {size} has positions for {most} tokens")


def tasks_of(arguments: Any, sides: Sequence[str], stages: Sequence[str]) -> list[Task]:
    """Every stage on every side that has it, in every dtype, size and length.

    Raises:
      FlagError: a length that is too short, a chunk or a target that is too long. UserError: nothing to measure.
    """
    same = ("chunk_length", "target", "selected", "attention", "device")
    shape = {name: getattr(arguments, name) for name in same}
    remats = lambda stage, side: arguments.remat if (side, stage) == ("jax", "transformer") else arguments.remat[:1]
    lengths = sorted(set(arguments.lengths))
    for size in arguments.size:
        check_room(size, arguments.chunk_length, arguments.target)
    try:
        tasks = [
            Task(stage, side, size, length, dtype, remat=remat, **shape)
            for stage in stages
            for side in sides
            if stage in SIDES[side]
            for dtype in arguments.dtypes
            if dtype == "bfloat16" or side not in PEERS or not PEERS[side].bfloat16_weights
            for remat in remats(stage, side)
            for size in arguments.size
            if side != "released" or shape_of(size).family == RELEASED
            for length in lengths
        ]
    except ValueError as error:
        raise FlagError(f"--lengths={','.join(map(str, lengths))}: {error}") from None
    if not tasks:
        raise UserError("nothing is left to measure")
    return tasks


def write_results(results: Sequence[dict[str, Any]], folder: Path, machine: str, card: gpu.Card | None) -> None:
    """Writes benchmark.json."""
    exponents = growth.exponents(growth.lines_of(results))
    figures = {"machine": machine, "card": card and card._asdict(), "results": results, "growth": exponents}
    content = json.dumps(files.json_ready(figures), indent=1)
    files.replace_file(folder / "benchmark.json", f"{content}\n".encode())


def print_results(results: Sequence[dict[str, Any]], folder: Path, machine: str, card: gpu.Card | None) -> None:
    """Prints the tables; draws benchmark.png where there are several lengths."""
    lines = growth.lines_of(results)
    exponents, columns = growth.exponents(lines), growth.columns(card)
    print(tables.markdown_table([growth.result_cells(result, card) for result in results], columns))
    if len({result["length"] for result in results}) > 1:
        print()
        print(tables.markdown_table(exponents, list(exponents[0])))
        print(f"\nplot: {plots.plot_growth(growth.panels(lines), folder / 'benchmark.png', machine)}")
    print(f"figures: {folder / 'benchmark.json'}")


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not sys.platform.startswith("linux"):
        raise UserError("the benchmark reads peak memory from /proc and so needs Linux")
    card = gpu.card() if arguments.device == "gpu" else None
    stages = arguments.stages
    sides, others = choose_sides(arguments, stages)
    tasks = tasks_of(arguments, sides, stages)
    folder = files.make_folder(Path(arguments.output), "--output")
    where = f"{card.name}, {machine()}" if card else machine()
    write = lambda results: write_results(results, folder, where, card) if results else None
    results = time_tasks(tasks, arguments.repeats, others, arguments.together, arguments.seconds, write)
    if not results:
        raise UserError("every process ended before it was measured; their messages are above")
    print_results(results, folder, where, card)
    return 0 if len(results) == len(tasks) else cli.EXIT_ERROR
