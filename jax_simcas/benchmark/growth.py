"""What measurements are reduced to: rows of a table, exponents of growth with length, and the panels of a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from jax_simcas.common.plots import Growth

COLUMNS = (
    *("stage", "side", "dtype", "tokens", "seconds", "spread", "tokens/s"),
    *("working MiB", "peak MiB", "compile s", "start s"),
)
LINE = ("stage", "side", "dtype")  # identifies a line of the plot
MIB = 2**20


def result_cells(result: dict[str, Any]) -> dict[str, Any]:
    """A row of the table, under COLUMNS; the spread is half the range between the fastest and the slowest run."""
    seconds = median(result["seconds"])
    return {
        **{name: result[name] for name in LINE},
        "tokens": result["length"],
        "seconds": f"{seconds:.3g}",
        "spread": f"±{50 * (max(result['seconds']) - min(result['seconds'])) / seconds:.0f} %",
        "tokens/s": f"{result['length'] / seconds:.0f}",
        "working MiB": f"{result['working_bytes'] / MIB:.0f}",
        "peak MiB": f"{result['peak_bytes'] / MIB:.0f}",
        "compile s": f"{result['compile_seconds']:.1f}" if result["compile_seconds"] else "–",
        "start s": f"{result['prepare_seconds']:.1f}",
    }


def exponent(lengths: Sequence[int], values: Sequence[float | int]) -> float:
    """b of values ~ a * length^b, by least squares of the logarithms; NaN with fewer than two lengths."""
    if len(set(lengths)) < 2 or min(values) <= 0:
        return math.nan
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def by_line(results: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The results of each line of the plot."""
    lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        lines.setdefault(tuple(result[name] for name in LINE), []).append(result)
    return lines


def growth(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponents of time and of working memory for each stage, side and dtype."""
    out = []
    for line, same in by_line(results).items():
        lengths = [result["length"] for result in same]
        out.append(
            dict(zip(LINE, line, strict=True))
            | {
                "exponent of time": exponent(lengths, [median(result["seconds"]) for result in same]),
                "exponent of memory": exponent(lengths, [result["working_bytes"] for result in same]),
            }
        )
    return out


def panels(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Growth]]:
    """Time and working memory of each line of the plot, with their exponents."""
    seconds, memory = {}, {}
    for line, same in by_line(results).items():
        lengths = [result["length"] for result in same]
        times = [median(result["seconds"]) for result in same]
        sizes = [result["working_bytes"] / MIB for result in same]
        label = " ".join(line)
        seconds[label] = Growth(tuple(zip(lengths, times, strict=True)), exponent(lengths, times))
        memory[label] = Growth(tuple(zip(lengths, sizes, strict=True)), exponent(lengths, sizes))
    return {"Time in seconds": seconds, "Working memory in MiB": memory}
