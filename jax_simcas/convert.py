"""Rewrites a model in another layout: the hub's, the authors' trainer's, or Flax msgpack. Exact to the bit."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jax_simcas.checkpoints import hub
from jax_simcas.checkpoints.hub import Pretrained
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.run.build import checkpoint_step, load_weights
from jax_simcas.run.workdir import CHECKPOINTS

EXAMPLES = """\
  python -m jax_simcas.convert runs/sumpubmed exported --to hf        # our workdir -> the hub's layout
  python -m jax_simcas.convert authors exported --to hf               # config.json and model_generation.bin
  python -m jax_simcas.convert facebook/bart-base flax-bart --to flax
  python -m jax_simcas.convert exported back --to released            # what the authors' code loads
"""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def tokenizer_files(folder: Path) -> Iterable[Path]:
    """The files of the tokenizer in `folder`."""
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def convert(source: str, target: Path, layout: str, step: Any = "best") -> tuple[Pretrained, Path]:
    """Writes config.json, the weights in `layout`, the tokenizer and our settings into `target`.

    Raises:
      UserError: an unreadable source, or a target that holds weights in another layout.
    """
    others = [name for name in hub.WEIGHTS if name != hub.LAYOUTS[layout] and (target / name).exists()]
    if others or (target / CHECKPOINTS).exists():
        held = others[0] if others else CHECKPOINTS
        raise UserError(f"{target}: holds {held} already, which would be read in place of the new file; choose another")
    found = load_weights(source, step)
    copy = [path for path in tokenizer_files(found.folder) if path.parent.resolve() != target.resolve()]
    return found, hub.save(target, found.config, found.params, layout, found.extra or None, copy)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare()
    step = checkpoint_step(arguments.step)
    found, written = convert(arguments.source, Path(arguments.target), arguments.to, step)
    for note in found.notes:
        print(note, file=sys.stderr)
    selector = "with its selector" if "selector" in found.params else "which has no selector"
    print(f"{arguments.source} ({selector}) -> {written}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("convert", __doc__ or "", EXAMPLES)
    parser.add_argument("source", metavar="SRC", help="a workdir, a folder with weights in any layout, or a hub id")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--to", required=True, choices=hub.LAYOUTS, help="the layout of the weights")
    parser.add_argument("--step", default="best", help="of a workdir: best (default), latest or a number")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
