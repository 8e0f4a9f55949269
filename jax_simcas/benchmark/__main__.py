"""Times the stages of the method against the length of the document: seconds, tokens/s, memory, growth."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from jax_simcas.backbones.ops.stacks import REMAT as REMATS
from jax_simcas.benchmark.stages import REMAT, SIDES, SIZES, STAGES, Task
from jax_simcas.common import cli, files, plots, progress, tables
from jax_simcas.common.errors import UserError

EXAMPLES = """\
  python -m jax_simcas.benchmark --stages encode --lengths 8192,16384,32768,65536
  python -m jax_simcas.benchmark --sides jax,torch --stages encode,transformer,generate --lengths 16384
  python -m jax_simcas.benchmark --released ~/SimCAS --released-python ~/released/bin/python --dtypes float32,bfloat16
  python -m jax_simcas.benchmark --quick
"""
QUICK = {"stages": "encode,select", "lengths": "2048,4096,8192", "size": "tiny", "repeats": 3}
COLUMNS = (
    *("stage", "side", "dtype", "tokens", "seconds", "spread", "tokens/s"),
    *("working MiB", "peak MiB", "compile s", "start s"),
)
LINE = ("stage", "side", "dtype")  # what one line of the plot is about
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Released:
    """The authors' code: the user's clone, and the Python that can run it."""

    clone: Path
    python: str

    def absent(self) -> str | None:
        """What is missing, in words; None if it can be run."""
        if not (self.clone / "modeling_bart_ours.py").is_file():
            return f"{self.clone} is no clone of xjw-nlp/SimCAS (no modeling_bart_ours.py)"
        needs = "import torch, transformers; assert transformers.__version__.startswith('4.')"
        try:
            probe = subprocess.run([self.python, "-c", needs], capture_output=True, check=False)
        except OSError as error:
            return f"--released-python={self.python}: {error.strerror}"
        if probe.returncode:
            return f"--released-python={self.python} lacks torch or transformers 4 (the authors used 4.42.4)"
        return None


def command(task: Task, released: Released | None) -> list[str]:
    """What starts the task's process."""
    fields = dataclasses.asdict(task)
    if task.side != "released":
        return [sys.executable, "-m", "jax_simcas.benchmark.worker", json.dumps(fields)]
    assert released is not None
    fields["bart"] = {k: v for k, v in task.bart.to_hf().items() if k not in ("architectures", "model_type")}
    script = Path(__file__).with_name("released.py")
    return [released.python, str(script), json.dumps(fields), str(released.clone.resolve())]


class Worker:
    """A process that holds one compiled task."""

    def __init__(self, task: Task, released: Released | None = None) -> None:
        self.task = task
        self._process = subprocess.Popen(
            command(task, released), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> dict[str, float]:
        """The next line of figures: start and memory first, then a run's seconds.

        Raises:
          UserError: the process ended instead; most often it ran out of memory.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UserError(
                f"{self.task.stage} ({self.task.side}) at {self.task.length} tokens: the process ended with code {code}"
            )
        return json.loads(line)

    def run(self) -> float:
        """Seconds of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self.read()["seconds"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def measure(tasks: list[Task], repeats: int, released: Released | None = None) -> list[dict[str, Any]]:
    """Figures of every task: all are compiled first, then run in turns, so that all see the same noise.

    A task whose process ends, most often for want of memory, is named on stderr and left out.
    """
    running: list[tuple[Worker, dict[str, Any]]] = []
    workers: list[Worker] = []
    try:
        with progress.Progress(len(tasks) * (repeats + 1), unit="runs") as bar:
            for task in tasks:
                workers.append(Worker(task, released))
                try:
                    running.append((workers[-1], dataclasses.asdict(task) | workers[-1].read() | {"seconds": []}))
                except UserError as error:
                    print(f"left out: {error}", file=sys.stderr)
                bar.update(1)
            for _ in range(repeats):
                for worker, result in list(running):
                    try:
                        result["seconds"].append(worker.run())
                    except (UserError, BrokenPipeError) as error:
                        print(f"left out: {error}", file=sys.stderr)
                        running.remove((worker, result))
                    bar.update(1)
    finally:
        for worker in workers:
            worker.close()
    return [result for _, result in running]


def exponent(lengths: list[int], values: Sequence[float | int]) -> float:
    """b of values ~ a * length^b, by least squares of the logarithms; NaN with fewer than two lengths."""
    if len(set(lengths)) < 2 or min(values) <= 0:
        return math.nan
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def growth(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponents of time and working memory of each stage, side and dtype."""
    out = []
    for line in dict.fromkeys(tuple(r[name] for name in LINE) for r in results):
        own = [r for r in results if tuple(r[name] for name in LINE) == line]
        lengths = [r["length"] for r in own]
        seconds = exponent(lengths, [median(r["seconds"]) for r in own])
        memory = exponent(lengths, [r["working_bytes"] for r in own])
        out.append({**dict(zip(LINE, line, strict=True)), "exponent of time": seconds, "exponent of memory": memory})
    return out


def as_panels(results: list[dict[str, Any]], summary: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Time and working memory of each line of the plot, labelled with its exponent."""
    seconds: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    for line in summary:
        own = [r for r in results if all(r[name] == line[name] for name in LINE)]
        label = " ".join(line[name] for name in LINE)
        seconds[f"{label}: {line['exponent of time']:.2f}"] = [(r["length"], median(r["seconds"])) for r in own]
        memory[f"{label}: {line['exponent of memory']:.2f}"] = [(r["length"], r["working_bytes"] / MIB) for r in own]
    return {"Seconds, and exponent": seconds, "Working memory in MiB, and exponent": memory}


def as_row(result: dict[str, Any]) -> dict[str, Any]:
    """A line of the table; the spread is half of what lies between the fastest and the slowest run."""
    seconds = median(result["seconds"])
    return {
        **{name: result[name] for name in LINE},
        "tokens": result["length"],
        "seconds": f"{seconds:.3g}",
        "spread": f"±{50 * (max(result['seconds']) - min(result['seconds'])) / seconds:.0f} %",
        "tokens/s": f"{result['length'] / seconds:.0f}",
        "working MiB": f"{result['working_bytes'] / MIB:.0f}",
        "peak MiB": f"{result['peak_bytes'] / MIB:.0f}",
        "compile s": f"{result['compile_seconds']:.1f}" if result["compile_seconds"] else "–",
        "start s": f"{result['prepare_seconds']:.1f}",
    }


def names(text: str, allowed: Any, flag: str) -> list[str]:
    """A comma-separated flag.

    Raises:
      UserError: a value that is not allowed.
    """
    given = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in given if name not in allowed]
    if wrong or not given:
        raise UserError(f"{flag}={text}: expected some of {', '.join(allowed)}")
    return given


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not sys.platform.startswith("linux"):
        raise UserError("the benchmark reads peak memory from /proc and so needs Linux")
    sides, stages = names(arguments.sides, SIDES, "--sides"), names(arguments.stages, STAGES, "--stages")
    released = None
    if arguments.released:
        released = Released(Path(arguments.released), arguments.released_python)
        sides = list(dict.fromkeys([*sides, "released"]))
    if "released" in sides:
        missing = "give --released PATH, a clone of xjw-nlp/SimCAS" if released is None else released.absent()
        if missing:
            print(f"skipped: the released code: {missing}", file=sys.stderr)
            sides.remove("released")
    for side in sides:
        lacking = [stage for stage in stages if stage not in SIDES[side]]
        if lacking:
            print(f"skipped: side {side} has no stage {', '.join(lacking)}", file=sys.stderr)
    try:
        shape = {name: getattr(arguments, name) for name in ("chunk_length", "target", "selected", "remat")}
        lengths = sorted({int(length) for length in arguments.lengths.split(",")})
        tasks = [
            Task(stage, side, arguments.size, length, dtype, **shape)
            for stage in stages
            for side in sides
            if stage in SIDES[side]
            for dtype in names(arguments.dtypes, ("float32", "bfloat16"), "--dtypes")
            for length in lengths
        ]
    except ValueError as error:
        raise UserError(str(error)) from None
    if not tasks:
        raise UserError("nothing is left to measure")
    folder = files.make_folder(Path(arguments.output), "--output")
    results = measure(tasks, arguments.repeats, released)
    if not results:
        raise UserError("every process ended before it was measured; its own words are above")
    summary = growth(results)
    (folder / "benchmark.json").write_text(
        json.dumps(files.json_ready({"results": results, "growth": summary}), indent=1) + "\n", encoding="utf-8"
    )
    print(tables.markdown_table([as_row(result) for result in results], COLUMNS))
    if len(lengths) > 1:
        print()
        print(tables.markdown_table(summary, list(summary[0])))
        print(f"\nplot: {plots.plot_growth(as_panels(results, summary), folder / 'benchmark.png')}")
    print(f"figures: {folder / 'benchmark.json'}")
    return 0 if len(results) == len(tasks) else 1


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("benchmark", __doc__ or "", EXAMPLES)
    parser.add_argument("--stages", default="encode", help=f"some of {', '.join(STAGES)} (default encode)")
    parser.add_argument("--sides", default="jax", help="some of jax, torch (the peer; needs torch) and released")
    parser.add_argument("--released", metavar="PATH", help="a clone of the authors' code: adds the side released")
    parser.add_argument("--released-python", metavar="PY", default=sys.executable, help="that has transformers 4.42.4")
    parser.add_argument("--lengths", default="8192,16384,32768,65536", help="tokens of the document")
    parser.add_argument("--size", default="base", choices=SIZES, help="of the model (default base)")
    parser.add_argument("--dtypes", default="float32", help="float32, bfloat16 or both")
    parser.add_argument("--chunk-length", type=cli.positive, default=512)
    parser.add_argument("--target", type=cli.positive, default=256, help="tokens of the summary")
    parser.add_argument("--selected", type=cli.positive, default=2_048, help="states that generation reads")
    parser.add_argument("--remat", default=REMAT, choices=REMATS, help=f"in our training steps (default {REMAT})")
    parser.add_argument("--repeats", type=cli.positive, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--output", default="runs/benchmark", help="for benchmark.json and benchmark.png")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short documents; under two minutes")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**QUICK)  # what was given explicitly stays
        arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
