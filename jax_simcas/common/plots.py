"""Pictures: the curves of a run, variants against each other, growth with length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jax_simcas.common.files import PathLike, replace_file
from jax_simcas.common.metric_log import read_metrics, with_kept
from jax_simcas.common.progress import Number
from jax_simcas.common.tables import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """One curve to draw: file, figure in metrics.jsonl, title and what the vertical axis counts."""

    file: str
    name: str
    title: str
    unit: str


PANELS = (
    Panel("loss", "loss", "Loss (smoothed labels)", "nats/token"),
    Panel("nll", "nll", "Negative log-likelihood", "nats/token"),
    Panel("reward", "reward", "Reward of the selection", "R, mean over documents"),
    Panel("kept", "kept", "Kept: what the decoder sees", "share of candidates"),
    Panel("kl", "ppo/approx_kl", "KL of a selector update", "nats/candidate"),
    Panel("entropy", "ppo/entropy", "Entropy of the selector", "nats/candidate"),
)
_COLORS = {"train": "#2f6db3", "validation": "#d9622b"}
_OTHER_COLORS = ("#3a8f5c", "#8457a8", "#7a7a7a")
_INK, _FAINT, _GRID, _PLAIN_BAR = "#333333", "#777777", "#e6e6e6", "#a9b4c0"
_LOG_RANGE = 100.0  # ratio of extremes beyond which a linear axis would show nothing of the small values
_DPI = 150

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> (steps, values)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """The finite values of one figure for each split, by step; the last line of a step counts."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        value = row.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(row["split"], {})[row["step"]] = float(value)
    order = sorted(found, key=lambda split: (split not in _COLORS, split))
    return {
        split: (np.array(sorted(found[split])), np.array([v for _, v in sorted(found[split].items())]))
        for split in order
    }


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a twentieth of the points, shorter at both ends."""
    width = 2 * (len(values) // 40) + 1
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _tidy(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=8.5)


def _draw_panel(axes: Axes, panel: Panel, series: Series) -> None:
    from matplotlib.ticker import MaxNLocator

    others = iter(_OTHER_COLORS * len(series))
    for split, (steps, values) in series.items():
        color = _COLORS.get(split) or next(others)
        # Many points: the line is their average, the points themselves stay visible behind it.
        dense = len(steps) >= 40
        if dense:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        shown = smooth(values) if dense else values
        marker = "" if dense else "o"
        axes.plot(steps, shown, color=color, linewidth=1.8, label=split, marker=marker, markersize=3)
    everything = np.concatenate([values for _, values in series.values()])
    if everything.min() > 0 and everything.max() / everything.min() >= _LOG_RANGE:
        axes.set_yscale("log")
    elif everything.min() >= 0 and everything.max() > 2 * everything.min():
        axes.set_ylim(bottom=0)
    axes.set_title(panel.title, fontsize=10.5, color=_INK, loc="left")
    axes.set_xlabel("optimizer step", fontsize=9, color=_FAINT)
    axes.set_ylabel(panel.unit, fontsize=9, color=_FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _tidy(axes, "both")
    if list(series) != ["train"]:
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=_INK)  # "best" may be slow, and warns


def _figure(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: no window system, no state shared with the caller.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.05)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _save(figure: Figure, path: Path) -> Path:
    image = BytesIO()
    figure.savefig(image, format="png", dpi=_DPI)
    replace_file(path, image.getvalue())
    return path


def plot_training(metrics_jsonl: PathLike, folder: PathLike) -> list[Path]:
    """Draws the curves of a run: `folder`/curves.png with all of them, and each in `folder`/curves/NAME.png.

    Figures that a run does not have are left out; without any there is no file.

    Raises:
      UserError: the metrics cannot be read, or the images not written.
    """
    rows = [with_kept(row) for row in read_metrics(metrics_jsonl)]  # older runs did not log it
    panels = [(panel, series) for panel in PANELS if (series := _series(rows, panel.name))]
    if not panels:
        return []
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    lines = math.ceil(len(panels) / columns)
    figure = _figure(4.3 * columns, 3.0 * lines)
    for position, (panel, series) in enumerate(panels, 1):
        _draw_panel(figure.add_subplot(lines, columns, position), panel, series)
    written = [_save(figure, Path(folder) / "curves.png")]
    for panel, series in panels:
        figure = _figure(6.0, 3.8)
        _draw_panel(figure.add_subplot(), panel, series)
        written.append(_save(figure, Path(folder) / "curves" / f"{panel.file}.png"))
    return written


def plot_comparison(table: Mapping[str, Mapping[str, Interval]], path: PathLike) -> Path:
    """Draws variants against each other: a panel of bars for each score, whiskers for the intervals.

    Args:
      table: variant -> score -> (mean, low, high, count); the first variant stands out; gaps stay empty.

    Raises:
      ValueError: an empty table.
      UserError: the image cannot be written.
    """
    variants = list(table)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    if not names:
        raise ValueError("table: expected at least one variant with one score")
    figure = _figure(1.6 + 3.0 * len(names), 1.1 + 0.42 * len(variants))
    for column, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), column + 1)
        _draw_bars(axes, [table[variant].get(name) for variant in variants])
        axes.set_title(name, fontsize=10.5, color=_INK, loc="left")
        axes.set_yticks(range(len(variants)), variants if column == 0 else [""] * len(variants))
        axes.tick_params(axis="y", colors=_INK, length=0, labelsize=9.5)
    return _save(figure, Path(path))


def _draw_bars(axes: Axes, scores: Sequence[Interval | None]) -> None:
    ends = [0.0]
    for y, score in enumerate(scores):
        point, low, high = (math.nan,) * 3 if score is None else score[:3]
        end = 0.0
        if math.isfinite(point):
            axes.barh(y, point, height=0.62, color=_COLORS["train"] if y == 0 else _PLAIN_BAR)
            end = max(end, point)
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [y, y], color=_INK, linewidth=1.2, marker="|", markersize=7)
            end = max(end, high)
        label = "–" if math.isnan(point) else f"{point:.3g}"
        axes.annotate(label, (end, y), (5, 0), textcoords="offset points", va="center", fontsize=9, color=_INK)
        ends.append(end)
    axes.set_xlim(right=1.22 * max(ends) or 1.0)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    _tidy(axes, "x")
    axes.spines["left"].set_visible(False)


def plot_differences(differences: Mapping[str, Interval], path: PathLike) -> Path:
    """Draws differences A - B with their intervals, one line for each score, beside the line of no difference.

    Args:
      differences: score -> (mean, low, high, count); what is not finite stays empty.

    Raises:
      UserError: the image cannot be written.
    """
    figure = _figure(6.0, 1.2 + 0.42 * len(differences))
    axes = figure.add_subplot()
    axes.axvline(0.0, color=_FAINT, linewidth=1.0)
    for y, (point, low, high, _) in enumerate(differences.values()):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [y, y], color=_INK, linewidth=1.2, marker="|", markersize=7)
        if math.isfinite(point):
            color = _COLORS["train"] if low > 0 or high < 0 else _PLAIN_BAR  # only what is surely not zero stands out
            axes.plot([point], [y], color=color, linestyle="", marker="o", markersize=7)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel("A - B, 95 % interval", fontsize=9, color=_FAINT)
    _tidy(axes, "x")
    axes.tick_params(axis="y", colors=_INK, length=0, labelsize=9.5)
    axes.spines["left"].set_visible(False)
    return _save(figure, Path(path))


def plot_lines(panels: Mapping[str, Mapping[str, Mapping[Number, Interval]]], axis: str, path: PathLike) -> Path:
    """Draws scores against a number: a panel for each score, in it a line with intervals for each label.

    Args:
      panels: score -> label -> x -> (mean, low, high, count); x that span more than a decade get a logarithmic axis.
      axis: what x counts.

    Raises:
      ValueError: no panels.
      UserError: the image cannot be written.
    """
    if not panels:
        raise ValueError("panels: expected at least one")
    every = sorted({x for lines in panels.values() for points in lines.values() for x in points})
    colors = (_COLORS["train"], _COLORS["validation"], *_OTHER_COLORS)
    figure = _figure(4.3 * len(panels), 3.6)
    for column, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), column)
        for number, (label, points) in enumerate(lines.items()):
            color = colors[number % len(colors)]
            x, scores = zip(*sorted(points.items()), strict=True)
            means, low, high = (np.array([score[i] for score in scores], float) for i in range(3))
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(x, means, color=color, linewidth=1.8, marker="o", markersize=4, label=label)
        if every[0] > 0 and every[-1] > 10 * every[0]:
            axes.set_xscale("log")
        axes.set_xticks(every, [f"{x:g}" for x in every])
        axes.set_xticks([], minor=True)
        axes.set_title(title, fontsize=10.5, color=_INK, loc="left")
        axes.set_xlabel(axis, fontsize=9, color=_FAINT)
        axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=_INK)
        _tidy(axes, "both")
    return _save(figure, Path(path))


class Growth(NamedTuple):
    """One line of a growth plot: (tokens, value) points and the fitted exponent."""

    points: tuple[tuple[Number, Number], ...]
    exponent: float


def plot_growth(panels: Mapping[str, Mapping[str, Growth]], path: PathLike) -> Path:
    """Draws what grows with length, both axes logarithmic: a panel for each title, in it a line for each label.

    Raises:
      UserError: the image cannot be written.
    """
    figure = _figure(4.8 * len(panels), 3.8)
    for column, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), column)
        for label, line in lines.items():
            name = f"{label}: {line.exponent:.2f}"
            axes.plot(*zip(*sorted(line.points), strict=True), linewidth=1.8, marker="o", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_title(title, fontsize=10.5, color=_INK, loc="left")
        axes.set_xlabel("tokens of the document", fontsize=9, color=_FAINT)
        axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=_INK)
        _tidy(axes, "both")
    return _save(figure, Path(path))
