"""Time and memory against length, both axes logarithmic, with the fitted exponents."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any


def plot_growth(results: list[dict[str, Any]], growth: list[dict[str, Any]], path: Path) -> Path:
    """Draws a panel for seconds and one for working memory; a line for each stage, side and dtype."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("seconds", "seconds", 1.0, "exponent of time"),
        ("working memory, MiB", "working_bytes", 2.0**20, "exponent of memory"),
    )
    for column, (title, name, unit, fitted) in enumerate(panels, 1):
        axes = figure.add_subplot(1, 2, column)
        for line in growth:
            named = [line[key] for key in ("stage", "side", "dtype")]
            own = [r for r in results if [r[key] for key in ("stage", "side", "dtype")] == named]
            points = sorted((r["length"], median(r[name]) / unit) for r in own)
            label = f"{' '.join(named)}, exponent {line[fitted]:.2f}"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("tokens of the document")
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.grid(True, linewidth=0.4, alpha=0.5)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return path
