"""Rewrites a model in another layout: the hub's, the authors' trainer's, or Flax msgpack. Exact to the bit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.convert runs/sumpubmed exported --to hf        # our workdir -> the hub's layout
  python -m jax_simcas.convert authors exported --to hf               # config.json and model_generation.bin
  python -m jax_simcas.convert facebook/bart-base flax-bart --to flax
  python -m jax_simcas.convert exported back --to released            # what the authors' code loads
"""
LAYOUTS = ("hf", "released", "flax")


def parser() -> cli.Parser:
    made = cli.parser("convert", __doc__ or "", EXAMPLES)
    made.add_argument(
        "source", type=cli.text, metavar="SRC", help="a workdir, a folder with weights in any layout, or a hub id"
    )
    made.add_argument("target", type=cli.text, metavar="DST", help="the folder to write")
    made.add_argument("--to", required=True, choices=LAYOUTS, help="the layout of the weights")
    made.add_argument("--step", default="best", type=cli.step, help="of a workdir: best (default), latest or a number")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.run import convert_model

    return convert_model.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
