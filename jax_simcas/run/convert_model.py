"""Rewriting a model in another layout: what `jax_simcas.convert` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jax_simcas.checkpoints import hub
from jax_simcas.checkpoints.hub import Pretrained
from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.run.build import load_weights
from jax_simcas.run.workdir import CHECKPOINTS

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def tokenizer_files(folder: Path) -> Iterable[Path]:
    """The files of the tokenizer in `folder`."""
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def convert(source: str, target: Path, layout: str, step: Any = "best") -> tuple[Pretrained, Path]:
    """Writes config.json, the weights in `layout`, the tokenizer and our settings into `target`.

    Raises:
      UserError: an unreadable source; a target that cannot be written or that holds weights in another layout.
    """
    others = [name for name in hub.WEIGHTS if name != hub.LAYOUTS[layout] and (target / name).exists()]
    if others or (target / CHECKPOINTS).exists():
        held = others[0] if others else CHECKPOINTS
        raise UserError(f"{target}: holds {held} already, which would be read in place of the new file; choose another")
    files.check_place(target, "DST", folder=True)
    found = load_weights(source, step)
    backbone = (found.extra or {}).get("backbone", "bart")
    if backbone != "bart":
        raise UserError(f"{source}: config.backbone={backbone!r}; only a BART can be written in these layouts")
    copy = [path for path in tokenizer_files(found.folder) if path.parent.resolve() != target.resolve()]
    return found, hub.save(target, found.config, found.params, layout, found.extra or None, copy)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare_jax()
    found, written = convert(arguments.source, Path(arguments.target), arguments.to, arguments.step)
    for note in found.notes:
        print(note, file=sys.stderr)
    selector = "with its selector" if "selector" in found.params else "which has no selector"
    print(f"{arguments.source} ({selector}) -> {written}")
    return 0
