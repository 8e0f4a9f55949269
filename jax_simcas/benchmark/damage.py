"""Damages each region of a training checkpoint, one after the other, and restores.

Two steps of a small model are saved. Of the newer one, each file is cut into regions (of all files together --count of
them); in each region a byte is flipped, from there on the file is cut off, the region is filled with zeros, or left
out; and each file is removed. What is restored must be the newer step as it was saved (the damage is harmless), or the
older one, with a line that names what was skipped. Anything else is a fault: wrong numbers, none, or a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.damage                # 600 damages
  python -m jax_simcas.benchmark.damage --count 5000 --seed 1
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.damage", __doc__ or "", EXAMPLES)
    made.add_argument("--count", type=cli.positive, default=600, help="damages, about (default 600)")
    made.add_argument("--seed", type=cli.natural, default=0)
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import damage_runs

    return damage_runs.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
