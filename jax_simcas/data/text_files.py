"""Records of files: JSON lines, CSV and TSV, plain or gzipped; JSON values; several files one after another."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import not_utf8, replacing
from jax_simcas.common.tables import plural
from jax_simcas.data.rows import Fields
from jax_simcas.data.stored import Store, StoredRows, or_error, stat_key

READ_BYTES = 1 << 20
LONGEST_CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is less than a long document


class JsonlSource(StoredRows):
    """The rows of a .jsonl or .jsonl.gz file; a .gz file is unpacked once into `cache`.

    Lines that are not UTF-8, not a JSON object, or whose field is missing or of the wrong type are left out.

    Raises:
      UserError: missing, damaged or without rows; more lines left out than `max_bad_rows`: named by file, line and
        field.
    """

    label = "JsonlSource"

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path, **options: Any) -> None:
        self.path = Path(path)
        super().__init__(JsonlStore(self.path, cache), fields, cache, **options)


class CsvSource(StoredRows):
    """The rows of a .csv (RFC 4180, UTF-8), .tsv (tabs) or .gz file of these, whose first record names the fields.

    Semicolons or tabs separate cells where the header has no comma. Records that are not UTF-8, have more or fewer
    cells than the header, or lack a field are left out, and so is each line from a quote that never ends. A record
    whose quotes are wrong is left out to the line on which their number is even.

    Raises:
      UserError: missing, damaged or without rows; more left out than `max_bad_rows`: named by file, line and field.
    """

    label = "CsvSource"

    def __init__(self, path: str | os.PathLike[str], fields: Fields, cache: Path, **options: Any) -> None:
        self.path = Path(path)
        super().__init__(CsvStore(self.path, cache), fields, cache, **options)


class _LineStore(Store):
    """Records of a text file; places are byte offsets, numbers are lines."""

    unit = "line"

    def __init__(self, path: Path, cache: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.name, self._path = str(path), path
        self.key = stat_key([path])
        self._plain = unpacked(path, cache) if kind_of(path).gzipped else path

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
            return line.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # inside too, where files were joined
        except UnicodeDecodeError as error:
            begin, place = line if number == 1 else b"", f"byte {error.start} of the line"
            why = not_utf8(begin, place, f"name it {self._path.suffix}.gz")
            raise UserError(f"{self.where(number)}: {why}") from None


class JsonlStore(_LineStore):
    """One JSON object per line."""

    def _records(self, file: IO[bytes]) -> Iterator[tuple[int, int, Any]]:
        offset = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, offset, or_error(self._parsed, line, number)
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
            spread = number == 1 and text.strip() in ("{", "[")
            hint = "; it goes on in the next line: write each object in a line of its own" if spread else ""
            raise UserError(f"{where}: not JSON ({error}){hint}") from None
        if not isinstance(record, dict):
            hint = "; name a file that is one list .json" if number == 1 and isinstance(record, list) else ""
            raise UserError(f"{where}: a JSON {type(record).__name__}, expected an object{hint}")
        return record


class CsvStore(_LineStore):
    """One CSV record per row after the header; quoted cells may hold line breaks. Files named .tsv have tabs."""

    def __init__(self, path: Path, cache: Path) -> None:
        super().__init__(path, cache)
        self._header: list[str] = []
        self._delimiter = "\t" if kind_of(path).suffix == ".tsv" else _separator(self._plain)

    def _records(self, file: IO[bytes]) -> Iterator[tuple[int, int, Any]]:
        for number, offset, cells in self._parsed(file, 1):
            if isinstance(cells, UserError):
                if not self._header:
                    raise cells
                yield number, offset, cells
            elif self._header:
                yield number, offset, or_error(self._named, cells, number)
            else:
                self._header = self._checked_header(cells, number)

    def read(self, number: int, place: int) -> Any:
        with self._plain.open("rb") as file:
            if not self._header:
                self._header = self._first(file, 1)
            file.seek(place)
            return self._named(self._first(file, number), number)

    def _first(self, file: Iterable[bytes], number: int) -> list[str]:
        cells = next(self._parsed(file, number))[2]
        if isinstance(cells, UserError):
            raise cells
        return cells

    def _parsed(self, file: Iterable[bytes], number: int) -> Iterator[tuple[int, int, list[str] | UserError]]:
        """(line, offset, cells) of each record from line `number` on; blank lines are skipped.

        Each line of a record that cannot be read gives the reason in place of cells: nobody knows how many records it
        would be.
        """
        csv.field_size_limit(LONGEST_CELL)
        lines = _Lines(file, number, self._decoded)
        reader = csv.reader(lines, strict=True, delimiter=self._delimiter)
        while True:
            first, offset = lines.number, lines.offset
            lines.begin_record()
            try:
                cells = next(reader, None)
            except (UserError, csv.Error) as error:
                not_csv = f"{self.where(first)}: not CSV ({_of_csv(str(error))})"
                wrong = error if isinstance(error, UserError) else UserError(not_csv)
                lines.leave_record(self._is_record)
                yield from ((line, offset, wrong) for line in range(first, lines.number))
                continue
            if cells is None:
                return
            if cells:
                yield first, offset, cells

    def _is_record(self, line: bytes) -> bool:
        """Whether a line that begins with a quote is a record by itself."""
        if not line.startswith(b'"'):
            return False
        try:
            (cells,) = csv.reader([line.decode("utf-8")], strict=True, delimiter=self._delimiter)
        except (UnicodeDecodeError, csv.Error):
            return False
        return len(cells) == len(self._header)

    def _checked_header(self, cells: list[str], number: int) -> list[str]:
        twice = [name for name, count in Counter(cells).items() if count > 1 and name.strip()]
        if twice:
            raise UserError(f"{self.where(number)}: the header names {twice[0]!r} twice, expected one name per column")
        return cells

    def _named(self, cells: list[str], number: int) -> dict[str, str]:
        if len(cells) != len(self._header):
            raise UserError(
                f"{self.where(number)}: {plural(len(cells), 'cell')}, but the header has {len(self._header)}: "
                "quote cells that hold commas, quotes or line breaks"
            )
        return dict(zip(self._header, cells, strict=True))


def _separator(path: Path) -> str:
    """What stands between the cells of a .csv file: a comma or, where its header has none, a semicolon or a tab."""
    try:
        with path.open("rb") as file:
            header = re.sub(rb'"[^"]*"', b"", file.readline())
    except OSError:  # which reading it reports
        return ","
    return next((mark for mark in ",;\t" if mark.encode() in header), ",")


def _of_csv(message: str) -> str:
    """What the csv module finds wrong, without its advice to programmers."""
    if "unexpected end" in message:
        return "a quote that opens in this record never ends"
    return "a line that ends in CR alone: save it with LF or CRLF" if "new-line character" in message else message


class _Lines:
    """Decoded lines of a file, and the number and offset of the next one."""

    def __init__(self, file: Iterable[bytes], number: int, decode: Callable[[bytes, int], str]) -> None:
        self._file, self._decode = iter(file), decode
        self._ahead: list[bytes] = []
        self._quotes = 0  # in the record
        self.number, self.offset = number, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number = self.number
        return self._decode(self._take(), number)

    def _take(self) -> bytes:
        line = self._ahead.pop() if self._ahead else next(self._file)
        self.number, self.offset = self.number + 1, self.offset + len(line)
        self._quotes += line.count(b'"')
        return line

    def begin_record(self) -> None:
        self._quotes = 0

    def leave_record(self, is_record: Callable[[bytes], bool]) -> None:
        """Skips the rest of a record that cannot be read, whose lines would pass for records of their own.

        It ends where its quotes are even in number, as those of every record are, or before a line that is one.
        """
        while self._quotes % 2:
            self._ahead = [*itertools.islice(self._file, 1)]
            if not self._ahead or is_record(self._ahead[0]):
                return
            self._take()


class JsonValueStore(Store):
    """The objects of a .json or .json.gz file that is one list of them, or one object; in memory, numbered from 0."""

    unit = "row"

    def __init__(self, path: Path, cache: Path) -> None:
        self.name, self.key = str(path), stat_key([path])
        plain = unpacked(path, cache) if kind_of(path).gzipped else path
        try:
            value = json.loads(plain.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error})") from None
        self._records = value if isinstance(value, list) else [value]

    def places(self) -> Iterator[tuple[int, int, Any]]:
        for number, record in enumerate(self._records):
            yield number, number, or_error(self._checked, record, number)

    def read(self, number: int, place: int) -> Any:
        return self._records[place]

    def where(self, number: int) -> str:
        return f"{self.name} row {number}"

    def _checked(self, record: Any, number: int) -> dict[str, Any]:
        if not isinstance(record, dict):
            raise UserError(f"{self.where(number)}: a JSON {type(record).__name__}, expected an object")
        return record


class Joined(Store):
    """The records of several stores one after another, numbered from 0."""

    unit = "row"
    SHIFT = 40  # bits of a place within one store

    def __init__(self, name: str, stores: list[Store]) -> None:
        self.name, self._stores = name, stores
        self.key = "\0".join(store.key for store in stores)

    def places(self) -> Iterator[tuple[int, int, Any]]:
        number = 0
        for i, store in enumerate(self._stores):
            for _, place, record in store.places():
                yield number, (i << self.SHIFT) + place, record
                number += 1

    def read(self, number: int, place: int) -> Any:
        return self._stores[place >> self.SHIFT].read(number, place & (1 << self.SHIFT) - 1)

    def where(self, number: int) -> str:
        return f"{self.name} row {number}"


class Kind(NamedTuple):
    """What a file's name tells: the suffix of what it holds, in small letters, and whether that is compressed."""

    suffix: str
    gzipped: bool


def kind_of(path: Path) -> Kind:
    """`.jsonl`, compressed, for `A.JSONL.gz`."""
    gzipped = path.suffix.lower() == ".gz"
    return Kind(Path(path.stem if gzipped else path).suffix.lower(), gzipped)


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
            while block := source.read1(READ_BYTES):
                out.write(block)
    except gzip.BadGzipFile as error:
        # gzip has one class for what is no gzip and for content that does not match its checksum and length.
        if str(error).startswith(("CRC check failed", "Incorrect length")):
            raise UserError(f"{path}: a damaged gzip file ({error}); fetch it again") from None
        if out.tell():
            raise UserError(f"{path}: not gzip behind its content ({error}); fetch it again") from None
        raise UserError(f"{path}: not a gzip file ({error})") from None
    except EOFError:
        raise UserError(f"{path}: a truncated gzip file; fetch it again") from None
    except zlib.error as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); fetch it again") from None
