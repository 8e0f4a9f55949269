"""Times `summarize(list)`, which works in batches, against `summarize(text)` in a loop, on documents of random words.

The model has random weights. A first pass of each side compiles (the loop comes second and finds the encoder's programs
compiled); then the two take turns on parts of the documents. "MiB added": the most that the longest documents add to
the memory of the process, once compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.benchmark import __main__ as benchmark
from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.summarize_speed
  python -m jax_simcas.benchmark.summarize_speed --model base --documents 32 --max-length 128
"""
MODELS = ("small", *benchmark.MODELS)


def parser() -> cli.Parser:
    made = cli.parser("benchmark.summarize_speed", __doc__ or "", EXAMPLES)
    made.add_argument(
        *("--model", "--size"),
        dest="size",
        type=cli.one_of(MODELS),
        default="small",
        metavar="MODEL",
        help=f"one of {', '.join(MODELS)} (default small: a BART of width 256)",
    )
    made.add_argument("--documents", type=cli.positive, default=200, help="(default 200)")
    made.add_argument(
        "--tokens", type=cli.numbers(1, count=2), default=(2_000, 6_000), help="fewest and most of a document"
    )
    made.add_argument("--part", type=cli.positive, default=40, help="documents per turn (default 40)")
    made.add_argument("--batch-size", type=cli.positive, help="documents at a time (default: by their length)")
    made.add_argument("--chunk-length", type=cli.number(int, 3), default=512)
    made.add_argument("--num-beams", type=cli.positive, default=4)
    made.add_argument("--max-length", type=cli.number(int, 2), default=128, help="tokens of a summary (default 128)")
    made.add_argument("--seed", type=cli.seed, default=0, help="of documents and weights")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import summarize_times

    return summarize_times.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
