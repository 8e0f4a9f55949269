"""What an experiment's folder gets: table.md, table.csv and plot.png, of whatever has finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jax_simcas.common import files, plots
from jax_simcas.common.errors import UserError
from jax_simcas.common.pairs import Number
from jax_simcas.common.tables import Interval
from jax_simcas.evaluation import metrics
from jax_simcas.evaluation.files import read_rows, read_scores
from jax_simcas.evaluation.words import ROUGE_SCORE
from jax_simcas.experiments import statistics, table
from jax_simcas.experiments.plan import Command, evaluation_folder
from jax_simcas.experiments.runner import seconds_of
from jax_simcas.experiments.spec import Cell, Experiment, cells
from jax_simcas.experiments.statistics import Measures, Results
from jax_simcas.experiments.table import TableRow


def read_evaluation(folder: Path) -> tuple[list[Measures], str, str]:
    """The measures of each document of an evaluation, what identifies its documents, and the words that scores count.

    Raises:
      UserError: a file that cannot be read.
    """
    try:
        records = [record for _, record in read_rows(folder)]
        summary = read_scores(folder)
        measures: list[Measures] = [statistics.measures_of(record) for record in records]
        documents = f"{summary['source']} {[record['index'] for record in records]}"
        return measures, documents, summary.get("rouge_tokenizer", ROUGE_SCORE)
    except UserError as error:
        raise UserError(f"{error}; or remove {folder}, which is then run again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: cannot be read ({error!r}); remove it to run it again") from None


def read_results(experiment: Experiment, workdir: Path, commands: Sequence[Command]) -> dict[str, Results]:
    """What the finished evaluations of each cell measured, by its label; cells without any are left out.

    Raises:
      UserError: a file of a finished evaluation that cannot be read; documents, or words that are counted, that
      differ between seeds.
    """
    done = {command.folder for command in commands if command.program == "evaluate" and seconds_of(command) is not None}
    results = {}
    for cell in cells(experiment):
        measures, documents, words = {}, set(), set()
        for seed in experiment.seeds:
            folder = evaluation_folder(workdir, cell.variant.name, seed, cell.evaluation.name)
            if folder in done:
                measures[seed], same, counted = read_evaluation(folder)
                documents.add(same)
                words.add(counted)
        if len(documents) > 1:
            raise UserError(f"{cell.label}: its seeds were evaluated on different documents; use one --config.data")
        if len(words) > 1:
            raise UserError(f"{cell.label}: its seeds count different words; use one --config.data.rouge_tokenizer")
        if measures:
            results[cell.label] = Results(documents.pop(), measures, words.pop())
    return results


def line_of(cell: Cell) -> str:
    """The line of a cell that another of its variant would hide, as both have the same x."""
    evaluation = cell.evaluation
    own = evaluation.policy or (evaluation.name if evaluation.overrides else "")
    return f"{cell.line}, {own}" if own else cell.line


def draw(title: str, rows: Sequence[TableRow], axis: str, path: Path) -> None:
    """Lines against x where cells have one, else bars."""
    if all(row.cell.x is None for row in rows):
        scores = {row.cell.label: {n: found.score for n, found in row.statistics.items()} for row in rows}
        plots.plot_comparison(scores, path, metrics.measure_of, title)
        return
    panels: dict[str, dict[str, dict[Number, Interval]]] = {}
    places = Counter((row.cell.line, row.cell.x) for row in rows)
    for row in rows:
        if row.cell.x is not None:
            shared = places[row.cell.line, row.cell.x] > 1
            line = line_of(row.cell) if shared else row.cell.line
            for name, found in row.statistics.items():
                panels.setdefault(name, {}).setdefault(line, {})[row.cell.x] = found.score
    plots.plot_lines(panels, axis, path, metrics.measure_of, title)


def write_outputs(
    title: str, experiment: Experiment, workdir: Path, commands: Sequence[Command]
) -> tuple[str, list[str]]:
    """Writes table.md, table.csv and, if anything has finished, plot.png; returns the Markdown and the files' names."""
    rows = table.table_rows(experiment, read_results(experiment, workdir, commands))
    text = table.markdown(title, rows, [command.name for command in commands if seconds_of(command) is None])
    files.replace_file(workdir / "table.md", text.encode())
    files.replace_file(workdir / "table.csv", table.csv_text(rows).encode())
    if not any(row.statistics for row in rows):
        return text, ["table.md", "table.csv"]
    draw(title, rows, experiment.axis, workdir / "plot.png")
    return text, ["table.md", "table.csv", "plot.png"]
