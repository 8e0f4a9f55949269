"""Several evaluations as one table, each score with its own interval: what `jax_simcas.compare` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax_simcas.common import plots
from jax_simcas.common.errors import UserError, prefixed
from jax_simcas.evaluation import comparison, metrics
from jax_simcas.evaluation.bootstrap import Score
from jax_simcas.evaluation.files import read_scores


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    scores: dict[str, dict[str, Score]] = {}
    rows = []
    for item in arguments.runs:
        name, separator, folder = item.partition("=")
        if not separator:
            raise UserError(f"{item}: expected NAME=FOLDER, the folder of an evaluation")
        summary = read_scores(Path(folder))
        with prefixed("--measures: "):
            measures = comparison.shown_measures(summary["scores"], arguments.measures, folder)
        scores[name] = {measure: comparison.as_score(summary["scores"][measure]) for measure in measures}
        rows.append(comparison.row(name, summary, scores[name]))
    print(comparison.comparison_table(rows))
    shown = dict.fromkeys(measure for of_run in scores.values() for measure in of_run)
    print("\n" + "\n".join(map(metrics.labelled, shown)))
    if arguments.plot:
        print(f"plot: {plots.plot_comparison(scores, arguments.plot, metrics.measure_of)}")
    return 0
