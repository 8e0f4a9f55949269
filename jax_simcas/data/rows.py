"""Rows: what is read of a record, and random access by number with every row checked before the first is used.

Files are in text_files.py; formats.py opens what `config.data.source` names.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jax_simcas.common import checks
from jax_simcas.common.errors import UserError
from jax_simcas.common.files import replacing

ROWS_LISTED = 5  # of those that are left out
MAX_BAD_ROWS = 10_000  # left out of a set, unless another limit is given; published sets have up to 3,000 empty rows
TRIED = 100  # rows at the beginning; where none of them can be read, the others are not tried
LISTS = ("references", "sentences")
SENTENCE_TAG = re.compile(r"^\s*<S>\s*|\s*</S>\s*$")  # around each sentence of the published arXiv and PubMed abstracts
SPOKEN = ("content", "text", "utterance")  # keys of what a `speaker` says
FIELDS_LISTED = 20  # of a record that lacks one
SURROGATE = re.compile("[\ud800-\udfff]")


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
    notes: for the user; a warning unless it begins with "note:", see `told`.
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

    def __repr__(self) -> str:
        return f"First({self._source!r}, {self._count})"


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
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(target) as stored:
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
        first = reason or f"{store.name}: empty document or summary ({store.unit} {_listed(empty)})"
        rows = "a row is" if count == 1 else f"{count} rows are"
        raise UserError(f"{first}; {rows} left out, more than config.data.max_bad_rows={most}")


def _notes(store: Store, fields: Fields, index: _Index, total: int) -> Iterator[str]:
    """What is left out, and what lists under `summary` were taken for."""
    for numbers, why, reason in (
        (index.empty.tolist(), "empty document or summary", ""),
        (index.wrong.tolist(), "they cannot be read", f"; the first: {index.reason}"),
    ):
        if numbers:
            listed = f"{store.unit} {_listed(numbers)}"
            yield f"{store.name}: {len(numbers)} of {total} rows left out: {why} ({listed}){reason}"
    if index.lists:
        taken, other, joined = "several references", "sentences", "joins them to one"
        if fields.summary_list == "sentences":
            taken, other, joined = "the sentences of one text", "references", "takes them for several references"
        yield (
            f"note: {store.name}: lists under {fields.summary!r} are {taken} ({index.lists} of {len(index.numbers)} "
            f"rows have one); config.data.fields.summary_list={other} {joined}"
        )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:ROWS_LISTED])) + (", ..." if len(numbers) > ROWS_LISTED else "")


def told(notes: Iterable[str]) -> list[str]:
    """Notes of a source as they are printed."""
    return [note if note.startswith("note:") else f"warning: {note}" for note in notes]


def is_several(mapping: dict[str, Any], fields: Fields) -> bool:
    """Whether a record has more than one text under `summary`."""
    value = Record(mapping, fields, "").optional("summary")
    return isinstance(value, list) and sum(not _is_null(item) for item in value) > 1


def read_row(mapping: dict[str, Any], fields: Fields, where: str, number: int, need_reference: bool = True) -> Row:
    """The row that `fields` select of a record; null is an empty text.

    Args:
      where: names the record in errors.
      number: its id if it has none.
      need_reference: whether a record without the field of the summary is wrong.

    Raises:
      UserError: a field that is missing or of the wrong type.
    """
    record = Record(mapping, fields, where)
    try:
        document = record.document()
        summary, answers = record.references(need_reference)
        given_id = record.optional("id")
        return Row(
            id=_encodable(str(number if given_id is None else given_id)),
            document=document,
            summary=summary,
            answers=answers,
            query=record.text("query") if fields.query else None,
            context=record.text("context") if fields.context else None,
            evidence=None if fields.chunks else record.evidence(len(document)),
            chunks=record.chunks() if fields.chunks else None,
        )
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None


@dataclass(frozen=True)
class Record:
    """A record's fields under the names that `Fields` gives them: `text("document")` reads `fields.document`.

    Every method raises UserError for a field that is missing or of the wrong type, named by `where` and field.
    """

    mapping: dict[str, Any]
    fields: Fields
    where: str

    def optional(self, role: str) -> Any:
        """The value; None if the record lacks it."""
        holder, key = self._find(role)
        return holder.get(key)

    def required(self, role: str) -> Any:
        """The value, of any type."""
        holder, key = self._find(role)
        if key not in holder:
            names = [repr(name) for name in holder]
            listed = ", ".join(names[:FIELDS_LISTED]) + (", ..." if len(names) > FIELDS_LISTED else "")
            raise UserError(
                f"{self.where}: no field {getattr(self.fields, role)!r}; its fields are {listed or 'none'} "
                f"(set config.data.fields.{role})"
            )
        return holder[key]

    def text(self, role: str) -> str:
        """A text; "" for a null document or summary, which are then left out as empty."""
        value = self.required(role)
        if role in ("document", "summary") and _is_null(value):
            return ""
        if not isinstance(value, str):
            raise self.wrong(role, f"is {type(value).__name__}, expected text")
        return _encodable(value)

    def texts(self, role: str) -> tuple[str, ...]:
        """A list of texts, of objects with a `text`, or of those with a `speaker` and what is said; without nulls."""
        texts = [_text_of(item) for item in self.required(role) if not _is_null(item)]
        if not all(isinstance(text, str) for text in texts):
            raise self.wrong(role, "is a list, expected texts in it")
        return tuple(map(_encodable, texts))

    def document(self) -> str:
        """The document's text or joined lines; "" where ready-made chunks replace it."""
        if self.fields.chunks and not self.fields.document:
            return ""
        if isinstance(self.optional("document"), list):
            return "\n".join(self.texts("document"))
        return self.text("document")

    def references(self, needed: bool = True) -> tuple[str, tuple[str, ...]]:
        """(summary, answers): the answers are the non-empty texts of a list, the summary its first; or their join."""
        value = self.optional("summary")
        if value is None and not needed:
            return "", ()
        if not isinstance(value, list):
            return self.text("summary"), ()
        texts = tuple(filter(str.strip, self.texts("summary")))
        if self.fields.summary_list == "sentences":
            return "\n".join(SENTENCE_TAG.sub("", text) for text in texts), ()
        return next(iter(texts), ""), texts

    def evidence(self, length: int) -> tuple[tuple[int, int], ...] | None:
        """Spans of a document of `length` characters; None if the record has no such field."""
        spans = self.optional("evidence")
        if spans is None:
            return None
        if not isinstance(spans, list):
            raise self.wrong("evidence", f"is {type(spans).__name__}, expected [[start, end], ...] in characters")
        for span in spans:
            pair = isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)
            if not pair or not 0 <= span[0] <= span[1] <= length:
                expected = f"expected [start, end] in the document's {length} characters"
                raise self.wrong("evidence", f"has {json.dumps(span, default=repr)[:60]}, {expected}")
        return tuple((start, end) for start, end in spans)

    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Ready-made chunks: a list of lists of token ids."""
        value = self.required("chunks")
        given = type(value).__name__
        if isinstance(value, list):
            wrong = [c for c in value if not isinstance(c, list) or not all(type(token) is int for token in c)]
            if not wrong:
                return tuple(map(tuple, value))
            given = f"a list with {repr(wrong[0])[:40]} in it"
        raise self.wrong("chunks", f"is {given}, expected a list of chunks, each a list of token ids")

    def wrong(self, role: str, problem: str) -> UserError:
        """The error about a field."""
        name = getattr(self.fields, role)
        return UserError(f"{self.where}: field {name!r} {problem} (config.data.fields.{role})")

    def _find(self, role: str) -> tuple[dict[str, Any], str]:
        """The object that holds the field, and its key there; a name with dots is first tried as it is."""
        names = getattr(self.fields, role)
        found = [self._place(name) for name in (names, *(names.split("|") if "|" in names else ()))]
        return next((place for place in found if place[1] in place[0]), found[-1])

    def _place(self, name: str) -> tuple[dict[str, Any], str]:
        holder = self.mapping
        while name not in holder:
            first, _, rest = name.partition(".")
            if not rest or not isinstance(holder.get(first), dict):
                break
            holder, name = holder[first], rest
        return holder, name


def _is_null(value: Any) -> bool:
    """JSON's null, or the NaN that tables have for a missing text."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text_of(item: Any) -> Any:
    """The text of a list's item: of an object with a `text`, or `speaker: content` of one that tells who speaks."""
    if not isinstance(item, dict):
        return item
    said = next((item[key] for key in SPOKEN if key in item), item)
    speaker = item.get("speaker")
    return f"{speaker}: {said}" if isinstance(speaker, str) and isinstance(said, str) else said


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which UTF-8 cannot hold: U+FFFD replaces it, offsets stay."""
    return SURROGATE.sub("\ufffd", text)


def stat_key(paths: Iterable[Path]) -> str:
    """A hash of the files' paths, sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:20]
