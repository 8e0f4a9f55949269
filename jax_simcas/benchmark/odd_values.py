"""Odd values, and odd changes of bytes and of JSON: what `jax_simcas.benchmark.odd_input` gives to readers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

TEXTS = (
    "",
    " ",
    "\0",
    "nan",
    "-1",
    "0",
    "1e400",
    "9" * 30,
    "None",
    "[]",
    "{document}",
    "{query.__class__}",
    "%s%n",
    "../../x",
    "/",
    "a" * 5_000,
    "\u202e\u0000x",
    "\U0001f600" * 20,
    "e\u0301",
    "\ufeff",
    "os:getcwd",
    "jax_simcas.nowhere:nothing",
    "<script>1</script>",
    "'\"`;&|$(x)",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    -(10**30),
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    [],
    [[]],
    [None],
    [-1, 10**9],
    {},
    {"": {}},
    *TEXTS,
)
PIECES = (
    b"",
    b"\0",
    b"\n",
    b"\r\n\r\n",
    b'"',
    b"'",
    b",",
    b"{",
    b"}",
    b"[" * 3_000,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"-0",
    b"9" * 5_000,
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"<!--",
    b"]]>",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
)


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three changes."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content) + 1)
        end = min(len(content), place + rng.choice((1, 1, 2, 8, 100, 10_000)))
        change = rng.randrange(6)
        if change == 0 and content:
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            content = bytes(flipped)
        elif change == 1:
            content = content[:place]
        elif change == 2:
            content = content[:place] + content[end:]
        elif change == 3:
            content = content[:end] + content[place:]
        else:
            content = content[:place] + rng.choice(PIECES) + content[end if change == 4 else place :]
    return content


def change_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value in which one to three values are replaced, left out or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        change = rng.randrange(8)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = rng.choice(VALUES)
        elif change == 2:
            holder[key] = copy.deepcopy(rng.choice(places)[0])
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All (holder, key) within a JSON value; of long lists the ends."""
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    for key in keys if isinstance(value, dict) or len(keys) < 8 else [*keys[:4], *keys[-2:]]:
        yield value, key
        yield from _places(value[key])


def change_json(content: bytes, rng: random.Random) -> bytes:
    """JSON of which values or, once in four times, bytes are changed."""
    if not rng.randrange(4):
        return change_bytes(content, rng)
    return json.dumps(change_value(json.loads(content), rng)).encode()


def change_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of JSON of which one is changed."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = change_json(lines[place], rng)
    return b"\n".join(lines) + b"\n" * rng.randrange(2)
