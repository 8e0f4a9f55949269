"""A run's folder: its settings, tokenizer, checkpoints and figures.

WORKDIR/config.json        settings          WORKDIR/checkpoints/      latest and best
WORKDIR/tokenizer/         tokenizer         WORKDIR/metrics.jsonl     figures, one line per log step
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from etils import epath

from jax_simcas.common import files
from jax_simcas.common.errors import UserError
from jax_simcas.common.metric_log import METRICS

CONFIG, TOKENIZER, CHECKPOINTS = "config.json", "tokenizer", "checkpoints"
LOCK = ".lock"


class Workdir(NamedTuple):
    """A run's folder. The small files of one in a bucket (gs://...) live in a local copy, which `publish` uploads."""

    local: Path
    checkpoints: str
    remote: epath.Path | None

    @classmethod
    def at(cls, where: str | os.PathLike[str], cache: Path) -> Workdir:
        """Opens the folder; downloads the small files of one in a bucket.

        Raises:
          UserError: it cannot be written, or the bucket cannot be read.
        """
        name = str(where)
        if "://" not in name:
            local = files.make_folder(Path(where), "--workdir")
            return cls(local, str(local / CHECKPOINTS), None)
        name = name.rstrip("/")
        local = cache / "workdirs" / hashlib.sha256(name.encode()).hexdigest()[:20]
        files.make_folder(local, f"--workdir={name}: its local copy")
        try:
            remote = epath.Path(name)
            top = [path for path in remote.iterdir() if path.name != CHECKPOINTS] if remote.exists() else []
            found = [file for entry in top for file in _files(entry)]
            for path in found:
                inside = path.relative_to(remote)
                if ".." in inside.parts:  # an object's name may be any text
                    raise UserError(f"--workdir={name}: has {inside}, which would be written outside its local copy")
                files.replace_file(local / inside, path.read_bytes())
            in_bucket = {local / path.relative_to(remote) for path in found}
            for path in local.rglob("*"):  # of a folder that has been emptied
                if path.is_file() and not path.name.startswith(".") and path not in in_bucket:
                    path.unlink()
        except UserError:
            raise
        except Exception as error:  # fsspec's libraries raise many types
            raise UserError(f"--workdir={name}: cannot be read ({error}); gs:// needs gcsfs and credentials") from None
        return cls(local, f"{name}/{CHECKPOINTS}", remote)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other trainings out for as long as this process lives. Of a folder in a bucket, only on this machine.

        Raises:
          UserError: another training has it.
        """
        name = self.remote or self.local

        def refuse() -> None:
            raise UserError(f"--workdir={name}: another training is at work there; wait for it, or choose another one")

        path = self.local / LOCK
        with files.writing(path):
            path.touch()
        with files.locked(path, refuse):
            yield

    def begun(self) -> bool:
        """Whether a run has taken a step here: figures were logged, or a checkpoint begun."""
        figures, checkpoints = self.local / METRICS, epath.Path(self.checkpoints)
        return (figures.exists() and figures.stat().st_size > 0) or (
            checkpoints.is_dir() and any(path.name[0].isdigit() for path in checkpoints.iterdir())
        )

    def publish(self) -> None:
        """Uploads the small files, if the folder is in a bucket.

        Raises:
          UserError: they cannot be written there.
        """
        if self.remote is None:
            return
        try:
            for path in self.local.rglob("*"):
                if path.is_file() and not path.name.startswith("."):
                    there = self.remote / path.relative_to(self.local).as_posix()
                    there.parent.mkdir(parents=True, exist_ok=True)
                    there.write_bytes(path.read_bytes())
        except Exception as error:
            raise UserError(f"--workdir={self.remote}: cannot be written ({error})") from None


def _files(path: epath.Path) -> Iterator[epath.Path]:
    """The file, or all in the folder and the folders in it; epath refuses the glob `**` in a bucket."""
    if path.is_dir():
        for entry in path.iterdir():
            yield from _files(entry)
    else:
        yield path
