"""How time and memory grow with the length of the document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jax_simcas.common.files import PathLike
from jax_simcas.common.pairs import Number
from jax_simcas.common.plots.style import COLORS, FAINT, INK, caption, new_figure, save_png, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Growth(NamedTuple):
    """One line of the plot: (tokens, value) points, and b of the fit value ~ a * tokens^b."""

    points: tuple[tuple[Number, Number], ...]
    exponent: float


def growth_figure(panels: Mapping[str, Mapping[str, Growth]], note: str = "") -> Figure:
    """What grows with length, both axes logarithmic: a panel for each title, in it a line for each label.

    A dashed line has slope 1: growth in proportion to the length. The legend of each panel has the fitted exponents.
    `note` goes into the caption, such as the machine.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = new_figure(4.8 * len(panels), 4.2 + 0.2 * max(map(len, panels.values())))
    for column, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), column)
        for number, (label, line) in enumerate(lines.items()):
            name = f"{label}: exponent {line.exponent:.2f}" if math.isfinite(line.exponent) else label
            color = COLORS[number % len(COLORS)]
            axes.plot(
                *zip(*sorted(line.points), strict=True),
                color=color,
                linewidth=1.8,
                marker="o",
                markersize=4,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        _draw_reference(axes, [point for line in lines.values() for point in line.points])
        axes.set_xticks(sorted({x for line in lines.values() for x, _ in line.points}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        for side in (axes.xaxis, axes.yaxis):
            side.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        tidy(axes, "both", title, "tokens of the document")
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), frameon=False, fontsize=8.5, labelcolor=INK)
    caption(figure, "; ".join(["both axes are logarithmic", *([note] if note else [])]))
    return figure


def _draw_reference(axes: Axes, points: Sequence[tuple[Number, Number]]) -> None:
    """A dashed line of slope 1 through the smallest value at the shortest length."""
    lengths = [x for x, _ in points]
    start = min(lengths)
    value = min(y for x, y in points if x == start)
    ends = [start, max(lengths)]
    proportional = [value * x / start for x in ends]
    axes.plot(ends, proportional, color=FAINT, linewidth=1.0, linestyle="--", label="proportional: exponent 1")


def plot_growth(panels: Mapping[str, Mapping[str, Growth]], path: PathLike, note: str = "") -> Path:
    """Writes `growth_figure`.

    Raises:
      UserError: the image cannot be written.
    """
    return save_png(growth_figure(panels, note), path)
