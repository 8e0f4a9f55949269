"""Several evaluations as one table, each score with its own interval: what `jax_simcas.compare` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_simcas.common import files, plots
from jax_simcas.common.errors import FlagError, UserError, prefixed
from jax_simcas.evaluation import comparison, metrics
from jax_simcas.evaluation.bootstrap import Score
from jax_simcas.evaluation.files import read_scores


def named_folders(given: Sequence[str]) -> dict[str, str]:
    """NAME=FOLDER of each evaluation -> name -> folder.

    Raises:
      FlagError: not of that form; a name that comes twice.
    """
    folders: dict[str, str] = {}
    for text in given:
        name, _, folder = map(str.strip, text.partition("="))
        if not name or not folder:
            raise FlagError(f"{text!r}: expected NAME=FOLDER, a name for the table and the folder of an evaluation")
        if name in folders:
            raise FlagError(f"{text!r}: {name!r} names {folders[name]} already; give each folder a name of its own")
        folders[name] = folder
    return folders


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    scores: dict[str, dict[str, Score]] = {}
    rows = []
    folders = named_folders(arguments.runs)
    summaries = {name: read_scores(Path(folder)) for name, folder in folders.items()}
    for name, folder in folders.items():
        summary = summaries[name]
        if not {"scores", "kept_share", "evidence"} <= summary.keys():
            raise UserError(f"{folder}: its scores.json is not what jax_simcas.evaluate writes; run it again")
        with prefixed("--measures: "):
            measures = comparison.shown_measures(summary["scores"], arguments.measures, folder)
        scores[name] = {measure: comparison.as_score(summary["scores"][measure]) for measure in measures}
        rows.append(comparison.row(name, summary, scores[name]))
    if arguments.plot:
        files.check_place(Path(arguments.plot), "--plot")
    for warning in comparison.differing_documents(summaries):
        print(f"warning: {warning}", file=sys.stderr)
    print(comparison.comparison_table(rows))
    shown = dict.fromkeys(measure for of_run in scores.values() for measure in of_run)
    print("\n" + "\n".join(map(metrics.labelled, shown)))
    if arguments.plot:
        print(f"plot: {plots.plot_comparison(scores, arguments.plot, metrics.measure_of)}")
    return 0
