"""(sum, count) pairs: undivided means, so that documents, batches and processes can be added before dividing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Number = float | int
Pair = tuple[Any, Any]  # (sum, count): Python, numpy or device scalars
Totals = dict[str, tuple[float, float]]  # name -> (sum, count)


def add(a: Pair, b: Pair) -> tuple[float, float]:
    """Adds two pairs in double precision; (0.0, 0.0) is neutral."""
    return float(a[0]) + float(b[0]), float(a[1]) + float(b[1])


def total(pairs: Iterable[Pair]) -> tuple[float, float]:
    """The sum of any number of pairs."""
    out = (0.0, 0.0)
    for pair in pairs:
        out = add(out, pair)
    return out


def mean(pair: Pair) -> float:
    """sum / count; NaN when nothing was counted."""
    value, count = float(pair[0]), float(pair[1])
    return value / count if count else math.nan


def add_named(a: Mapping[str, Pair], b: Mapping[str, Pair]) -> Totals:
    """Adds two mappings name by name; a name that only one of them has counts as (0, 0) in the other."""
    return {name: add(a.get(name, (0.0, 0.0)), b.get(name, (0.0, 0.0))) for name in {**a, **b}}


def means(totals: Mapping[str, Pair]) -> dict[str, float]:
    """sum / count of every pair with a count."""
    return {name: mean(pair) for name, pair in totals.items() if pair[1]}
