"""Several evaluations as one table, each score with its own interval: what `jax_simcas.compare` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_simcas.common import files, plots
from jax_simcas.common.errors import FlagError, UserError, prefixed
from jax_simcas.evaluation import bootstrap, comparison, metrics, paired_bootstrap, words
from jax_simcas.evaluation.bootstrap import Score
from jax_simcas.evaluation.files import read_scores
from jax_simcas.evaluation.metrics import ANSWER_SCORES, STANDARD, SUMMARY_SCORES
from jax_simcas.evaluation.words import Words


def words_of(folders: dict[str, str], summaries: dict[str, dict[str, Any]], asked: str | None) -> Words:
    """The words to count in all evaluations: those asked for, else those that all of them count, else by `auto`.

    Raises:
      UserError: words that are not known; predictions that are needed and cannot be read.
    """
    counted = {summary.get("rouge_tokenizer", STANDARD.name) for summary in summaries.values()}
    if asked is None and len(counted) == 1:
        try:
            return words.named(*counted)
        except ValueError as error:
            raise UserError(f"{', '.join(folders.values())}: rouge_tokenizer={error}") from None
    read = [paired_bootstrap.read_predictions(Path(folder)) for folder in folders.values()]
    return paired_bootstrap.words_of(read, asked)


def scores_of(folder: Path, summary: dict[str, Any], measures: list[str], by: Words) -> dict[str, Score]:
    """The measures as the evaluation has them, those that count other words computed from its predictions.

    Raises:
      UserError: predictions that are needed and cannot be read, or have no texts.
    """
    held = {measure: comparison.as_score(summary["scores"][measure]) for measure in measures}
    other = [measure for measure in measures if measure in SUMMARY_SCORES + ANSWER_SCORES]
    if not other or summary.get("rouge_tokenizer", STANDARD.name) == by.name:
        return held
    scored = paired_bootstrap.scored(paired_bootstrap.read_predictions(folder), other, str(folder), by)
    return held | bootstrap.summarize_scores(list(scored.values()))


def warnings_of(folder: Path, summary: dict[str, Any], by: Words) -> list[str]:
    """What the scores of an evaluation cannot show, counted by these words."""
    if "score_warnings" in summary and summary["rouge_tokenizer"] == by.name:
        return summary["score_warnings"]
    try:
        rows = paired_bootstrap.read_predictions(folder)
    except UserError:  # an evaluation of an earlier version, whose texts are gone
        return []
    given, task = [row.references for row in rows.values()], paired_bootstrap.task_of([rows])
    return [f"warning: {warning}" for warning in words.warnings(given, by, task)]


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
        if not {"scores", "kept_share", "evidence"} <= summaries[name].keys():
            raise UserError(f"{folder}: its scores.json is not what jax_simcas.evaluate writes; run it again")
    by = words_of(folders, summaries, arguments.rouge_tokenizer)
    for name, folder in folders.items():
        summary = summaries[name]
        with prefixed("--measures: "):
            measures = comparison.shown_measures(summary["scores"], arguments.measures, folder)
        scores[name] = scores_of(Path(folder), summary, measures, by)
        rows.append(comparison.row(name, summary, scores[name]))
    if arguments.plot:
        files.check_place(Path(arguments.plot), "--plot")
    for warning in comparison.differing_documents(summaries):
        print(f"warning: {warning}", file=sys.stderr)
    print(comparison.comparison_table(rows))
    shown = dict.fromkeys(measure for of_run in scores.values() for measure in of_run)
    print("\n" + "\n".join(metrics.labelled(measure, by) for measure in shown))
    for name, folder in folders.items():
        for warning in warnings_of(Path(folder), summaries[name], by):
            print(f"{name}: {warning}")
    if arguments.plot:
        drawn = {name: scores[name] | comparison.kept_score(summaries[name]) for name in scores}
        splits = " and ".join(dict.fromkeys(str(summary.get("split", "")) for summary in summaries.values()))
        print(f"plot: {plots.plot_comparison(drawn, arguments.plot, metrics.measure_of, f'split: {splits}')}")
    return 0
