"""Files: the one atomic writer, writable folders, and values that JSON can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax_simcas.common.errors import UserError

PathLike = str | os.PathLike[str]


@contextmanager
def writing(path: PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "give a folder on a disk with space that you may write to"
        ) from None


def replace_file(path: Path, content: bytes) -> None:
    """Writes a whole file or none: what is killed half way leaves the old one."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # half of it may fill the rest of a full disk


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinities, which JSON lacks, as None; in dicts, lists and tuples as well."""
    if isinstance(value, Mapping):
        return {name: json_ready(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(folder: Path, name: str) -> Path:
    """Creates `folder` and checks that it can be written to.

    Raises:
      UserError: it cannot; `name` is the flag that gave it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{name}={folder}: cannot be written ({error.strerror}); choose another folder") from None
    return folder
