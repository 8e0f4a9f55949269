"""Records of folders: a text per document, or a JSON object per file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import not_utf8
from jax_simcas.data.stored import Store, or_error, stat_key

PART = re.compile(r"(?P<document>.+)\.(?P<field>summary|query|context)(\.\d+)?")  # a file beside NAME.txt, without .txt


class FolderStore(Store):
    """One record per file of a folder, in the order of their names, numbered from 1."""

    unit = "file"

    def __init__(self, folder: Path, files: list[Path], all_files: list[Path]) -> None:
        self.name, self.key, self._files = str(folder), stat_key(all_files), files

    def places(self) -> Iterator[tuple[int, int, Any]]:
        for number in range(1, len(self._files) + 1):
            yield number, number, or_error(self.read, number, number)

    def where(self, number: int) -> str:
        return str(self._files[number - 1])

    def label(self, number: int) -> str:
        return self._files[number - 1].name


class JsonFolder(FolderStore):
    """A JSON object per file; its id is the file's name without `.json`, unless it has one."""

    def __init__(self, folder: Path) -> None:
        files = files_ending(folder, ".json")
        super().__init__(folder, files, files)

    def read(self, number: int, place: int) -> Any:
        path = self._files[place - 1]
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}: a JSON {type(record).__name__}, expected an object")
        return {"id": path.stem} | record


class TextFolder(FolderStore):
    """A document per file `NAME.txt`; its summary is in `NAME.summary.txt`, several in `NAME.summary.1.txt` and so on.

    Likewise `NAME.query.txt` and `NAME.context.txt`. The record's fields have these names, and its id is NAME.
    """

    def __init__(self, folder: Path) -> None:
        every = files_ending(folder, ".txt")
        names = {path.stem for path in every if not PART.fullmatch(path.stem)}
        self._parts: dict[str, dict[str, list[Path]]] = {}
        files = []
        for path in every:
            part = PART.fullmatch(path.stem)
            if part and part["document"] in names:
                self._parts.setdefault(part["document"], {}).setdefault(part["field"], []).append(path)
            else:
                files.append(path)  # a part without its document too, so that it is told
        super().__init__(folder, files, every)

    def read(self, number: int, place: int) -> Any:
        path = self._files[place - 1]
        if part := PART.fullmatch(path.stem):
            raise UserError(f"{path}: no {part['document']}.txt beside it, whose {part['field']} it would be")
        record: dict[str, Any] = {"id": path.stem, "document": _text_of(path), "summary": None}
        for field, files in self._parts.get(path.stem, {}).items():
            # The end of the file's last line is no part of a summary, and a model would learn to write it.
            texts = [_text_of(file).replace("\r\n", "\n").strip() for file in sorted(files, key=_number)]
            record[field] = texts if len(texts) > 1 else texts[0]
        return record


def files_ending(folder: Path, suffix: str) -> list[Path]:
    """What in a folder has this suffix, in small or capital letters, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == suffix)


def _number(part: Path) -> int:
    """The N of `NAME.summary.N.txt`; 0 without one."""
    number = part.stem.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _text_of(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {not_utf8(data, f'byte {error.start}')}") from None
