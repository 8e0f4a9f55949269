"""Markdown tables of numbers with intervals, and what the numbers are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MIB, GIB = 2**20, 2**30  # bytes
Interval = tuple[float, float, float, int]  # (mean, low, high, count), such as a `bootstrap.Score`


class Measure(NamedTuple):
    """What a number is called on axes: a title, its unit, and the largest value it can have."""

    title: str
    unit: str = ""
    maximum: float | None = None


def measure_named(name: str) -> Measure:
    """A measure that is called as it is named."""
    return Measure(name)


def format_number(value: float, digits: int = 1) -> str:
    """`12.3`; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 chunk`, `5 chunks`; `several` where the plural is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def format_score(score: Interval, digits: int = 1) -> str:
    """`12.3 [11.0, 13.5]`; only the mean where there is no interval, a dash where there is nothing."""
    mean, low, high, _ = score
    if math.isnan(mean) or math.isnan(low):
        return format_number(mean, digits)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, tuple):
        return format_score(value)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table that also reads well as plain text; the first column is left-aligned, the others right-aligned.

    Cells are text, numbers or (mean, low, high, count); None, NaN and missing cells become dashes.
    """
    cells = [[_cell(name) for name in columns]] + [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]

    def line(texts: Sequence[str]) -> str:
        first = texts[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(texts[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])
