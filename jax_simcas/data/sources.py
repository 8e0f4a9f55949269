"""Rows from JSONL files: random access, never all in memory, every row checked before the first is used."""

from __future__ import annotations

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jax_simcas.errors import UserError

READ_BYTES = 1 << 20
LINES_NAMED = 5  # of the rows that are left out
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One document. `answers` are all references; `evidence` are [start, end) characters that matter.

    `query` and `context` (a second, shorter text, such as a plot summary) are there for templates to show.
    """

    id: str
    document: str
    summary: str
    answers: tuple[str, ...] = ()
    query: str | None = None
    evidence: tuple[tuple[int, int], ...] | None = None
    context: str | None = None


@dataclass(frozen=True)
class Fields:
    """Names of a JSON object's fields; "" is not read. A dot leads into an object: `document.text`.

    `document` may hold a text or a list of lines, `summary` a text, a list of texts or of objects with a `text`.
    """

    document: str = "document"
    summary: str = "summary"
    query: str = ""
    id: str = "id"
    evidence: str = "evidence"
    context: str = ""


class JsonlSource:
    """The rows of a .jsonl or .jsonl.gz file by number; only line offsets are held in memory.

    A .gz file is unpacked once into `cache`; what one pass over the rows found is kept there as well, by
    path, size and time of change. Cheap to send to worker processes. Rows with an empty document or summary
    are left out and told in `notes`; `fingerprint` stands for the content as the fields show it.

    Raises:
      UserError: missing, damaged or without rows; a line that is not UTF-8, not a JSON object, or whose
        field is missing or of the wrong type: named by file, line and field.
    """

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path) -> None:
        self.path, self.fields = Path(path), fields
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        self._plain = unpacked(self.path, cache) if self.path.suffix == ".gz" else self.path
        index = _index(self.path, self._plain, fields, cache)
        left_out = index.left_out.tolist()
        if not len(index.lines):
            why = f"all {len(left_out)} lack a document or summary" if left_out else "expected a JSON object a line"
            raise UserError(f"{self.path}: no rows in it; {why}")
        self._lines, self._offsets = index.lines, index.offsets
        self.fingerprint = str(index.fingerprint)
        self.notes: tuple[str, ...] = ()
        if left_out:
            named = ", ".join(map(str, left_out[:LINES_NAMED])) + (", ..." if len(left_out) > LINES_NAMED else "")
            self.notes = (
                f"{self.path}: {len(left_out)} of {len(left_out) + len(self)} rows left out: "
                f"empty document or summary (line {named})",
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        # A file of its own for every read: threads and processes share no position.
        with self._plain.open("rb") as file:
            file.seek(int(self._offsets[index]))
            return _row(file.readline(), self.fields, self.path, int(self._lines[index]))

    def __repr__(self) -> str:
        return f"JsonlSource({str(self.path)!r})"


def open_split(data_dir: str, split: str, fields: Fields, cache: Path) -> JsonlSource:
    """`{split}.jsonl` or `{split}.jsonl.gz` in `data_dir`.

    Raises:
      UserError: no such folder or file; says what was looked for and what is there.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"config.data.data_dir={data_dir}: no such folder")
    names = [f"{split}.jsonl", f"{split}.jsonl.gz"]
    for name in names:
        if (folder / name).is_file():
            return JsonlSource(folder / name, fields, cache)
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise UserError(f"{folder}: neither {' nor '.join(names)} for the split {split!r}; there is {there}")


def unpacked(path: Path, cache: Path) -> Path:
    """The plain copy of a .gz file in `cache`; made once for each path, size and time of change.

    Raises:
      UserError: not gzip, truncated or damaged; a cache that cannot be written.
    """
    target = cache / "unpacked" / f"{_key(path)}.jsonl"
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
    """One pass over a file: rows by line number and byte offset, lines left out, and what the content is."""

    lines: np.ndarray
    offsets: np.ndarray
    left_out: np.ndarray
    fingerprint: np.ndarray


def _index(path: Path, plain: Path, fields: Fields, cache: Path) -> _Index:
    """The index of `plain`, from the cache if it is there; `path` is what the user knows the file as."""
    wanted = hashlib.sha256(f"{_key(path)}\0{fields!r}".encode()).hexdigest()[:20]
    target = cache / "indexes" / f"{wanted}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(target) as stored:
        return _Index(*(stored[name] for name in _Index._fields))
    index = _scan(path, plain, fields)
    with contextlib.suppress(OSError), _replacing(target) as out:  # without a cache it is made each time
        np.savez(out, **index._asdict())
    return index


def _scan(path: Path, plain: Path, fields: Fields) -> _Index:
    lines, offsets, left_out, offset = [], [], [], 0
    digest = hashlib.sha256(repr(fields).encode())
    try:
        with plain.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = _row(line, fields, path, number)
                    if row.document.strip() and row.summary.strip():
                        lines.append(number)
                        offsets.append(offset)
                    else:
                        left_out.append(number)
                digest.update(line)
                offset += len(line)
    except OSError as error:
        raise UserError(f"{plain}: cannot be read ({error.strerror})") from None
    whole = lambda numbers: np.asarray(numbers, np.int64)
    return _Index(whole(lines), whole(offsets), whole(left_out), np.asarray(digest.hexdigest()))


def _row(line: bytes, fields: Fields, path: Path, number: int) -> Row:
    where = f"{path}:{number}"
    record = _record(line, where, number)

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

    lines = isinstance(optional(fields.document), list)
    document = "\n".join(texts(fields.document, "document")) if lines else text(fields.document, "document")
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
        evidence=_evidence(optional(fields.evidence), len(document), f"{where}: field {fields.evidence!r}"),
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


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which no UTF-8 has: U+FFFD instead, offsets stay."""
    return SURROGATE.sub("\ufffd", text)


def _key(path: Path) -> str:
    stat = path.stat()
    key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return hashlib.sha256(key.encode()).hexdigest()[:20]


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
    """The first `count` rows of a source."""

    def __init__(self, source: Any, count: int) -> None:
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._source[index]

    def __repr__(self) -> str:
        return f"First({self._source!r}, {self._count})"
