"""Times the input pipeline alone, without and with the token cache, and measures its memory.

Writes a JSONL file of random English-like documents and trains a tokenizer on it, unless the folder has them already;
reads part of an epoch by tokenising; builds the cache, and reads a whole epoch from it. Real text has more different
words and takes longer to tokenise. "sorted": with data.bucket_batches, for less padding. "MiB added": peak growth of
the memory of all processes after the first 2 % of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.input --folder DIR --consumed 870       # 100,000 documents of 4,000 to 16,000 tokens
  python -m jax_simcas.benchmark.input --folder DIR --rows 2000 --workers 0,2,4
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.input", __doc__ or "", EXAMPLES)
    made.add_argument(
        "--folder",
        required=True,
        type=cli.text,
        help="for documents and tokens, about 60 KB per row; another run reuses it",
    )
    made.add_argument("--rows", type=cli.positive, default=100_000, help="documents (default 100000)")
    made.add_argument(
        "--tokens",
        type=cli.numbers(1, count=2),
        default=(4_000, 16_000),
        help="approximate minimum and maximum per document",
    )
    made.add_argument("--sample", type=cli.positive, default=2_000, help="rows to tokenise while reading")
    made.add_argument(
        "--workers", type=cli.numbers(0), default=(0, 2), help="processes that prepare batches (default 0,2)"
    )
    made.add_argument("--batch-size", type=cli.positive, default=8)
    made.add_argument("--chunk-length", type=cli.positive, default=512)
    made.add_argument("--max-input-len", type=cli.positive, default=16_384)
    made.add_argument("--read", type=cli.positive, help="rows to read from the cache (default: an epoch)")
    made.add_argument(
        "--bucket-batches", type=cli.natural, default=32, help="sorted together (default 32); 0: not measured"
    )
    made.add_argument(
        "--consumed", type=cli.number(float, 0), help="tokens/s that a training step consumes, to compare"
    )
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import input_speed

    return input_speed.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
