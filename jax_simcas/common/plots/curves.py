"""The curves of a training run, from its metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jax_simcas.common.files import PathLike
from jax_simcas.common.metric_log import read_metrics, with_kept
from jax_simcas.common.plots.style import COLORS, legend_below, new_figure, save_png, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """One panel of the curves: its file, its metric in metrics.jsonl, its title, and what the vertical axis counts.

    noisy: many points are smoothed.
    """

    file: str
    name: str
    title: str
    unit: str
    noisy: bool = True


LOSS = Panel("loss", "loss", "Loss", "nats per token, smoothed labels")
NLL = Panel("nll", "nll", "Negative log-likelihood", "nats per token")
SAME = LOSS._replace(title="Loss = negative log-likelihood", unit=NLL.unit)  # without label smoothing
PANELS = (
    LOSS,
    NLL,
    Panel("reward", "reward", "Reward of the selection (higher is better)", "R, by default scale × exp(-nll)"),
    Panel("kept", "kept", "Kept: what the decoder sees", "share of candidates"),
    Panel("overflow", "selection/overflow", "Selected beyond the capacity, and dropped", "share of the selected"),
    Panel("kl", "ppo/approx_kl", "KL of a selector update", "nats per candidate"),
    Panel("entropy", "ppo/entropy", "Entropy of the selector (at most 0.69)", "nats per candidate"),
    Panel("learning_rate", "learning_rate", "Learning rate of the transformer", "", noisy=False),
    Panel("grad_norm", "grad_norm", "Gradient norm of the transformer", "before clipping"),
    Panel("speed", "tokens_per_second", "Speed", "document tokens per second"),
)
SPLITS = {  # split -> color, label
    "train": (COLORS[0], "training (training policy: sampled by default)"),
    "validation": (COLORS[1], "validation (inference policy: greedy by default)"),
}
LOG_RANGE = 100.0  # ratio of extremes beyond which a linear axis would hide the small values
SMOOTHED = 20  # an average spans one of so many points: noise goes, and trends of a tenth of the run stay
DENSE = 2 * SMOOTHED  # points from which on the average, then of three or more, is drawn over the raw line
TICKS = 6

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> (steps, values)


def series_of(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """The finite values of one metric for each split, by step; the last line of a step counts."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        value = row.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(row["split"], {})[row["step"]] = float(value)
    order = sorted(found, key=lambda split: (split not in SPLITS, split))
    return {
        split: (np.array(sorted(found[split])), np.array([v for _, v in sorted(found[split].items())]))
        for split in order
    }


def equal(a: Series, b: Series) -> bool:
    """Whether two metrics have the same values, up to rounding."""
    return list(a) == list(b) and all(
        np.array_equal(a[split][0], b[split][0]) and np.allclose(a[split][1], b[split][1], rtol=1e-4) for split in a
    )


def panels_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Panel, Series]]:
    """The panels with values; loss and nll are one panel where they are equal."""
    rows = [with_kept(row) for row in rows]
    panels = [(panel, series) for panel in PANELS if (series := series_of(rows, panel.name))]
    loss, nll = (series_of(rows, panel.name) for panel in (LOSS, NLL))
    if loss and equal(loss, nll):
        panels = [(SAME if panel is LOSS else panel, series) for panel, series in panels if panel is not NLL]
    return panels


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over one of SMOOTHED points, shorter at both ends."""
    width = 2 * (len(values) // (2 * SMOOTHED)) + 1
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def step_ticks(steps: Sequence[int]) -> list[int]:
    """At most TICKS of the steps with validation, evenly spaced and with the last one."""
    stride = max(1, -(-len(steps) // TICKS))
    return list(steps[::-1][::stride][::-1])


def draw_panel(axes: Axes, panel: Panel, series: Series, ticks: Sequence[int]) -> None:
    """One panel, with a line for each split."""
    from matplotlib.ticker import MaxNLocator

    others = iter(COLORS[2:] * len(series))
    for split, (steps, values) in series.items():
        color, label = SPLITS.get(split) or (next(others), split)
        if len(steps) < DENSE:
            axes.plot(steps, values, color=color, linewidth=1.8, label=label, marker="o", markersize=3)
            continue
        if panel.noisy:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values) if panel.noisy else values, color=color, linewidth=1.8, label=label)
    _scale(axes, np.concatenate([values for _, values in series.values()]))
    if ticks:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
    tidy(axes, "both", panel.title, "optimizer step", panel.unit)


def _scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis for values over decades, one from 0 for values that vary much."""
    if values.min() > 0 and values.max() / values.min() >= LOG_RANGE:
        axes.set_yscale("log")
    elif values.min() >= 0 and values.max() > 2 * values.min():
        axes.set_ylim(bottom=0)
    elif not values.any():
        axes.set_ylim(0, 1)


def explained(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the points are: how many documents, and how drawn."""
    documents = [row["documents"] for row in rows if row["split"] == "validation" and row.get("documents")]
    on = f"validation: means over {documents[-1]:,.0f} documents, at the ticks; " if documents else ""
    return f"{on}no intervals. Thin lines: as logged; thick: moving average"


def _figure(
    panels: Sequence[tuple[Panel, Series]], columns: int, size: tuple[float, float], title: str, rows: Sequence[Any]
) -> Figure:
    """A grid of panels with one legend and what the points are."""
    lines, ticks = math.ceil(len(panels) / columns), ticks_of(rows)
    figure = new_figure(size[0] * columns, size[1] * lines + 0.8, title)
    every = [figure.add_subplot(lines, columns, position) for position in range(1, len(panels) + 1)]
    for axes, (panel, series) in zip(every, panels, strict=True):
        draw_panel(axes, panel, series, ticks)
    most = max(range(len(panels)), key=lambda number: len(panels[number][1]))
    legend_below(figure, every[most], explained(rows))
    return figure


def ticks_of(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ticks of the steps: where there was validation."""
    return step_ticks(sorted({row["step"] for row in rows if row["split"] == "validation"}))


def training_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure | None:
    """All panels of a run in one figure, from the lines of metrics.jsonl; None where there is nothing to draw."""
    panels = panels_of(rows)
    if not panels:
        return None
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    return _figure(panels, columns, (4.3, 2.8), title, rows)


def plot_training(metrics_jsonl: PathLike, folder: PathLike) -> list[Path]:
    """Draws the curves of a run: `folder`/curves.png with all of them, and each in `folder`/curves/NAME.png.

    Metrics that a run does not have are left out; without any there is no file.

    Raises:
      UserError: the metrics cannot be read, or the images not written.
    """
    rows, name = read_metrics(metrics_jsonl), Path(metrics_jsonl).resolve().parent.name
    together = training_figure(rows, name)
    if together is None:
        return []
    written = [save_png(together, Path(folder) / "curves.png")]
    for panel, series in panels_of(rows):
        figure = _figure([(panel, series)], 1, (6.0, 3.8), name, rows)
        written.append(save_png(figure, Path(folder) / "curves" / f"{panel.file}.png"))
    return written
