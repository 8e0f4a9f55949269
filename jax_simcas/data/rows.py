"""Rows out of any store of records: random access, never all in memory, every row checked before the first is used.

Here are rows, what is read of a record, and JSONL files; catalogue.py opens what `config.data.source` names.
"""

from __future__ import annotations

import abc
import codecs
import contextlib
import gzip
import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jax_simcas.common.errors import UserError

READ_BYTES = 1 << 20
NUMBERS_NAMED = 5  # of the rows that are left out
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One document. `answers` are all references; `evidence` are [start, end) characters that matter.

    `query` and `context` (a second, shorter text, such as a plot summary) are there for templates to show.
    `chunks` are token ids that were cut beforehand: the model reads them in place of the document.
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
    """Names of a record's fields; "" is not read. A dot leads into an object: `document.text`.

    `document` may hold a text or a list of lines, `summary` a text, a list of texts or of objects with a `text`.
    `chunks` holds a list of lists of token ids; evidence, which is in characters, is then not read.
    """

    document: str = "document"
    summary: str = "summary"
    query: str = ""
    id: str = "id"
    evidence: str = "evidence"
    context: str = ""
    chunks: str = ""


class Store(abc.ABC):
    """Records by place, in the order of their numbers; cheap to send to worker processes.

    name: what the user knows it as; unit: what its numbers count; key: changes when the content does.
    """

    name: str
    unit: str
    key: str

    @abc.abstractmethod
    def places(self) -> Iterator[tuple[int, int, Any]]:
        """(number, place, record) of every record."""

    @abc.abstractmethod
    def read(self, number: int, place: int) -> Any:
        """The record there."""

    @abc.abstractmethod
    def where(self, number: int) -> str:
        """How an error names a record."""


class Source:
    """The rows of a store by number; only where they lie is held in memory.

    What one pass over the rows found is kept in `cache`, by the store's key and the fields. Rows with an empty
    document or summary are left out and told in `notes`; `fingerprint` stands for the content as the fields show it.

    Raises:
      UserError: no rows; a record whose field is missing or of the wrong type: named by number and field.
    """

    def __init__(self, store: Store, fields: Fields, cache: Path) -> None:
        self._store, self.fields = store, fields
        index = _index(store, fields, cache)
        left_out = index.left_out.tolist()
        if not len(index.numbers):
            why = f"all {len(left_out)} lack a document or summary" if left_out else "it is empty"
            raise UserError(f"{store.name}: no rows in it; {why}")
        self._numbers, self._places = index.numbers, index.places
        self.fingerprint = str(index.fingerprint)
        self.notes: tuple[str, ...] = ()
        if left_out:
            named = ", ".join(map(str, left_out[:NUMBERS_NAMED])) + (", ..." if len(left_out) > NUMBERS_NAMED else "")
            self.notes = (
                f"{store.name}: {len(left_out)} of {len(left_out) + len(self)} rows left out: "
                f"empty document or summary ({store.unit} {named})",
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:
        number, place = int(self._numbers[index]), int(self._places[index])
        return row_of(self._store.read(number, place), self.fields, self._store.where(number), number)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store.name!r})"


class JsonlSource(Source):
    """The rows of a .jsonl or .jsonl.gz file; a .gz file is unpacked once into `cache`.

    Raises:
      UserError: missing, damaged or without rows; a line that is not UTF-8, not a JSON object, or whose
        field is missing or of the wrong type: named by file, line and field.
    """

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path) -> None:
        self.path = Path(path)
        super().__init__(_Lines(self.path, cache), fields, cache)


class _Lines(Store):
    """A JSON object a line; places are byte offsets."""

    unit = "line"

    def __init__(self, path: Path, cache: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.name, self._path = str(path), path
        self.key = stat_key([path])
        self._plain = unpacked(path, cache) if path.suffix == ".gz" else path

    def places(self) -> Iterator[tuple[int, int, Any]]:
        offset = 0
        try:
            with self._plain.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, offset, _record(line, self.where(number), number)
                    offset += len(line)
        except OSError as error:
            raise UserError(f"{self._plain}: cannot be read ({error.strerror})") from None

    def read(self, number: int, place: int) -> Any:
        # A file of its own for every read: threads and processes share no position.
        with self._plain.open("rb") as file:
            file.seek(place)
            return _record(file.readline(), self.where(number), number)

    def where(self, number: int) -> str:
        return f"{self._path}:{number}"


def unpacked(path: Path, cache: Path) -> Path:
    """The plain copy of a .gz file in `cache`; made once for each path, size and time of change.

    Raises:
      UserError: not gzip, truncated or damaged; a cache that cannot be written.
    """
    target = cache / "unpacked" / f"{stat_key([path])}.jsonl"
    if target.exists():
        return target
    try:
        with _replacing(target) as out:
            _unpack(path, out)
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot be written ({error.strerror or error}), but {path} has to be unpacked there"
        ) from None
    return target


def _unpack(path: Path, out: IO[bytes]) -> None:
    try:
        with gzip.open(path, "rb") as source:
            while block := source.read(READ_BYTES):
                out.write(block)
    except gzip.BadGzipFile as error:
        raise UserError(f"{path}: not a gzip file ({error})") from None
    except EOFError:
        raise UserError(f"{path}: a truncated gzip file; fetch it again") from None
    except zlib.error as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); fetch it again") from None


class _Index(NamedTuple):
    """One pass over a store: the rows' numbers and places, the numbers left out, and what the content is."""

    numbers: np.ndarray
    places: np.ndarray
    left_out: np.ndarray
    fingerprint: np.ndarray


def _index(store: Store, fields: Fields, cache: Path) -> _Index:
    wanted = hashlib.sha256(f"2\0{store.key}\0{fields!r}".encode()).hexdigest()[:20]
    target = cache / "indexes" / f"{wanted}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(target) as stored:
        return _Index(*(stored[name] for name in _Index._fields))
    index = _scan(store, fields)
    with contextlib.suppress(OSError), _replacing(target) as out:  # without a cache it is made each time
        np.savez(out, **index._asdict())
    return index


def _scan(store: Store, fields: Fields) -> _Index:
    numbers, places, left_out = [], [], []
    digest = hashlib.sha256(repr(fields).encode())
    for number, place, record in store.places():
        row = row_of(record, fields, store.where(number), number)
        if (row.chunks or row.document.strip()) and row.summary.strip():
            numbers.append(number)
            places.append(place)
            digest.update(repr(row).encode())
        else:
            left_out.append(number)
    whole = lambda values: np.asarray(values, np.int64)
    return _Index(whole(numbers), whole(places), whole(left_out), np.asarray(digest.hexdigest()))


def row_of(record: dict[str, Any], fields: Fields, where: str, number: int) -> Row:
    """What the fields show of a record; `where` names it in errors, `number` is its id if it has none.

    Raises:
      UserError: a field that is missing or of the wrong type.
    """

    def field(name: str, what: str) -> Any:
        holder, key = _holder(record, name)
        if key not in holder:
            known = ", ".join(map(repr, holder)) or "none"
            raise UserError(f"{where}: no field {name!r}; its fields are {known} (set config.data.fields.{what})")
        return holder[key]

    def optional(name: str) -> Any:
        holder, key = _holder(record, name)
        return holder.get(key)

    def text(name: str, what: str) -> str:
        found = field(name, what)
        if not isinstance(found, str):
            given = type(found).__name__
            raise UserError(f"{where}: field {name!r} is {given}, expected text (config.data.fields.{what})")
        return _encodable(found)

    def texts(name: str, what: str) -> tuple[str, ...]:
        plain = [item["text"] if isinstance(item, dict) and "text" in item else item for item in field(name, what)]
        if not all(isinstance(item, str) for item in plain):
            raise UserError(f"{where}: field {name!r} is a list, expected texts in it (config.data.fields.{what})")
        return tuple(map(_encodable, plain))

    if fields.chunks and not fields.document:
        document = ""
    elif isinstance(optional(fields.document), list):
        document = "\n".join(texts(fields.document, "document"))
    else:
        document = text(fields.document, "document")
    answers: tuple[str, ...] = ()
    if isinstance(optional(fields.summary), list):
        answers = tuple(answer for answer in texts(fields.summary, "summary") if answer.strip())
        summary = answers[0] if answers else ""
    else:
        summary = text(fields.summary, "summary")
    name = optional(fields.id)
    return Row(
        id=_encodable(str(number if name is None else name)),
        document=document,
        summary=summary,
        answers=answers,
        query=text(fields.query, "query") if fields.query else None,
        context=text(fields.context, "context") if fields.context else None,
        evidence=None
        if fields.chunks
        else _evidence(optional(fields.evidence), len(document), f"{where}: field {fields.evidence!r}"),
        chunks=_token_chunks(field(fields.chunks, "chunks"), f"{where}: field {fields.chunks!r}")
        if fields.chunks
        else None,
    )


def _holder(record: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The object that a field lies in, and its name there; a name with dots is tried as it is first."""
    first, _, rest = name.partition(".")
    if name not in record and rest and isinstance(record.get(first), dict):
        return _holder(record[first], rest)
    return record, name


def _record(line: bytes, where: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads((line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8"))
    except UnicodeDecodeError as error:
        zipped = line.startswith(b"\x1f\x8b") and number == 1
        hint = "it looks like gzip, which is named .jsonl.gz" if zipped else f"byte {error.start} of the line"
        raise UserError(f"{where}: not UTF-8 ({hint})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}, expected an object")
    return record


def _evidence(spans: Any, length: int, where: str) -> tuple[tuple[int, int], ...] | None:
    if spans is None:
        return None
    if not isinstance(spans, list):
        raise UserError(f"{where} is {type(spans).__name__}, expected [[start, end], ...] in characters")
    for span in spans:
        pair = isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)
        if not pair or not 0 <= span[0] <= span[1] <= length:
            raise UserError(
                f"{where} has {json.dumps(span)[:60]}, expected [start, end] in the document's {length} characters"
            )
    return tuple((start, end) for start, end in spans)


def _token_chunks(chunks: Any, where: str) -> tuple[tuple[int, ...], ...]:
    given = type(chunks).__name__
    if isinstance(chunks, list):
        wrong = [c for c in chunks if not isinstance(c, list) or not all(type(token) is int for token in c)]
        if not wrong:
            return tuple(map(tuple, chunks))
        given = f"a list with {repr(wrong[0])[:40]} in it"
    raise UserError(f"{where} is {given}, expected a list of chunks, each a list of token ids")


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which no UTF-8 has: U+FFFD instead, offsets stay."""
    return SURROGATE.sub("\ufffd", text)


def stat_key(paths: Iterable[Path]) -> str:
    """Changes when one of the files does: by path, size and time of change."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `target` when all went well; processes that do so at once do no harm."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


class First:
    """The first `count` rows of a source; with a `fingerprint` if the source has one."""

    def __init__(self, source: Any, count: int) -> None:
        self._source, self._count = source, min(count, len(source))
        whole = getattr(source, "fingerprint", None)
        self.fingerprint = whole and f"first {self._count} of {whole}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._source[index]

    def __repr__(self) -> str:
        return f"First({self._source!r}, {self._count})"
