"""Rows from JSONL files: random access, never all in memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_simcas.errors import UserError

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """One document. `answers` are all references; `evidence` are [start, end) characters that matter."""

    id: str
    document: str
    summary: str
    answers: tuple[str, ...] = ()
    query: str | None = None
    evidence: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Fields:
    """Names of a JSON object's fields. `summary` may hold one text or a list of answers; "" is not read."""

    document: str = "document"
    summary: str = "summary"
    query: str = ""
    id: str = "id"
    evidence: str = "evidence"


class JsonlSource:
    """The rows of a .jsonl or .jsonl.gz file by number; only line offsets are held in memory.

    A .gz file is unpacked once into `cache`. Cheap to send to worker processes.

    Raises:
      UserError: missing, damaged or without rows; and, when a row is read, a line that is not UTF-8, not a
        JSON object, or lacks a field: named by file, line and field.
    """

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path) -> None:
        self.path, self.fields = Path(path), fields
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        self._plain = unpacked(self.path, cache) if self.path.suffix == ".gz" else self.path
        self._lines, self._offsets = _index(self._plain)
        if not len(self._offsets):
            raise UserError(f"{self.path}: no rows in it; expected a JSON object a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        index = int(index)
        where = f"{self.path}:{self._lines[index]}"
        with self._plain.open("rb") as file:
            file.seek(int(self._offsets[index]))
            line = file.readline()
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 (byte {error.start} of the line)") from None
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON {type(record).__name__}, expected an object")
        return _row(record, self.fields, where, index)

    def __repr__(self) -> str:
        return f"JsonlSource({str(self.path)!r})"


def _row(record: dict[str, Any], fields: Fields, where: str, index: int) -> Row:
    def text(name: str, what: str) -> str:
        if name not in record:
            known = ", ".join(map(repr, record)) or "none"
            raise UserError(f"{where}: no field {name!r}; its fields are {known} (set config.data.fields.{what})")
        if not isinstance(record[name], str):
            given = type(record[name]).__name__
            raise UserError(f"{where}: field {name!r} is {given}, expected text (config.data.fields.{what})")
        return record[name]

    summary = record.get(fields.summary)
    answers: tuple[str, ...] = ()
    if isinstance(summary, list):
        if not summary or not all(isinstance(answer, str) for answer in summary):
            raise UserError(
                f"{where}: field {fields.summary!r} is a list, expected texts in it (config.data.fields.summary)"
            )
        answers = tuple(summary)
    spans = record.get(fields.evidence) if fields.evidence else None
    try:
        evidence = None if spans is None else tuple((int(start), int(end)) for start, end in spans)
    except (TypeError, ValueError):
        raise UserError(f"{where}: field {fields.evidence!r}: expected [[start, end], ...] in characters") from None
    return Row(
        id=str(record.get(fields.id, index)),
        document=text(fields.document, "document"),
        summary=answers[0] if answers else text(fields.summary, "summary"),
        answers=answers,
        query=text(fields.query, "query") if fields.query else None,
        evidence=evidence,
    )


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
      UserError: not gzip, or truncated.
    """
    stat = path.stat()
    key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    target = cache / "unpacked" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.jsonl"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    try:
        with gzip.open(path, "rb") as source, os.fdopen(descriptor, "wb") as out:
            while block := source.read(READ_BYTES):
                out.write(block)
        os.replace(name, target)
    except (OSError, EOFError, zlib.error) as error:
        os.unlink(name)
        raise UserError(f"{path}: cannot be unpacked ({error}); is it a whole gzip file?") from None
    return target


def _index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(line number, byte offset) of every line that is not blank."""
    lines, offsets, offset = [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                lines.append(number)
                offsets.append(offset)
            offset += len(line)
    return np.asarray(lines, np.int64), np.asarray(offsets, np.int64)


class First:
    """The first `count` rows of a source."""

    def __init__(self, source: Any, count: int) -> None:
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return self._source[index]

    def __repr__(self) -> str:
        return f"First({self._source!r}, {self._count})"
