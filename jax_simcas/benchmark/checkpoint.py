"""How long a checkpoint holds training up, with the arrays written beside the next steps and with training waiting.

A training step of the transformer is timed alone; then, after each save, steps until the checkpoint is on disk. What a
save costs is the time of `save` itself and of these steps, less what the steps take alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jax_simcas.benchmark.stages import SIZES, Task, prepare
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import markdown_table

EXAMPLES = "  python -m jax_simcas.benchmark.checkpoint --size base --length 4096 --folder DIR"


def seconds(run: Callable[[], Any]) -> float:
    started = time.monotonic()
    run()
    return time.monotonic() - started


def measure(task: Task, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """A row for saving beside training and one for saving while training waits; medians of `repeats` saves."""
    train, (state, *rest) = prepare(task)
    compiled = jax.jit(train, donate_argnums=0).lower(state, *rest).compile()

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, *rest)[0])

    step()
    alone = statistics.median(seconds(step) for _ in range(repeats))
    rows, number = [], 0
    for asynchronous in (True, False):
        found: dict[str, list[float]] = {"stall": [], "on disk after": [], "cost": []}
        with Checkpointer(folder, keep_latest=1, keep_best=0, asynchronous=asynchronous) as checkpoints:
            for repeat in range(repeats + 1):
                number += 1
                taken, steps = seconds(partial(checkpoints.save, number, state, None, {})), 0
                while not (saved := checkpoints.finished()):
                    taken, steps = taken + seconds(step), steps + 1
                if repeat:  # the first one compiles the digests
                    figures = (saved[0].stall_seconds, saved[0].write_seconds, taken - steps * alone)
                    for values, value in zip(found.values(), figures, strict=True):
                        values.append(value)
        saving = "beside training" if asynchronous else "training waits"
        rows.append({"saving": saving, **{name: statistics.median(values) for name, values in found.items()}})
    arrays = (state.params, state.transformer_optimizer, state.selector_optimizer)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    return [{"state MB": size / 1e6, "step alone": alone, **row} for row in rows]


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    folder = files.make_folder(arguments.folder, "--folder")
    if any(folder.iterdir()):
        raise UserError(f"--folder={folder}: not empty; give a new one")
    cli.prepare()
    rows = measure(Task("transformer", size=arguments.size, length=arguments.length), folder, arguments.repeats)
    print(markdown_table(rows, list(rows[0])))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("benchmark.checkpoint", __doc__ or "", EXAMPLES)
    parser.add_argument("--size", default="base", choices=SIZES, help="of the model (default base)")
    parser.add_argument("--length", type=cli.positive, default=4_096, help="tokens of the document (default 4096)")
    parser.add_argument("--repeats", type=cli.positive, default=3, help="saves of each kind (default 3)")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder on the disk to measure")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
