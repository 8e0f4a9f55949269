"""Times how long a checkpoint delays training, when written in the background and when training waits for it.

First a training step of the transformer is timed alone; then, after each save, the steps until the checkpoint is on
disk. The cost of a save is the time of `save` itself and of these steps, minus what the steps take alone.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jax_simcas.benchmark.stages import SIZES, Task, prepare_task
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import markdown_table

EXAMPLES = "  python -m jax_simcas.benchmark.checkpoint --size base --length 4096 --folder DIR"


def seconds(run: Callable[[], Any]) -> float:
    started = time.monotonic()
    run()
    return time.monotonic() - started


class TimedTraining:
    """A compiled training step and its state."""

    def __init__(self, task: Task) -> None:
        train, (self.state, *self._rest) = prepare_task(task)
        self._step = jax.jit(train, donate_argnums=0).lower(self.state, *self._rest).compile()

    def step(self) -> None:
        self.state = jax.block_until_ready(self._step(self.state, *self._rest)[0])

    def megabytes(self) -> float:
        arrays = (self.state.params, self.state.transformer_optimizer, self.state.selector_optimizer)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) / 1e6


def save_once(training: TimedTraining, checkpoints: Checkpointer, number: int, alone: float) -> dict[str, float]:
    """Seconds of one save, with training steps until it is on disk; `alone`: of a step without a save."""
    taken, steps = seconds(partial(checkpoints.save, number, training.state, None, {})), 0
    while not (saved := checkpoints.finished()):
        taken, steps = taken + seconds(training.step), steps + 1
    return {
        "stall": saved[0].stall_seconds,
        "on disk after": saved[0].write_seconds,
        "cost": taken - steps * alone,
    }


def time_saves(task: Task, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """One row for saving beside training and one for training that waits; medians of `repeats` saves."""
    training = TimedTraining(task)
    training.step()
    alone = statistics.median(seconds(training.step) for _ in range(repeats))
    rows, number = [], itertools.count(1)
    for asynchronous in (True, False):
        with Checkpointer(folder, keep_latest=1, keep_best=0, asynchronous=asynchronous) as checkpoints:
            save_once(training, checkpoints, next(number), alone)  # compiles the digests
            saves = [save_once(training, checkpoints, next(number), alone) for _ in range(repeats)]
        row: dict[str, Any] = {"state MB": training.megabytes(), "step alone": alone}
        row["saving"] = "beside training" if asynchronous else "training waits"
        rows.append(row | {name: statistics.median(save[name] for save in saves) for name in saves[0]})
    return rows


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    folder = files.make_folder(Path(arguments.folder), "--folder")
    if any(folder.iterdir()):
        raise UserError(f"--folder={folder}: not empty; give a new one")
    cli.prepare_jax()
    task = Task("transformer", size=arguments.size, length=arguments.length)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        rows = time_saves(task, Path(temporary), arguments.repeats)
    print(markdown_table(rows, list(rows[0])))
    return 0


def parser() -> cli.Parser:
    made = cli.parser("benchmark.checkpoint", __doc__ or "", EXAMPLES)
    made.add_argument("--size", default="base", choices=SIZES, help="of the model (default base)")
    made.add_argument("--length", type=cli.positive, default=4_096, help="tokens of the document (default 4096)")
    made.add_argument("--repeats", type=cli.positive, default=3, help="saves per kind (default 3)")
    made.add_argument("--folder", type=cli.text, required=True, help="a new folder on the disk to measure")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
