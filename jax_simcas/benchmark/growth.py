"""What measurements are reduced to: rows of a table, exponents of growth with length, and the panels of a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from jax_simcas.benchmark.gpu import Card
from jax_simcas.common.plots import Growth
from jax_simcas.common.tables import MIB

COLUMNS = (
    *("stage", "side", "dtype", "size", "remat", "tokens", "seconds", "spread", "tokens/s", "TFLOP/s", "of peak"),
    *("working MiB", "peak MiB", "compile s", "start s"),
)
LINE = ("stage", "side", "dtype", "size", "remat")  # identifies a line of the plot


def columns(card: Card | None) -> list[str]:
    """COLUMNS, without the card's utilisation where there is none."""
    return [name for name in COLUMNS if card or name != "of peak"]


def result_cells(result: dict[str, Any], card: Card | None = None) -> dict[str, Any]:
    """A row of the table, under COLUMNS; the spread is half the range between the fastest and the slowest run."""
    seconds = median(result["seconds"])
    rate = result["flops"] / seconds if result["flops"] else None
    peak = card.peak if card else None
    return {
        **{name: result[name] for name in LINE},
        "tokens": result["length"],
        "seconds": f"{seconds:.3g}",
        "spread": f"±{50 * (max(result['seconds']) - min(result['seconds'])) / seconds:.0f} %",
        "tokens/s": f"{result['length'] / seconds:.0f}",
        "TFLOP/s": f"{rate / 1e12:.3g}" if rate else "–",
        "of peak": f"{rate / peak:.2f}" if rate and peak else "–",
        "working MiB": f"{result['working_bytes'] / MIB:.0f}",
        "peak MiB": f"{result['peak_bytes'] / MIB:.0f}",
        "compile s": f"{result['compile_seconds']:.1f}" if result["compile_seconds"] else "–",
        "start s": f"{result['prepare_seconds']:.1f}",
    }


def exponent(lengths: Sequence[int], values: Sequence[float | int]) -> float:
    """b of values ~ a * length^b, by least squares of the logarithms; NaN where that is undefined.

    Fewer than two lengths, or a value that is not positive, leave it undefined.
    """
    if len(set(lengths)) < 2 or min(values) <= 0:
        return math.nan
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


class Line(NamedTuple):
    """The measurements of one stage, side and dtype by length, with their exponents of growth."""

    names: dict[str, str]
    seconds: Growth
    memory: Growth  # working, MiB


def lines_of(results: Iterable[dict[str, Any]]) -> list[Line]:
    """The results by what identifies a line of the plot: the medians of the runs."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(tuple(result[name] for name in LINE), []).append(result)
    out = []
    for names, same in found.items():
        lengths = [result["length"] for result in same]
        columns = ([median(result["seconds"]) for result in same], [result["working_bytes"] / MIB for result in same])
        seconds, memory = (Growth(tuple(zip(lengths, c, strict=True)), exponent(lengths, c)) for c in columns)
        out.append(Line(dict(zip(LINE, names, strict=True)), seconds, memory))
    return out


def exponents(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The exponents of time and of working memory, as rows of a table."""
    return [
        {**line.names, "exponent of time": line.seconds.exponent, "exponent of memory": line.memory.exponent}
        for line in lines
    ]


def panels(lines: Iterable[Line]) -> dict[str, dict[str, Growth]]:
    """Time and working memory of each line of the plot."""
    labelled = {" ".join(line.names.values()): line for line in lines}
    return {
        "Time in seconds": {label: line.seconds for label, line in labelled.items()},
        "Working memory in MiB": {label: line.memory for label, line in labelled.items()},
    }
