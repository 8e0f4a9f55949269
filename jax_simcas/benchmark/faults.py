"""Disturbs the programs, lets them end, and compares what they leave with what undisturbed ones leave.

kills: training, making a cache of tokens, evaluation and an experiment are ended by SIGKILL, SIGTERM or Ctrl-C at
random moments and started again, until they end by themselves. disk: the disk is full after a random number of bytes.
workdir: two trainings in one folder. clock: set back by days. processes: one of two and of four is killed or stopped,
or they lose their connection for 20 s. A wrong number, a file that is not whole, a traceback or an unexpected exit
code is a fault. `benchmark.damage` damages checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

KINDS = ("kills", "disk", "workdir", "clock", "processes")
EXAMPLES = """\
  python -m jax_simcas.benchmark.faults                        # all of them: hours
  python -m jax_simcas.benchmark.faults --only kills --kills 20 --seed 1
  python -m jax_simcas.benchmark.faults --only disk,workdir,clock --fills 5
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.faults", __doc__ or "", EXAMPLES)
    made.add_argument("--kills", type=cli.positive, default=100, help="of all programs together (default 100)")
    made.add_argument("--fills", type=cli.positive, default=20, help="of the disk (default 20)")
    made.add_argument("--seed", type=cli.natural, default=0, help="of the moments (default 0)")
    made.add_argument("--only", type=cli.some_of(KINDS), default=KINDS, help=f"of {', '.join(KINDS)} (default all)")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import fault_runs

    return fault_runs.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
