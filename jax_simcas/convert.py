"""Rewrites a model in another layout: the hub's, the authors' trainer's, or Flax msgpack. Exact to the bit.

With --push the result is uploaded to the Hugging Face hub, with a model card. The token is that of HF_TOKEN or of
`hf auth login`, the address that of HF_ENDPOINT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.checkpoints.repository import HubId
from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.convert runs/sumpubmed exported --to hf        # our workdir -> the hub's layout
  python -m jax_simcas.convert authors exported --to hf               # config.json and model_generation.bin
  python -m jax_simcas.convert facebook/bart-base flax-bart --to flax
  python -m jax_simcas.convert exported back --to released            # what the authors' code loads
  python -m jax_simcas.convert runs/sumpubmed --push=OWNER/NAME --private
  python -m jax_simcas.convert runs/sumpubmed to-upload --push=OWNER/NAME --dry-run
"""
LAYOUTS = ("hf", "released", "flax")


def hub_id(text: str) -> HubId:
    """A flag's type: a repository to write to."""
    found = HubId.of(text)
    if found is None or "/" not in found.name:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected OWNER/NAME or OWNER/NAME@BRANCH, names of letters, digits, '-', '_' and '.'"
        )
    return found


def flags_together(arguments: Any) -> str:
    """What is wrong with flags that are right on their own."""
    if arguments.push is None:
        given = [flag for flag in ("private", "message", "dry_run") if getattr(arguments, flag)]
        if given:
            return f"--{given[0].replace('_', '-')}: only with --push=OWNER/NAME"
        return "" if arguments.target else "DST: give the folder to write, or --push=OWNER/NAME"
    if arguments.dry_run and not arguments.target:
        return "--dry-run: give DST, the folder that is to hold what would be uploaded"
    return ""


def parser() -> cli.Parser:
    made = cli.parser("convert", __doc__ or "", EXAMPLES)
    made.intermixed = True  # SRC --to hf DST
    made.add_argument(
        "source", type=cli.text, metavar="SRC", help="a workdir, a folder with weights in any layout, or a hub id"
    )
    made.add_argument(
        "target", type=cli.text, nargs="?", metavar="DST", help="the folder to write; with --push it may be left out"
    )
    made.add_argument("--to", default="hf", choices=LAYOUTS, help="the layout of the weights (hf: as transformers)")
    made.add_argument("--step", default="best", type=cli.step, help="of a workdir: best (default), latest or a number")
    group = made.add_argument_group("the hub")
    group.add_argument(
        "--push", type=hub_id, metavar="OWNER/NAME[@BRANCH]", help="upload there; repository and branch are made"
    )
    group.add_argument("--private", action="store_true", help="make a new repository private")
    group.add_argument("--message", type=cli.text, help="of the commit")
    group.add_argument("--dry-run", action="store_true", help="write what would be uploaded into DST, upload nothing")
    made.rules.append(flags_together)
    return made


def run(arguments: Any) -> int:
    from jax_simcas.run import convert_model

    return convert_model.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
