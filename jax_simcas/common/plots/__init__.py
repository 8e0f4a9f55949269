"""Pictures: the curves of a run, scores of several runs, differences of two, growth with length.

Each kind has a function that returns a matplotlib Figure and one that writes it as PNG.
"""

from jax_simcas.common.plots.curves import plot_training, training_figure
from jax_simcas.common.plots.growth import Growth, growth_figure, plot_growth
from jax_simcas.common.plots.scores import (
    comparison_figure,
    differences_figure,
    lines_figure,
    plot_comparison,
    plot_differences,
    plot_lines,
)

__all__ = [
    "Growth",
    "comparison_figure",
    "differences_figure",
    "growth_figure",
    "lines_figure",
    "plot_comparison",
    "plot_differences",
    "plot_growth",
    "plot_lines",
    "plot_training",
    "training_figure",
]
