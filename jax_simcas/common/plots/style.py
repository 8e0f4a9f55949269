"""What all pictures share: colours, sizes, captions, and how they are written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jax_simcas.common.files import PathLike, replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#2f6db3", "#d9622b", "#3a8f5c", "#8457a8", "#7a7a7a")
INK, FAINT, GRID = "#333333", "#777777", "#e6e6e6"
DPI = 150


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of this size in inches. Not pyplot's: no window system, no state shared with the caller."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.05)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    if title:
        figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def tidy(axes: Axes, grid: str, title: str = "", x: str = "", y: str = "") -> None:
    """Grid lines on the axes named by `grid` (x, y or both), no frame, and small labels."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8.5)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=FAINT)
    axes.set_ylabel(y, fontsize=9, color=FAINT)


def legend_below(figure: Figure, axes: Axes, note: str = "") -> None:
    """The labels of one panel as the figure's legend, below all panels, where it covers no data; `note` above them."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = min(len(labels), max(1, int(figure.get_figwidth() / 4.0)))
        options = {"ncols": columns, "frameon": False, "fontsize": 8.5, "labelcolor": INK}
        legend = figure.legend(handles, labels, loc="outside lower left", title=note or None, **options)
        legend.set_alignment("left")
        legend.get_title().set(fontsize=8.5, color=FAINT)


def caption(figure: Figure, text: str) -> None:
    """A line of small print below the panels."""
    figure.supxlabel(text, fontsize=8.5, color=FAINT, x=0.01, ha="left")


def save_png(figure: Figure, path: PathLike) -> Path:
    """Writes a PNG.

    Raises:
      UserError: it cannot be written.
    """
    image = BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    replace_file(Path(path), image.getvalue())
    return Path(path)
