"""The rows of a file or library by number, with every row checked before the first is used."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import replacing
from jax_simcas.data.records import is_several, read_row
from jax_simcas.data.rows import Fields, Row

ROWS_LISTED = 5  # of those that are left out
MAX_BAD_ROWS = 10_000  # left out of a set, unless another limit is given; published sets have up to 3,000 empty rows
TRIED = 100  # rows at the beginning; where none of them can be read, the others are not tried


class Store(abc.ABC):
    """Records in a file or library, in order; pickles to a few bytes for worker processes.

    name: how the user knows it; unit: what its numbers count; key: changes with the content.
    """

    name: str
    unit: str
    key: str

    @abc.abstractmethod
    def places(self) -> Iterator[tuple[int, int, Any]]:
        """(number, place, record) of every record; `place` is what `read` needs to find it.

        In place of a record that cannot be read stands the UserError that says why.
        """

    @abc.abstractmethod
    def read(self, number: int, place: int) -> Any:
        """The record at `place`."""

    @abc.abstractmethod
    def where(self, number: int) -> str:
        """How errors name a record."""

    def label(self, number: int) -> str:
        """How lists behind `unit` name a record."""
        return str(number)


class StoredRows:
    """The rows of a store as a RowSource; only their places are held in memory.

    The first pass over the store checks every row and saves an index in `cache`, keyed by the store's key and the
    fields. Left out, and counted in `notes`, are rows that cannot be read, and those with an empty document or summary;
    `fingerprint` identifies the content as the fields select it.

    Args:
      max_bad_rows: how many rows may be left out.
      need_reference: whether rows without a summary are left out; prediction can do without.

    Raises:
      UserError: no rows that can be used, or more that cannot than `max_bad_rows`; names the first by number and field.
    """

    label = "Source"

    def __init__(
        self,
        store: Store,
        fields: Fields,
        cache: Path,
        *,
        max_bad_rows: int = MAX_BAD_ROWS,
        need_reference: bool = True,
    ) -> None:
        self._store, self.fields, self._need_reference = store, fields, need_reference
        index = _index(store, fields, cache, max_bad_rows, need_reference)
        _check_left_out(store, index.empty.tolist(), index.wrong.tolist(), str(index.reason), max_bad_rows)
        total = len(index.numbers) + len(index.empty) + len(index.wrong)
        if not len(index.numbers):
            if len(index.wrong):
                raise UserError(f"{index.reason}{f'; none of its {total} rows can be used' if total > 1 else ''}")
            why = f"all {total} lack a document or summary" if total else "it is empty"
            raise UserError(f"{store.name}: no rows in it; {why}")
        self._numbers, self._places = index.numbers, index.places
        self.fingerprint = str(index.fingerprint)
        self.notes = tuple(_notes(store, fields, index, total))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:
        number, place = int(self._numbers[index]), int(self._places[index])
        record, where = self._store.read(number, place), self._store.where(number)
        return read_row(record, self.fields, where, number, self._need_reference)

    def where(self, index: int) -> str:
        """How errors name a row: by its file and line."""
        return self._store.where(int(self._numbers[index]))

    def __repr__(self) -> str:
        # Evaluations record it, and experiments compare it with those of earlier versions.
        return f"{self.label}({self._store.name!r})"


class _Index(NamedTuple):
    """One pass over a store.

    numbers, places: of the rows; empty, wrong: numbers left out; reason: why the first wrong one is.
    lists: how many rows have several texts under `summary`; fingerprint: a hash of the content.
    """

    numbers: np.ndarray
    places: np.ndarray
    empty: np.ndarray
    wrong: np.ndarray
    reason: np.ndarray
    lists: np.ndarray
    fingerprint: np.ndarray


def _index(store: Store, fields: Fields, cache: Path, max_bad_rows: int, need_reference: bool) -> _Index:
    key = hashlib.sha256(f"3\0{store.key}\0{fields!r}\0{need_reference}".encode()).hexdigest()[:20]
    target = cache / "indexes" / f"{key}.npz"
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        np.load(target, allow_pickle=False) as stored,
    ):
        return _Index(*(stored[name] for name in _Index._fields))
    index = _scan(store, fields, max_bad_rows, need_reference)
    # Without a writable cache, every opening scans again.
    with contextlib.suppress(OSError), replacing(target) as temporary, temporary.open("wb") as out:
        np.savez(out, **index._asdict())
    return index


def _scan(store: Store, fields: Fields, max_bad_rows: int, need_reference: bool) -> _Index:
    numbers: list[int] = []
    places: list[int] = []
    empty: list[int] = []
    wrong: list[int] = []
    lists, reason = 0, ""
    digest = hashlib.sha256(repr(fields).encode())
    for number, place, record in store.places():
        try:
            if isinstance(record, UserError):
                raise record
            row = read_row(record, fields, store.where(number), number, need_reference)
        except UserError as error:
            wrong.append(number)
            reason = reason or str(error)
            _check_left_out(store, empty, wrong, reason, max_bad_rows)
            if len(wrong) == TRIED and not numbers:
                raise UserError(f"{reason}; none of the first {TRIED} rows can be read") from None
            continue
        if not (row.chunks or row.document.strip()) or (need_reference and not row.summary.strip()):
            empty.append(number)
            continue
        numbers.append(number)
        places.append(place)
        lists += is_several(record, fields)
        digest.update(repr(row).encode())
    integers = lambda values: np.asarray(values, np.int64)
    others = np.asarray(reason), np.asarray(lists), np.asarray(digest.hexdigest())
    return _Index(integers(numbers), integers(places), integers(empty), integers(wrong), *others)


def _check_left_out(store: Store, empty: list[int], wrong: list[int], reason: str, most: int) -> None:
    """Raises UserError if more rows than `most` are left out."""
    count = len(empty) + len(wrong)
    if count > most:
        first = reason or f"{store.name}: empty document or summary ({store.unit} {_listed(store, empty)})"
        rows = "a row is" if count == 1 else f"{count} rows are"
        raise UserError(f"{first}; {rows} left out, more than config.data.max_bad_rows={most}")


def _notes(store: Store, fields: Fields, index: _Index, total: int) -> Iterator[str]:
    """What is left out, and what lists under `summary` were taken for."""
    for numbers, why, reason in (
        (index.empty.tolist(), "empty document or summary", ""),
        (index.wrong.tolist(), "they cannot be read", f"; the first: {index.reason}"),
    ):
        if numbers:
            listed = f"{store.unit} {_listed(store, numbers)}"
            yield f"{store.name}: {len(numbers)} of {total} rows left out: {why} ({listed}){reason}"
    if index.lists:
        taken, other, joined = "several references", "sentences", "joins them to one"
        if fields.summary_list == "sentences":
            taken, other, joined = "the sentences of one text", "references", "takes them for several references"
        yield (
            f"note: {store.name}: lists under {fields.summary!r} are {taken} ({index.lists} of {len(index.numbers)} "
            f"rows have one); config.data.fields.summary_list={other} {joined}"
        )


def _listed(store: Store, numbers: list[int]) -> str:
    return ", ".join(map(store.label, numbers[:ROWS_LISTED])) + (", ..." if len(numbers) > ROWS_LISTED else "")


def or_error(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, or the UserError that it raises."""
    try:
        return read(*arguments)
    except UserError as error:
        return error


def stat_key(paths: Iterable[Path]) -> str:
    """A hash of the files' paths, sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]
