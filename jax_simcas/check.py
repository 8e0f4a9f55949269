"""Checks a pretrained model: reads it here and in transformers, runs both on a few texts, and compares.

Compared are the tokens around a text, encoder states, logits, loss, and generated tokens with the checkpoint's own
generation settings, in float32. Needs the extra `torch`. Weights are read here first, then in transformers, so that
memory has to hold one of the two at a time. Code and pickles that come with a model are never run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.check facebook/bart-base
  python -m jax_simcas.check FOLDER --long                      # several chunks too, aligned
  python -m jax_simcas.check FOLDER --text article.txt report.pdf --json=check.json
  python -m jax_simcas.check exported --reference=google/flan-t5-base     # a converted model, beside its source
"""
EXITS = f"{cli.EXITS}; 1 too where something differs"


def parser() -> cli.Parser:
    made = cli.parser("check", __doc__ or "", EXAMPLES, EXITS)
    made.add_argument(
        "model", type=cli.text, metavar="MODEL", help="a folder with weights in any layout, a hub id, or a workdir"
    )
    made.add_argument(
        "--text", type=cli.text, nargs="+", default=[], metavar="FILE", help="texts to read; default: built-in ones"
    )
    made.add_argument("--long", action="store_true", help="compare several chunks too, with mean and shift alignment")
    made.add_argument(
        "--reference",
        type=cli.text,
        metavar="MODEL",
        help="what transformers reads: a folder or a hub id; default: MODEL",
    )
    made.add_argument(
        "--max-length",
        type=cli.number(int, 2),
        metavar="N",
        help="most generated tokens, the start token included; default: the checkpoint's",
    )
    made.add_argument("--json", type=cli.output_file(".json"), metavar="FILE", help="also write the figures there")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.run import check_model

    return check_model.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
