"""The table of an experiment, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax_simcas.common import tables
from jax_simcas.evaluation.bootstrap import Score
from jax_simcas.evaluation.metrics import ANSWER_SCORES, SUMMARY_SCORES
from jax_simcas.evaluation.words import named
from jax_simcas.experiments import statistics
from jax_simcas.experiments.spec import Cell, Experiment, cells
from jax_simcas.experiments.statistics import Results, Statistics

CSV_COLUMNS = (
    *("run", "variant", "evaluation", "x", "measure", "seeds", "documents", "mean", "deviation", "low", "high"),
    *("by_seed", "minus", "difference", "difference_low", "difference_high", "over_seeds_low", "over_seeds_high"),
)
LEGEND = (
    "±: standard deviation over seeds. In brackets: 95 % intervals of a bootstrap over documents (a drawn document "
    "brings all its seeds), which say how the same runs would score on other documents. Over seeds: 95 % t intervals "
    "of the seeds' differences, which say how other runs would score on the same documents. Differences are taken over "
    "the documents and seeds that both runs have. nll: nats per token of the reference, teacher-forced. Evidence "
    "recall: share of the evidence tokens read that are kept; others kept: share of all other tokens; times as likely: "
    "their quotient, 1 by chance; precision: share of the kept tokens that are evidence; attended: share of the "
    "decoder's attention to kept tokens that evidence gets while the reference is written."
)


class TableRow(NamedTuple):
    """A cell with results: its statistics, and the label of the cell it is compared with ("" for a baseline)."""

    cell: Cell
    baseline: str
    results: Results
    statistics: dict[str, Statistics]


def baseline_of(cell: Cell, results: Mapping[str, Results], every: Sequence[Cell]) -> str:
    """The label of the cell to compare with: the first with the same documents; "" for that cell itself.

    Where several lines are drawn against x, it is the first line's cell at the same x.
    """
    several = len({other.line for other in every}) > 1 and len({other.x for other in every}) > 1
    for other in every:
        same = other.label in results and results[other.label][::2] == results[cell.label][::2]  # documents and words
        if same and (not several or other.x == cell.x):
            return "" if other.label == cell.label else other.label
    return ""


def table_rows(experiment: Experiment, results: Mapping[str, Results]) -> list[TableRow]:
    """A row for each cell that has results, by label."""
    every = cells(experiment)
    rows = []
    for cell in every:
        if cell.label in results:
            baseline = baseline_of(cell, results, every)
            other = results[baseline] if baseline else None
            rows.append(
                TableRow(
                    cell,
                    baseline,
                    results[cell.label],
                    statistics.compute(results[cell.label], other, experiment.measures),
                )
            )
    return rows


def markdown(title: str, rows: Sequence[TableRow], unfinished: Sequence[str]) -> str:
    """The means, the differences to the baseline over documents and over seeds, and a legend."""
    names = list(dict.fromkeys(name for row in rows for name in row.statistics))
    documents = sorted({row.results.document_count for row in rows})
    differences = [found for row in rows if (found := difference_cells(row))]
    over_seeds = [found for row in rows if (found := over_seeds_cells(row))]
    text = [f"# {title}", "", tables.markdown_table([mean_cells(row) for row in rows], ["run", "seeds", *names]), ""]
    if differences:
        table = tables.markdown_table(differences, ["run", "baseline", *names])
        text += ["Differences to the baseline, with intervals over documents:", "", table, ""]
    if over_seeds:
        table = tables.markdown_table(over_seeds, ["run", "baseline", "seeds", *names])
        text += ["The same differences, with intervals over seeds:", "", table, ""]
    text += [f"{' or '.join(map(str, documents)) or 0} documents. {words_line(rows)}{LEGEND}"]
    text += ["", "Not in the table:", "", *(f"- {name}" for name in unfinished)] if unfinished else []
    return "\n".join(text) + "\n"


def words_line(rows: Sequence[TableRow]) -> str:
    """What the scores of texts count as words: of all rows alike, or of each run."""
    counted = {row.cell.label: labels for row in rows if (labels := word_labels(row))}
    alike = len(set(counted.values())) == 1
    return "".join(f"{' '.join(labels)} " for labels in (set(counted.values()) if alike else ())) or "".join(
        f"{label}: {' '.join(labels)} " for label, labels in counted.items()
    )


def word_labels(row: TableRow) -> tuple[str, ...]:
    """What ROUGE counts, and exact match and F1, where they are among the row's measures."""
    words, names = named(row.results.words), row.statistics.keys()
    answers = words.answers.removeprefix(", ") or "SQuAD's words"
    found = (("ROUGE", words.rouge, SUMMARY_SCORES), ("Exact match and F1", answers, ANSWER_SCORES))
    return tuple(f"{what}: {label}." for what, label, scores in found if not names.isdisjoint(scores))


def digits(measure: str) -> int:
    return {"nll": 3, "times as likely": 2}.get(measure, 1)


def mean_cells(row: TableRow) -> dict[str, Any]:
    """`62.5 ± 17.7 [50.0, 75.0]` for each measure."""
    texts = {}
    for name, found in row.statistics.items():
        deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.{digits(name)}f}"
        mean, space, interval = tables.format_score(found.score, digits(name)).partition(" ")
        texts[name] = f"{mean}{deviation}{space}{interval}"
    return {"run": row.cell.label, "seeds": len(row.results.measures)} | texts


def difference_cells(row: TableRow) -> dict[str, Any] | None:
    """The differences to the baseline; None where there are none."""
    scores = {name: found.difference for name, found in row.statistics.items() if found.difference}
    return {"run": row.cell.label, "baseline": row.baseline} | _formatted(scores) if scores else None


def over_seeds_cells(row: TableRow) -> dict[str, Any] | None:
    """The seeds' differences to the baseline; None for fewer than two seeds that both have."""
    found = row.statistics.items()
    scores = {name: of.over_seeds for name, of in found if of.over_seeds and of.over_seeds.count > 1}
    if not scores:
        return None
    shared = max(score.count for score in scores.values())
    return {"run": row.cell.label, "baseline": row.baseline, "seeds": shared} | _formatted(scores)


def _formatted(scores: Mapping[str, Score]) -> dict[str, str]:
    return {name: tables.format_score(score, digits(name)) for name, score in scores.items()}


def csv_text(rows: Sequence[TableRow]) -> str:
    """One line per row and measure, under CSV_COLUMNS; what does not exist is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for name, found in row.statistics.items():
            writer.writerow(_csv_record(row, name, found))
    return text.getvalue()


def _csv_record(row: TableRow, name: str, found: Statistics) -> dict[str, str | int]:
    record: dict[str, str | int] = {
        "run": row.cell.label,
        "variant": row.cell.variant.name,
        "evaluation": row.cell.evaluation.name,
        "x": "" if row.cell.x is None else f"{row.cell.x:g}",
        "measure": name,
        "seeds": len(found.seeds),
        "documents": row.results.document_count,
        "by_seed": " ".join(f"{seed}={value:.6g}" for seed, value in found.seeds.items()),
    }
    numbers = {
        "mean": found.score.mean,
        "deviation": found.deviation,
        "low": found.score.low,
        "high": found.score.high,
    }
    if found.difference:
        record["minus"] = row.baseline
        numbers["difference"] = found.difference.mean
        numbers["difference_low"] = found.difference.low
        numbers["difference_high"] = found.difference.high
    if found.over_seeds:
        numbers["over_seeds_low"] = found.over_seeds.low
        numbers["over_seeds_high"] = found.over_seeds.high
    return record | {column: f"{value:.6g}" for column, value in numbers.items() if not math.isnan(value)}
