"""Rows of JSONL and CSV files, plain or gzipped."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import replacing
from jax_simcas.data.rows import Fields, Store, StoredRows, stat_key

READ_BYTES = 1 << 20
LONGEST_CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is less than a long document


class JsonlSource(StoredRows):
    """The rows of a .jsonl or .jsonl.gz file; a .gz file is unpacked once into `cache`.

    Raises:
      UserError: missing, damaged or without rows; a line that is not UTF-8, not a JSON object, or whose
        field is missing or of the wrong type: named by file, line and field.
    """

    label = "JsonlSource"

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path) -> None:
        self.path = Path(path)
        super().__init__(JsonlStore(self.path, cache), fields, cache)


class CsvSource(StoredRows):
    """The rows of a .csv or .csv.gz file (RFC 4180, UTF-8) whose first record names the fields.

    Raises:
      UserError: missing, damaged or without rows; a record that is not UTF-8, not CSV, has more or fewer cells than
        the header, or lacks a field: named by file, line and field.
    """

    label = "CsvSource"

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path) -> None:
        self.path = Path(path)
        super().__init__(CsvStore(self.path, cache), fields, cache)


class _LineStore(Store):
    """Records of a text file; places are byte offsets, numbers are lines."""

    unit = "line"

    def __init__(self, path: Path, cache: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.name, self._path = str(path), path
        self.key = stat_key([path])
        self._plain = unpacked(path, cache) if path.suffix == ".gz" else path

    def places(self) -> Iterator[tuple[int, int, Any]]:
        try:
            with self._plain.open("rb") as file:
                yield from self._records(file)
        except OSError as error:
            raise UserError(f"{self._plain}: cannot be read ({error.strerror})") from None

    def _records(self, file: IO[bytes]) -> Iterator[tuple[int, int, Any]]:
        raise NotImplementedError

    def where(self, number: int) -> str:
        return f"{self._path}:{number}"

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            zipped = line.startswith(b"\x1f\x8b") and number == 1
            suffix = self._path.suffix
            hint = f"it looks like gzip: name it {suffix}.gz" if zipped else f"byte {error.start} of the line"
            raise UserError(f"{self.where(number)}: not UTF-8 ({hint})") from None


class JsonlStore(_LineStore):
    """One JSON object per line."""

    def _records(self, file: IO[bytes]) -> Iterator[tuple[int, int, Any]]:
        offset = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, offset, self._parsed(line, number)
            offset += len(line)

    def read(self, number: int, place: int) -> Any:
        with self._plain.open("rb") as file:  # opened per read: threads and processes share no position
            file.seek(place)
            return self._parsed(file.readline(), number)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        where, text = self.where(number), self._decoded(line, number)
        try:
            record = json.loads(text)
        except RecursionError:
            raise UserError(f"{where}: not JSON that can be read (nested too deeply)") from None
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON {type(record).__name__}, expected an object")
        return record


class CsvStore(_LineStore):
    """One CSV record per row after the header; quoted cells may hold line breaks."""

    def __init__(self, path: Path, cache: Path) -> None:
        super().__init__(path, cache)
        self._header: list[str] = []

    def _records(self, file: IO[bytes]) -> Iterator[tuple[int, int, Any]]:
        for number, offset, cells in self._parsed(file, 1):
            if self._header:
                yield number, offset, self._named(cells, number)
            else:
                self._header = self._checked_header(cells, number)

    def read(self, number: int, place: int) -> Any:
        with self._plain.open("rb") as file:
            if not self._header:
                self._header = next(self._parsed(file, 1))[2]
            file.seek(place)
            return self._named(next(self._parsed(file, number))[2], number)

    def _parsed(self, file: Iterable[bytes], number: int) -> Iterator[tuple[int, int, list[str]]]:
        """(line, offset, cells) of each record from line `number` on; blank lines are skipped."""
        csv.field_size_limit(LONGEST_CELL)
        lines = _Lines(file, number, self._decoded)
        reader = csv.reader(lines, strict=True)
        while True:
            first, offset = lines.number, lines.offset
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{self.where(first)}: not CSV ({error})") from None
            if cells is None:
                return
            if cells:
                yield first, offset, cells

    def _checked_header(self, cells: list[str], number: int) -> list[str]:
        twice = [name for name, count in Counter(cells).items() if count > 1]
        if twice:
            raise UserError(f"{self.where(number)}: the header names {twice[0]!r} twice, expected one name per column")
        return cells

    def _named(self, cells: list[str], number: int) -> dict[str, str]:
        if len(cells) != len(self._header):
            raise UserError(
                f"{self.where(number)}: {len(cells)} cells, but the header has {len(self._header)}: "
                "quote cells that hold commas, quotes or line breaks"
            )
        return dict(zip(self._header, cells, strict=True))


class _Lines:
    """Decoded lines of a file, and the number and offset of the next one."""

    def __init__(self, file: Iterable[bytes], number: int, decode: Callable[[bytes, int], str]) -> None:
        self._file, self._decode = iter(file), decode
        self.number, self.offset = number, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        text = self._decode(line, self.number)
        self.number, self.offset = self.number + 1, self.offset + len(line)
        return text


def unpacked(path: Path, cache: Path) -> Path:
    """The plain copy of a .gz file in `cache`; made once per path, size and modification time.

    Raises:
      UserError: not gzip, truncated or damaged; a cache that cannot be written.
    """
    target = cache / "unpacked" / f"{stat_key([path])}{Path(path.stem).suffix}"
    if target.exists():
        return target
    try:
        with replacing(target) as temporary, temporary.open("wb") as out:
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
