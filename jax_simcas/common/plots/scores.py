"""Scores with intervals: of several runs, of one run against a number, and the differences of two runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jax_simcas.common.files import PathLike
from jax_simcas.common.pairs import Number
from jax_simcas.common.plots.style import COLORS, FAINT, INK, caption, legend_below, new_figure, save_png, tidy
from jax_simcas.common.tables import Interval, Measure, measure_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_EVIDENCE = "#a9b4c0"  # of a difference whose interval contains 0
Describe = Callable[[str], Measure]


def _documents(scores: Iterable[Interval | None]) -> str:
    """`500 documents`; `12 to 500 documents` where scores count different ones."""
    counts = sorted({score[-1] for score in scores if score is not None and score[-1]})
    if not counts:
        return "no documents"
    numbers = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{numbers} document{'s' if counts[-1] > 1 else ''}"


def comparison_figure(
    table: Mapping[str, Mapping[str, Interval]], describe: Describe = measure_named, title: str = ""
) -> Figure:
    """Bars of variants against each other: a panel for each score, whiskers for the intervals.

    Args:
      table: variant -> score -> (mean, low, high, count); missing scores stay empty.
      describe: the title, unit and maximum of a score.
      title: of what the variants are.

    Raises:
      ValueError: an empty table.
    """
    variants = list(table)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    if not names:
        raise ValueError("table: expected at least one variant with one score")
    figure = new_figure(1.6 + 3.0 * len(names), 1.5 + 0.3 * bool(title) + 0.42 * len(variants), title)
    for column, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), column + 1)
        draw_bars(axes, [table[variant].get(name) for variant in variants], describe(name))
        axes.set_yticks(range(len(variants)), variants if column == 0 else [""] * len(variants))
        axes.tick_params(axis="y", colors=INK, length=0, labelsize=9.5)
    documents = _documents(score for row in table.values() for score in row.values())
    caption(figure, f"{documents}; whiskers: 95 % intervals")
    return figure


def draw_bars(axes: Axes, scores: Sequence[Interval | None], measure: Measure) -> None:
    """One panel of bars, with each value at its end."""
    ends = [0.0]
    for y, score in enumerate(scores):
        mean, low, high, _ = (math.nan, math.nan, math.nan, 0) if score is None else score
        if math.isfinite(mean):
            axes.barh(y, mean, height=0.62, color=COLORS[0])
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [y, y], color=INK, linewidth=1.2, marker="|", markersize=7)
        ends.append(max([0.0, *filter(math.isfinite, (mean, high))]))
        label = "–" if math.isnan(mean) else f"{mean:.3g}"
        axes.annotate(label, (ends[-1], y), (5, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    if not max(ends) and any(score is not None and score[0] == 0 for score in scores):
        axes.text(0.5, 0.5, "all scores are 0", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    limit = measure.maximum or math.inf
    axes.set_xlim(0, min(limit, 1.15 * max(ends) or 1.0) if max(ends) < 0.6 * limit else limit)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    tidy(axes, "x", measure.title, measure.unit)
    axes.spines["left"].set_visible(False)


def plot_comparison(
    table: Mapping[str, Mapping[str, Interval]],
    path: PathLike,
    describe: Describe = measure_named,
    title: str = "",
) -> Path:
    """Writes `comparison_figure`.

    Raises:
      ValueError: an empty table.
      UserError: the image cannot be written.
    """
    return save_png(comparison_figure(table, describe, title), path)


def differences_figure(
    differences: Mapping[str, Interval],
    a: str,
    b: str,
    describe: Describe = measure_named,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Differences A - B with their intervals: a row for each score, around the line of no difference.

    Args:
      differences: score -> (mean, low, high, count); whatever is not finite stays empty.
      a, b: names of the two runs; notes: score -> text on the right, such as p.
    """
    figure = new_figure(7.0, 2.0 + 0.42 * len(differences), f"A: {a}\nB: {b}")
    axes = figure.add_subplot()
    axes.axvline(0.0, color=FAINT, linewidth=1.0)
    for y, (name, (mean, low, high, _)) in enumerate(differences.items()):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [y, y], color=INK, linewidth=1.2, marker="|", markersize=7)
        if math.isfinite(mean):
            color = COLORS[0] if low > 0 or high < 0 else NO_EVIDENCE
            axes.plot([mean], [y], color=color, linestyle="", marker="o", markersize=7)
        if notes and name in notes:
            place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8.5, "color": FAINT}
            axes.annotate(notes[name], (1.02, y), **place)  # type: ignore[arg-type]
    axes.set_yticks(range(len(differences)), [describe(name).title for name in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    units = dict.fromkeys(describe(name).unit for name in differences)
    tidy(axes, "x", x=f"A - B ({', '.join(unit for unit in units if unit)})" if any(units) else "A - B")
    axes.tick_params(axis="y", colors=INK, length=0, labelsize=9.5)
    axes.spines["left"].set_visible(False)
    caption(figure, f"{_documents(differences.values())}; whiskers: 95 % intervals; blue: the interval excludes 0")
    return figure


def plot_differences(
    differences: Mapping[str, Interval],
    path: PathLike,
    a: str,
    b: str,
    describe: Describe = measure_named,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Writes `differences_figure`.

    Raises:
      UserError: the image cannot be written.
    """
    return save_png(differences_figure(differences, a, b, describe, notes), path)


def lines_figure(
    panels: Mapping[str, Mapping[str, Mapping[Number, Interval]]],
    axis: str,
    describe: Describe = measure_named,
    title: str = "",
) -> Figure:
    """Scores against a number: a panel for each score, in it a line with its intervals for each label.

    Args:
      panels: score -> label -> x -> (mean, low, high, count); x over more than a decade get a logarithmic axis.
      axis: what x counts.

    Raises:
      ValueError: no panels.
    """
    if not panels:
        raise ValueError("panels: expected at least one")
    figure = new_figure(4.3 * len(panels), 4.0 + 0.3 * bool(title), title)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    points = [point for lines in panels.values() for line in lines.values() for point in line.items()]
    ticks = sorted({x for x, _ in points})
    every = [figure.add_subplot(1, len(panels), column) for column in range(1, len(panels) + 1)]
    for axes, (name, lines) in zip(every, panels.items(), strict=True):
        for label, line in lines.items():
            _draw_line(axes, label, line, COLORS[labels.index(label) % len(COLORS)])
        _number_axis(axes, ticks)
        measure = describe(name)
        tidy(axes, "both", measure.title, axis, measure.unit)
    sizes = [len(lines) for lines in panels.values()]
    note = f"{_documents(score for _, score in points)} per point; shaded: 95 % intervals"
    legend_below(figure, every[sizes.index(max(sizes))], note)
    return figure


def _number_axis(axes: Axes, ticks: Sequence[Number]) -> None:
    """Ticks at these numbers; logarithmic if they span more than a decade."""
    if ticks[0] > 0 and ticks[-1] > 10 * ticks[0]:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{x:,g}" if isinstance(x, float) else f"{x:,}" for x in ticks])
    axes.set_xticks([], minor=True)


def _draw_line(axes: Axes, label: str, points: Mapping[Number, Interval], color: str) -> None:
    x, scores = zip(*sorted(points.items()), strict=True)
    means, low, high, _ = (np.array(column, float) for column in zip(*scores, strict=True))
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(x, means, color=color, linewidth=1.8, marker="o", markersize=4, label=label)


def plot_lines(
    panels: Mapping[str, Mapping[str, Mapping[Number, Interval]]],
    axis: str,
    path: PathLike,
    describe: Describe = measure_named,
    title: str = "",
) -> Path:
    """Writes `lines_figure`.

    Raises:
      ValueError: no panels.
      UserError: the image cannot be written.
    """
    return save_png(lines_figure(panels, axis, describe, title), path)
