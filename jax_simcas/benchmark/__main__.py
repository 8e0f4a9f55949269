"""Times the stages of the method against the length of the document: seconds, tokens/s, memory, growth."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_simcas.backbones.ops.stacks import REMAT as REMATS
from jax_simcas.benchmark import growth
from jax_simcas.benchmark.stages import DTYPES, REMAT, SIDES, SIZES, STAGES, Task
from jax_simcas.benchmark.timing import Released, check_torch, machine, time_tasks
from jax_simcas.common import cli, files, plots, tables
from jax_simcas.common.errors import UserError

EXAMPLES = """\
  python -m jax_simcas.benchmark --stages encode --lengths 8192,16384,32768,65536
  python -m jax_simcas.benchmark --sides jax,torch --stages encode,transformer,generate --lengths 16384
  python -m jax_simcas.benchmark --released ~/SimCAS --released-python ~/released/bin/python --dtypes float32,bfloat16
  python -m jax_simcas.benchmark --quick
"""
QUICK = {"stages": "encode,select", "lengths": "2048,4096,8192", "size": "tiny", "repeats": 3}


def some_of(text: str, allowed: Any, flag: str) -> list[str]:
    """A comma-separated flag.

    Raises:
      UserError: a value that is not allowed, or none.
    """
    names = cli.names(text)
    if not names or any(name not in allowed for name in names):
        raise UserError(f"{flag}={text}: expected some of {', '.join(allowed)}")
    return names


def lengths_of(text: str) -> list[int]:
    """--lengths, in order.

    Raises:
      UserError: not whole numbers.
    """
    try:
        return sorted({int(length) for length in text.split(",")})
    except ValueError:
        raise UserError(f"--lengths={text}: expected whole numbers between commas, such as 8192,16384") from None


def choose_sides(arguments: Any, stages: Sequence[str]) -> tuple[list[str], Released | None]:
    """The sides that can run, and the released code; what is skipped is named on stderr.

    Raises:
      UserError: an unknown side, or PyTorch is missing.
    """
    sides = some_of(arguments.sides, SIDES, "--sides")
    check_torch(sides)
    released = Released(Path(arguments.released), arguments.released_python) if arguments.released else None
    if released:
        sides = list(dict.fromkeys([*sides, "released"]))
    if "released" in sides:
        problem = released.problem() if released else "give --released PATH, a clone of xjw-nlp/SimCAS"
        if problem:
            print(f"skipped: the released code: {problem}", file=sys.stderr)
            sides.remove("released")
    for side in sides:
        lacking = [stage for stage in stages if stage not in SIDES[side]]
        if lacking:
            print(f"skipped: side {side} has no stage {', '.join(lacking)}", file=sys.stderr)
    return sides, released


def tasks_of(arguments: Any, sides: Sequence[str], stages: Sequence[str]) -> list[Task]:
    """Every stage on every side that has it, in every dtype and length.

    Raises:
      UserError: a length that is too short, or nothing to measure.
    """
    shape = {name: getattr(arguments, name) for name in ("chunk_length", "target", "selected", "remat")}
    lengths, dtypes = lengths_of(arguments.lengths), some_of(arguments.dtypes, DTYPES, "--dtypes")
    try:
        tasks = [
            Task(stage, side, arguments.size, length, dtype, **shape)
            for stage in stages
            for side in sides
            if stage in SIDES[side]
            for dtype in dtypes
            for length in lengths
        ]
    except ValueError as error:
        raise UserError(f"--lengths={arguments.lengths}: {error}") from None
    if not tasks:
        raise UserError("nothing is left to measure")
    return tasks


def print_results(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """Prints the tables; writes benchmark.json and, where there are several lengths, benchmark.png."""
    exponents = growth.growth(results)
    content = json.dumps(files.json_ready({"results": results, "growth": exponents}), indent=1)
    files.replace_file(folder / "benchmark.json", f"{content}\n".encode())
    print(tables.markdown_table([growth.result_cells(result) for result in results], growth.COLUMNS))
    if len({result["length"] for result in results}) > 1:
        print()
        print(tables.markdown_table(exponents, list(exponents[0])))
        print(f"\nplot: {plots.plot_growth(growth.panels(results), folder / 'benchmark.png', machine())}")
    print(f"figures: {folder / 'benchmark.json'}")


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not sys.platform.startswith("linux"):
        raise UserError("the benchmark reads peak memory from /proc and so needs Linux")
    stages = some_of(arguments.stages, STAGES, "--stages")
    sides, released = choose_sides(arguments, stages)
    tasks = tasks_of(arguments, sides, stages)
    folder = files.make_folder(Path(arguments.output), "--output")
    results = time_tasks(tasks, arguments.repeats, released)
    if not results:
        raise UserError("every process ended before it was measured; their messages are above")
    print_results(results, folder)
    return 0 if len(results) == len(tasks) else cli.EXIT_ERROR


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("benchmark", __doc__ or "", EXAMPLES)
    parser.add_argument("--stages", default="encode", help=f"some of {', '.join(STAGES)} (default encode)")
    parser.add_argument(
        "--sides", default="jax", help="some of jax, torch (the PyTorch peer; needs torch) and released"
    )
    parser.add_argument("--released", metavar="PATH", help="a clone of the authors' code: adds the side released")
    parser.add_argument(
        "--released-python", metavar="PY", default=sys.executable, help="a Python with torch and transformers 4.42.4"
    )
    parser.add_argument("--lengths", default="8192,16384,32768,65536", help="tokens of the document")
    parser.add_argument("--size", default="base", choices=SIZES, help="of the model (default base)")
    parser.add_argument("--dtypes", default="float32", help="float32, bfloat16 or both")
    parser.add_argument("--chunk-length", type=cli.positive, default=512)
    parser.add_argument("--target", type=cli.positive, default=256, help="tokens of the summary")
    parser.add_argument("--selected", type=cli.positive, default=2_048, help="states that generation reads")
    parser.add_argument("--remat", default=REMAT, choices=REMATS, help=f"in our training steps (default {REMAT})")
    parser.add_argument("--repeats", type=cli.positive, default=5, help="timed runs per task (default 5)")
    parser.add_argument("--output", default="runs/benchmark", help="for benchmark.json and benchmark.png")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short documents; under two minutes")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**QUICK)  # flags given explicitly keep their values
        arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
