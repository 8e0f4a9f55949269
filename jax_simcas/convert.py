"""Rewrites a model in another layout: the hub's, the authors' trainer's, or Flax msgpack. Exact to the bit."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas import pretrained, program
from jax_simcas import settings as settings_lib
from jax_simcas.bart.config import BartConfig
from jax_simcas.checkpoint import load_params
from jax_simcas.errors import UserError
from jax_simcas.workdir import CHECKPOINTS, CONFIG, TOKENIZER, checkpoint_step

EXAMPLES = """\
  python -m jax_simcas.convert runs/sumpubmed exported --to hf        # our workdir -> the hub's layout
  python -m jax_simcas.convert authors exported --to hf               # config.json and model_generation.bin
  python -m jax_simcas.convert facebook/bart-base flax-bart --to flax
  python -m jax_simcas.convert exported back --to released            # what the authors' code loads
"""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


class Source(NamedTuple):
    """What is converted."""

    config: BartConfig
    params: Any
    extra: dict[str, Any] | None
    tokenizer: Path  # the folder with its files, if it has any
    named: str
    notes: tuple[str, ...] = ()  # damaged checkpoints that were passed over


def read(source: str, step: Any = "best") -> Source:
    """A workdir's checkpoint, a folder with weights in any layout, or a hub id.

    Raises:
      UserError: none of these, or what is there does not fit together.
    """
    folder = Path(source)
    if (folder / CHECKPOINTS).is_dir():
        settings = settings_lib.read_json(folder / CONFIG)
        params, meta = load_params(folder / CHECKPOINTS, step)
        named = f"{source}, step {meta['step']}"
        return Source(settings.bart, params, dataclasses.asdict(settings), folder / TOKENIZER, named, meta["warnings"])
    loaded = pretrained.load(source)
    return Source(loaded.config, loaded.params, loaded.extra or None, loaded.folder, source)


def tokenizer_files(folder: Path) -> Iterable[Path]:
    """The files of the tokenizer in `folder`."""
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def convert(source: str, target: Path, layout: str, step: Any = "best") -> tuple[Source, Path]:
    """Writes config.json, the weights in `layout`, the tokenizer and our settings into `target`.

    Raises:
      UserError: an unreadable source, or a target that holds weights in another layout.
    """
    others = [name for name in pretrained.WEIGHTS if name != pretrained.LAYOUTS[layout] and (target / name).exists()]
    if others or (target / CHECKPOINTS).exists():
        held = others[0] if others else CHECKPOINTS
        raise UserError(f"{target}: holds {held} already, which would be read in place of the new file; choose another")
    found = read(source, step)
    copy = [path for path in tokenizer_files(found.tokenizer) if path.parent.resolve() != target.resolve()]
    return found, pretrained.save(target, found.config, found.params, layout, found.extra, copy)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    program.prepare()
    step = checkpoint_step(arguments.step)
    found, written = convert(arguments.source, Path(arguments.target), arguments.to, step)
    for note in found.notes:
        print(f"warning: {note}", file=sys.stderr)
    selector = "with its selector" if "selector" in found.params else "which has no selector"
    print(f"{found.named} ({selector}) -> {written}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = program.parser("convert", __doc__ or "", EXAMPLES)
    parser.add_argument("source", metavar="SRC", help="a workdir, a folder with weights in any layout, or a hub id")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--to", required=True, choices=pretrained.LAYOUTS, help="the layout of the weights")
    parser.add_argument("--step", default="best", help="of a workdir: best (default), latest or a number")
    arguments = parser.parse_args(argv)
    return program.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
