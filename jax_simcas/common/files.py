"""Files: atomic writes, locks, writable folders, and values that JSON can hold."""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax_simcas.common.errors import UserError

PathLike = str | os.PathLike[str]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system

LFS_POINTER = b"version https://git-lfs"


@contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """Turns an OSError into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "give a folder on a disk with space that you may write to"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it if all goes well; of several writers the last one wins.

    Its folder is created. The file gets the usual permissions, whatever a library that writes it chooses.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # half of it may fill the rest of a full disk


def replace_file(path: Path, content: bytes) -> None:
    """Writes a whole file or none: a writer that is killed leaves the old one.

    Raises:
      UserError: it cannot be written.
    """
    with writing(path), replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Holds an exclusive lock, and yields its file descriptor; a killed process releases the lock.

    A file system without locks, as some that are shared by machines, holds none: there nothing waits.

    Args:
      path: the lock file, which is created.
      on_wait: called if another process holds the lock, before waiting for it; may raise.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield file.fileno()


def check_no_pointer(path: Path) -> None:
    """Checks that a file is what it is called, and not the few lines that Git LFS puts in the place of a large one.

    Raises:
      UserError: it is; or it is not there.
    """
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if is_pointer:
        raise UserError(f"{path}: a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder")


def read_json(path: Path, missing: str) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it cannot be read; `missing` is what to say of a file that is not there.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: cannot be read as JSON (nested too deeply)") from None


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinities, which JSON lacks, as None; in dicts, lists and tuples as well."""
    if isinstance(value, Mapping):
        return {name: json_ready(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def probe_folder(folder: Any) -> None:
    """Creates `folder` (of pathlib or epath) and a file in it, which it removes again.

    Raises:
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{uuid.uuid4().hex}"
    probe.write_text("")
    probe.unlink()


def check_place(path: Path, name: str, folder: bool = False) -> None:
    """Checks that a file, or with `folder` a folder, can be written: before the work whose result it is to hold.

    Nothing is left behind, not even a folder that is missing.

    Raises:
      UserError: it cannot; `name` is the flag that gave it.
    """
    places = (path, *path.parents) if folder else path.parents
    try:
        if not folder and path.is_dir():
            raise UserError(f"{name}={path}: a folder; give a file")
        if not folder and path.exists() and not path.is_file():  # writing would put a file in place of a device
            raise UserError(f"{name}={path}: no regular file; give the name of one")
        place = next(there for there in places if there.exists())
        probe = place / f".writable-{uuid.uuid4().hex}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{name}={path}: cannot be written ({error.strerror}); choose another place") from None


def make_folder(folder: Path, name: str) -> Path:
    """Creates `folder` and checks that it can be written to.

    Raises:
      UserError: it cannot; `name` is the flag that gave it.
    """
    try:
        probe_folder(folder)
    except OSError as error:
        raise UserError(f"{name}={folder}: cannot be written ({error.strerror}); choose another folder") from None
    return folder


def not_utf8(data: bytes, otherwise: str, unpack: str = "unpack it first") -> str:
    """Why the first bytes of a file are no UTF-8: what they look like and what to do about it; else `otherwise`."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "not UTF-8 (it looks like UTF-16: save it as UTF-8)"
    return f"not UTF-8 (it looks like gzip: {unpack})" if data.startswith(b"\x1f\x8b") else f"not UTF-8 ({otherwise})"
