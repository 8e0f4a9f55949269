"""Rows, the names of their fields, and what gives rows by number.

records.py reads a row of a record, stored.py the rows of files and libraries; formats.py opens what
`config.data.source` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jax_simcas.common import checks

LISTS = ("references", "sentences")


@dataclass(frozen=True)
class Row:
    """One document.

    id: names the row in errors and predictions; its line or row number unless the record has one.
    summary: the reference; "" where the record has none.
    answers: all references, where a record lists several; `summary` is the first.
    query, context: shown by `input_template`; context is a second, shorter text such as a plot summary.
    evidence: [start, end) characters of the document that matter.
    chunks: token ids cut beforehand, which the model reads instead of the document.
    """

    id: str
    document: str
    summary: str
    answers: tuple[str, ...] = ()
    query: str | None = None
    evidence: tuple[tuple[int, int], ...] | None = None
    context: str | None = None
    chunks: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields; "" is not read. `a.b` leads into an object, `a|b` is the first of two there."""

    document: str = "document"  # a text, a list of lines, or a list of objects with `speaker` and `content`
    summary: str = "summary"  # a text, a list of texts or of objects with a `text`
    query: str = ""  # a question about the document
    id: str = "id"  # a name of the row, in predictions and errors
    evidence: str = "evidence"  # [[start, end], ...]: characters of the document that matter
    context: str = ""  # a second, shorter text
    chunks: str = ""  # a list of lists of token ids, read instead of the document; evidence is then not read
    # what the texts of a list under `summary` are: "references", several summaries of which training learns the first
    # (or a drawn one) and of which scores take the best; or "sentences", which are joined to one summary
    summary_list: str = "references"

    def __post_init__(self) -> None:
        if not self.summary.strip():
            raise ValueError(f"summary={self.summary!r}: expected the name of a field")
        if not self.document.strip() and not self.chunks.strip():
            raise ValueError(f"document={self.document!r}: expected the name of a field")
        checks.one_of(self, "summary_list", LISTS)


@runtime_checkable
class RowSource(Protocol):
    """The rows of a split by number.

    fingerprint: identifies the content, for caches; None where nothing derived from the rows is worth keeping.
    notes: for the user; a warning unless it begins with "note:", see `as_printed`.
    """

    @property
    def fingerprint(self) -> str | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


class ListSource:
    """Rows held in memory, as a RowSource."""

    fingerprint = None
    notes: tuple[str, ...] = ()

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class First:
    """The first `count` rows of a source."""

    def __init__(self, source: RowSource, count: int) -> None:
        self._source, self._count = source, min(count, len(source))
        self.notes = source.notes
        self.fingerprint = source.fingerprint and f"first {self._count} of {source.fingerprint}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._source[index]

    def where(self, index: int) -> str:
        return place_of(self._source, index)

    def __repr__(self) -> str:
        return f"First({self._source!r}, {self._count})"


def place_of(source: RowSource | Sequence[Row], index: int) -> str:
    """How errors name a row: by its file and line where the source knows them."""
    where = getattr(source, "where", None)
    return str(where(index)) if callable(where) else f"row {index}"


def as_printed(notes: Iterable[str]) -> list[str]:
    """Notes of a source as they are printed."""
    return [note if note.startswith("note:") else f"warning: {note}" for note in notes]
