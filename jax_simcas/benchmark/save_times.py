"""Seconds that a checkpoint takes from training: what `jax_simcas.benchmark.checkpoint` runs."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jax_simcas.benchmark.stages import Task, prepare_task
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import markdown_table


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
    rows = []
    for size in arguments.size:
        task = Task("transformer", size=size, length=arguments.length)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            rows += [{"model": size} | row for row in time_saves(task, Path(temporary), arguments.repeats)]
    print(markdown_table(rows, list(rows[0])))
    return 0
