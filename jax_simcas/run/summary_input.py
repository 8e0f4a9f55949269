"""The documents that `jax_simcas.summarize` is given: a file each, or a row each of JSON and CSV files."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common.errors import UserError, prefixed
from jax_simcas.data.documents import text_of
from jax_simcas.data.formats import OBJECTS, TABLES, is_json_value
from jax_simcas.data.records import Record, encodable, read_row
from jax_simcas.data.rows import Fields, Row
from jax_simcas.data.stored import Store
from jax_simcas.data.text_files import CsvStore, JsonlStore, JsonValueStore, kind_of

WINDOW = 64  # documents that are held at a time, and sorted by length
WINDOW_CHARACTERS = 1 << 25  # of all of them; one document may have more


class InputDocument(NamedTuple):
    """One document: its name in messages, what names it in JSON, and itself or why it cannot be read."""

    name: str
    label: dict[str, Any]
    row: Row | UserError
    is_row: bool = False  # of many in a file


def is_rows(name: str) -> bool:
    """Whether a file holds a document per row."""
    return kind_of(Path(name)).suffix in (*OBJECTS, *TABLES)


def open_rows(name: str, cache: Path) -> Store:
    """The rows of such a file.

    Raises:
      UserError: missing, or damaged.
    """
    path = Path(name)
    if path.is_file() and is_json_value(path, cache):
        return JsonValueStore(path, cache)
    return (JsonlStore if kind_of(path).suffix in OBJECTS else CsvStore)(path, cache)


def shown(name: str) -> str:
    """A file's name in messages."""
    return "standard input" if name == "-" else encodable(name)


def read_document(name: str) -> str:
    """The text of a file (PDF, HTML and DOCX too), or of standard input for "-".

    Raises:
      UserError: missing, unreadable, not UTF-8 nor a document that can be converted, empty or only whitespace.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{shown(name)}: cannot be read ({error.strerror})") from None
    with prefixed(f"{shown(name)}: "):
        text = text_of(data, name)
    if not text.strip():
        raise UserError(f"{shown(name)}: {'empty' if not text else 'only whitespace'}; there is nothing to summarise")
    return text


def count(names: Sequence[str], cache: Path) -> int:
    """How many documents there are; a file of rows that cannot be opened counts as one."""
    total = 0
    for name in names:
        try:
            total += sum(1 for _ in open_rows(name, cache).places()) if is_rows(name) else 1
        except UserError:
            total += 1
    return total


def documents(names: Sequence[str], fields: Fields, query: str | None, cache: Path) -> Iterator[InputDocument]:
    """Every document, read when its turn comes.

    Args:
      fields: of the rows; `query` too where they name none.
      query: of files, and of rows that have none.
    """
    for name in names:
        if is_rows(name):
            yield from rows(name, fields, query, cache)
            continue
        row: Row | UserError
        try:
            row = Row(id=name, document=read_document(name), summary="", query=query)
        except UserError as error:
            row = error
        yield InputDocument(shown(name), {"file": name}, row)


def rows(name: str, fields: Fields, query: str | None, cache: Path) -> Iterator[InputDocument]:
    """The documents of a file of rows."""
    plain = dataclasses.replace(fields, query="", evidence="")
    asked = dataclasses.replace(fields, query=fields.query or "query")
    try:
        store = open_rows(name, cache)
        for number, _, record in store.places():
            where, label, row = store.where(number), {"file": name, "row": number}, record
            if not isinstance(record, UserError):
                try:
                    row = read_row(record, plain, where, number, need_reference=False)
                    row = dataclasses.replace(row, query=query_of(Record(record, asked, where)) or query)
                    label["id"] = row.id
                except UserError as error:
                    row = error
            yield InputDocument(where, label, row, is_row=True)
    except UserError as error:  # of the file
        yield InputDocument(shown(name), {"file": name}, error, is_row=True)


def query_of(record: Record) -> str | None:
    """The row's own query, where it has one."""
    return None if record.optional("query") is None else record.text("query")


def windows(given: Iterator[InputDocument]) -> Iterator[list[InputDocument]]:
    """The documents in their order, as many at a time as are held."""
    window: list[InputDocument] = []
    characters = 0
    for each in given:
        window.append(each)
        characters += 0 if isinstance(each.row, UserError) else len(each.row.document)
        if len(window) == WINDOW or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window
