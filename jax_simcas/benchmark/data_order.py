"""Checks that a run which is killed and resumed reads the rows of an undisturbed one, in the same order.

Writes a file of short random documents, and reads it as training does: once undisturbed, in one process, and
once in processes that are killed (SIGKILL) at random moments and resumed from the newest checkpoint, each time in
another number of processes and with some number of workers. The processes take each step together and save what
checkpoints of training hold of the order: the step. Every row that every process read is compared by step and place:
its number, its tokens and its drawn target. "file": tokenised while reading; "cache, sorted": from the token cache,
with data.bucket_batches. "steps again": those between a checkpoint and a kill, which the resumed run repeats.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.data_order                                # 100,000 rows, 20 kills per line
  python -m jax_simcas.benchmark.data_order --rows 2000 --kills 4
  python -m jax_simcas.benchmark.data_order --processes 1,2 --workers 0 --epochs 3 --seed 1
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.data_order", __doc__ or "", EXAMPLES)
    made.add_argument("--rows", type=cli.positive, default=100_000, help="documents (default 100000)")
    made.add_argument("--kills", type=cli.natural, default=20, help="of each run (default 20)")
    made.add_argument("--epochs", type=cli.positive, default=2, help="passes over the rows (default 2)")
    made.add_argument("--seed", type=cli.seed, default=0, help="of the rows, their order and the kills (default 0)")
    made.add_argument(
        "--processes", type=cli.numbers(1), default=(1, 2, 3, 4), help="numbers that take turns (default 1,2,3,4)"
    )
    made.add_argument(
        "--workers", type=cli.numbers(0), default=(0, 1, 2), help="of each process, at random (default 0,1,2)"
    )
    made.add_argument("--batch-size", type=cli.positive, default=24, help="of all processes together (default 24)")
    made.add_argument(
        "--bucket-batches", type=cli.positive, default=32, help="sorted together in the sorted run (default 32)"
    )
    made.add_argument("--save-every", type=cli.positive, default=40, help="steps per checkpoint (default 40)")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import order_check

    return order_check.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
