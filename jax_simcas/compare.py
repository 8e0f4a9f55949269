"""Compares evaluations: a table and bars, each score with its own interval.

For the difference of two evaluations of the same documents, with its own interval,
see `python -m jax_simcas.evaluate --compare A B`, which pairs the documents.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli
from jax_simcas.run.overrides import tokenizer_name

EXAMPLES = """\
  python -m jax_simcas.compare SimCAS=runs/a/evaluation/test 'one chunk=runs/b/evaluation/test' --plot=table.png
  python -m jax_simcas.compare SimCAS=runs/a/evaluation/test 'one chunk=runs/b/evaluation/test' \\
      --measures=authors/rougeLsum
"""


def parser() -> cli.Parser:
    made = cli.parser("compare", __doc__ or "", EXAMPLES)
    made.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="evaluation folders with scores.json")
    made.add_argument(
        "--measures", type=cli.names, default=[], help="scores to show; default: all but authors/..., of prepared texts"
    )
    made.add_argument(
        "--rouge-tokenizer",
        type=tokenizer_name,
        metavar="WORDS",
        help="words that ROUGE counts: auto, rouge-score, unicode, unicode:LANGUAGE; default: the evaluations' own",
    )
    made.add_argument("--plot", type=cli.output_file(".png"), metavar="PNG", help="also draw bars with intervals")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.run import compare_runs

    return compare_runs.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
