"""The fields of nested dataclasses of settings by name and type, and values of the right type."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from jax_simcas.common.checks import LARGEST, LARGEST_SEED
from jax_simcas.common.errors import UserError

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}


annotations_of = cache(typing.get_type_hints)  # which takes most of the time of reading a config


def hints_of(cls: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass, by name."""
    hints = annotations_of(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def all_fields(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a dataclass and of those in it: its full name, such as `optimizer.ppo.clip`, and its type."""
    for name, hint in hints_of(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from all_fields(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def hint_of(cls: Any, name: str, where: str) -> Any:
    """The type of a field by its full name.

    Raises:
      UserError: no such field, with the one that may be meant; a section in place of a field.
    """
    at = where
    for part in name.split("."):
        hints = hints_of(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            raise UserError(unknown_field(cls, part, at))
        cls, at = hints[part], f"{at}.{part}"
    if dataclasses.is_dataclass(cls):
        raise UserError(f"{at}: is a section; change one of its fields: {', '.join(hints_of(cls))}")
    return cls


def unknown_field(cls: Any, name: str, where: str) -> str:
    """The message for a field that does not exist, with the closest one that does."""
    if not dataclasses.is_dataclass(cls):
        return f"{where}.{name}: no such field; {where} has no fields of its own"
    known = [item.name for item in dataclasses.fields(cls)]
    close = difflib.get_close_matches(name, known, 1, 0.6) or [k for k in known if k.replace("_", "") == name.lower()]
    close = close or [field for field, _ in all_fields(cls) if field.endswith(f".{name}")]
    hint = f"did you mean {close[0]}?" if close else f"{where} has {', '.join(known)}"
    return f"{where}.{name}: no such field; {hint}"


def value_of(hint: Any, value: Any, where: str) -> Any:
    """The value as its type has it: whole numbers do for floats, lists for tuples.

    Raises:
      UserError: another type; a number that is not finite or does not fit into 32 bits.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            if isinstance(value, list | tuple):
                return tuple(value_of(typing.get_args(kind)[0], item, where) for item in value)
        elif kind is bool or kind is str or kind is type(None):
            if isinstance(value, kind):
                return value
        elif isinstance(value, int) and not isinstance(value, bool) and -LARGEST - 1 <= value <= LARGEST_SEED:
            return kind(value)
        elif kind is float and isinstance(value, float) and abs(value) < float("inf"):
            return value
    raise UserError(f"{where}={value!r}: expected {expected(hint)}")


def parse(hint: Any, text: str, where: str) -> Any:
    """The value that a flag's text stands for.

    Raises:
      UserError: not a value of this type.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        value = _PARSERS.get(typing.get_origin(kind) or kind, lambda _: None)(text)
        if value is not None:
            return value_of(hint, value, where)
    raise UserError(f"{where}={text}: expected {expected(hint)}")


def expected(hint: Any) -> str:
    """A type in words."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(map(_in_words, kinds))


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is not tuple:
        return KINDS[kind]
    return "texts such as ('a',)" if typing.get_args(kind)[0] is str else "whole numbers such as (8,) or (8,32)"


def _bool(text: str) -> bool | None:
    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(text.lower())


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return None

    return read


def _tuple(text: str) -> tuple | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: _bool,
    int: _number(lambda text: int(text, 0) if text.lower().lstrip("+-").startswith("0x") else int(text)),
    float: _number(float),
    str: lambda text: text,
    tuple: _tuple,
}
