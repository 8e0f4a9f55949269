"""The pages of what was kept: where they go, and an index of those of several documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jax_simcas.common import files
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation import highlight
from jax_simcas.evaluation.highlight import Linked, Shown

INDEX = "index.html"


class Pages:
    """One page for each of `count` documents: in `path` itself for one, else beside it with `path` as their index.

    Raises:
      UserError: `path`, which a flag --html gave, is a folder or one of the `documents`, or cannot be written.
    """

    def __init__(self, path: Path, count: int, documents: Sequence[Path] = ()) -> None:
        files.check_place(path, "--html")
        if path.exists() and any(each.exists() and path.samefile(each) for each in documents):
            raise UserError(f"--html={path}: that is one of the documents; give the name of another file")
        self.path, self._folder = path, None if count == 1 else path.with_name(f"{path.stem}_files")
        if self._folder:
            files.check_place(self._folder, "--html", folder=True)
        self._linked: list[Linked] = []

    def write(self, number: int, shown: Shown) -> None:
        """Writes a document's page, whole or not at all."""
        if self._folder is None:
            write_page(self.path, shown)
            return
        file = self._folder / f"{number}.html"
        write_page(file, shown)
        self._linked.append(Linked(shown.name, f"{self._folder.name}/{file.name}", cells(shown)))

    def finish(self) -> None:
        """Writes the index of several documents."""
        if self._folder is not None:
            write_index(self.path, "What was kept", self._linked)


def write_page(path: Path, shown: Shown) -> None:
    files.replace_file(path, highlight.page(shown).encode())


def write_index(path: Path, title: str, documents: Sequence[Linked]) -> None:
    files.replace_file(path, highlight.index(title, documents).encode())


def cells(shown: Shown) -> Mapping[str, str]:
    """A document's line in the index."""
    kept = shown.read.kept
    return {
        "tokens": f"{len(kept):,}",
        "kept": f"{100 * kept.mean() if len(kept) else 0:.1f} %",
        "summary": shown.summary,
    }
