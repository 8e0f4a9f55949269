"""Gives the readers of files, settings and flags seeded odd input, and counts what they make of it.

Valid files of each kind are changed in one to three places: bytes flipped, cut, repeated or put in, and values of JSON
replaced by odd ones. Each must be read or refused by one line: another exception, a line that is long or none, more
than 60 seconds, a file that is left half written, or code that runs is a fault, printed with the command that repeats
it. Needs no accelerator and no network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.odd_input                               # 10,000 inputs of all kinds
  python -m jax_simcas.benchmark.odd_input --count 500 --kinds jsonl,csv --seed 7
  python -m jax_simcas.benchmark.odd_input --kinds safetensors --only 42 # one of them again, with its traceback
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.odd_input", __doc__ or "", EXAMPLES)
    made.add_argument("--count", type=cli.positive, default=10_000, help="inputs of all kinds together (default 10000)")
    made.add_argument("--kinds", type=cli.text, help="of input, with commas between them (default: all)")
    made.add_argument("--seed", type=cli.natural, default=0)
    made.add_argument("--seconds", type=cli.positive, default=60, help="after which reading counts as hanging")
    made.add_argument("--only", type=cli.natural, metavar="NUMBER", help="only this one of each kind, in this process")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import odd_runs

    return odd_runs.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
