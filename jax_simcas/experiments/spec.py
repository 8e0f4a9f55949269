"""What an experiment is, variants times seeds, and its table."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from jax_simcas.common import tables
from jax_simcas.evaluation.metrics import Number, Pair, Score, add, mean, pool_scores

Measures = Mapping[str, Pair]  # measure -> (sum, count) of one document
CSV_COLUMNS = (
    *("run", "variant", "evaluation", "x", "measure", "seeds", "documents", "mean", "deviation", "low", "high"),
    *("by_seed", "minus", "difference", "difference_low", "difference_high", "over_seeds_low", "over_seeds_high"),
)
EVIDENCE = {"evidence recall %": "evidence_kept", "evidence precision %": "evidence_precision"}


@dataclass(frozen=True)
class Variant:
    """One way to train: `overrides` are fields of the config.

    start: the variant, named before this one, from whose trained model of the same seed training starts.
    line, x: to which line of a plot it belongs, and where on its axis; without any x there are bars.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    line: str = ""
    x: Number | None = None


@dataclass(frozen=True)
class Evaluation:
    """One way to evaluate a trained run: as jax_simcas.evaluate does with these flags and overrides of the config."""

    name: str = ""
    policy: str = ""
    split: str = ""
    limit: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    x: Number | None = None


@dataclass(frozen=True)
class Experiment:
    """Every variant is trained with every seed and evaluated in every way; the first of each is the baseline.

    measures: which to show: names of scores, "nll", "kept %", "evidence recall %", "evidence precision %"; empty: all.
    axis: what x counts.
    """

    variants: tuple[Variant, ...]
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    seeds: tuple[int, ...] = (0, 1, 2)
    measures: tuple[str, ...] = ()
    axis: str = ""

    def __post_init__(self) -> None:
        for what in ("variants", "evaluations", "seeds"):
            names = [getattr(item, "name", item) for item in getattr(self, what)]
            if not names:
                raise ValueError(f"{what}: expected at least one")
            places = [slug(str(name)) for name in names]
            if len(set(places)) < len(places):
                raise ValueError(f"{what}={', '.join(map(str, names))}: expected names that differ as names of folders")
            if what == "variants" and any("," in name or not slug(name) for name in names):
                raise ValueError(f"variants={names}: expected names with letters or digits, and without commas")
        for place, variant in enumerate(self.variants):
            before = [other.name for other in self.variants[:place]]
            if variant.start and variant.start not in before:
                raise ValueError(f"variant {variant.name!r}: start={variant.start!r}, expected one of {before}")


def slug(name: str) -> str:
    """The name as a folder has it."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.").lower()


class Row(NamedTuple):
    """One line of the table: a variant evaluated in one way."""

    variant: Variant
    evaluation: Evaluation
    label: str
    x: Number | None


def rows(experiment: Experiment) -> list[Row]:
    """The lines of the table, in order; named by what tells them apart."""

    def row(variant: Variant, evaluation: Evaluation) -> Row:
        parts = [variant.name] if len(experiment.variants) > 1 or not evaluation.name else []
        parts += [evaluation.name] if evaluation.name else []
        return Row(variant, evaluation, ", ".join(parts), variant.x if evaluation.x is None else evaluation.x)

    return [row(variant, evaluation) for variant in experiment.variants for evaluation in experiment.evaluations]


class Outcome(NamedTuple):
    """What the finished runs of a row gave.

    documents: what tells one set of documents from another; measures: seed -> those of each document.
    """

    documents: str
    measures: Mapping[int, Sequence[Measures]]


def measures_of(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The measures of a document, from its line of predictions.jsonl; scores and shares are in percent."""
    out = {name: (float(value), 1.0) for name, value in record["scores"].items() if value is not None}
    if record.get("nll"):
        nats, tokens = record["nll"]
        out["nll"] = (float(nats), float(tokens))
    out["kept %"] = (100.0 * record["kept"], float(record["candidates"]))
    evidence = record.get("evidence") or {}
    out |= {name: (100.0 * evidence[key][0], float(evidence[key][1])) for name, key in EVIDENCE.items() if evidence}
    return out


class Statistics(NamedTuple):
    """A measure of a row over documents and seeds.

    score: its mean, sum of sums / sum of counts, and the 95 % interval of a bootstrap over documents, each with all
      its seeds; deviation: standard deviation over seeds, NaN for one; difference: to the baseline's, and over_seeds:
      the mean of the seeds' differences with its t interval; None without seeds that both have.
    """

    score: Score
    seeds: Mapping[int, float]
    deviation: float
    difference: Score | None
    over_seeds: Score | None


def statistics(outcome: Outcome, baseline: Outcome | None, names: Sequence[str] = ()) -> dict[str, Statistics]:
    """Every measure of a row, or those named; the difference is paired: over the documents and seeds of both."""
    pooled = pool_scores(_over_seeds(outcome, outcome.measures))
    differences = _differences(outcome, baseline) if baseline else {}
    out = {}
    for name, score in pooled.items():
        if (names and name not in names) or not score.count:
            continue
        seeds = _means(outcome, name)
        deviation = float(np.std(list(seeds.values()), ddof=1)) if len(seeds) > 1 else math.nan
        over_seeds = None
        if baseline and name in differences:
            others = _means(baseline, name)
            over_seeds = t_interval([value - others[seed] for seed, value in seeds.items() if seed in others])
        out[name] = Statistics(score, seeds, deviation, differences.get(name), over_seeds)
    return {name: out[name] for name in names if name in out} if names else out


def _means(outcome: Outcome, name: str) -> dict[int, float]:
    """Each seed's mean of a measure."""
    named = {seed: [row[name] for row in same if name in row] for seed, same in outcome.measures.items()}
    return {seed: mean(_sum(pairs)) for seed, pairs in named.items()}


def t_interval(values: Sequence[float]) -> Score:
    """The mean and its 95 % interval by Student's t, whose quantile is stdtrit; NaN below two values."""
    count, middle = len(values), float(np.mean(values))
    half = math.nan
    if count > 1:
        half = float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
    return Score(middle, middle - half, middle + half, count)


def _sum(pairs: Sequence[Pair]) -> tuple[float, float]:
    total = (0.0, 0.0)
    for pair in pairs:
        total = add(total, pair)
    return total


def _over_seeds(outcome: Outcome, seeds: Sequence[int] | Mapping[int, Any]) -> list[dict[str, Pair]]:
    """Each document's measures, its seeds added up."""
    together = zip(*(outcome.measures[seed] for seed in seeds), strict=True)
    named = ((dict.fromkeys(name for row in same for name in row), same) for same in together)
    return [{name: _sum([row[name] for row in same if name in row]) for name in names} for names, same in named]


def _differences(outcome: Outcome, baseline: Outcome) -> dict[str, Score]:
    seeds = [seed for seed in outcome.measures if seed in baseline.measures]
    pairs = list(zip(_over_seeds(outcome, seeds), _over_seeds(baseline, seeds), strict=True))
    names = dict.fromkeys(name for own, other in pairs for name in own if name in other)
    marked = [
        {f"own {name}": own[name] for name in names if name in own}
        | {f"other {name}": other[name] for name in names if name in other}
        for own, other in pairs
    ]
    if not names:
        return {}
    pooled = pool_scores(marked, differences={name: (f"own {name}", f"other {name}") for name in names})
    return {name: pooled[name] for name in names if pooled[name].count}


def line_of(row: Row) -> str:
    """The line of a plot that a row is a point of."""
    return row.variant.line or row.variant.name


def baseline_of(row: Row, outcomes: Mapping[str, Outcome], every: Sequence[Row]) -> str:
    """The label of the row to compare with: the first with the same documents; "" for that row itself.

    Where several lines are drawn against x, it is the first line's at the same x.
    """
    several = len({line_of(other) for other in every}) > 1 and len({other.x for other in every}) > 1
    for other in every:
        same = other.label in outcomes and outcomes[other.label].documents == outcomes[row.label].documents
        if same and (not several or other.x == row.x):
            return "" if other.label == row.label else other.label
    return ""


class Line(NamedTuple):
    """A row of the table that has something in it."""

    row: Row
    baseline: str
    outcome: Outcome
    statistics: dict[str, Statistics]


def table_lines(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> list[Line]:
    """The rows of the table with their statistics, each beside its baseline's."""
    every = rows(experiment)
    lines = []
    for row in every:
        if row.label in outcomes:
            baseline = baseline_of(row, outcomes, every)
            other = outcomes[baseline] if baseline else None
            figures = statistics(outcomes[row.label], other, experiment.measures)
            lines.append(Line(row, baseline, outcomes[row.label], figures))
    return lines


def digits(measure: str) -> int:
    return 3 if measure == "nll" else 1


def markdown(title: str, lines: Sequence[Line], unfinished: Sequence[str]) -> str:
    """The table, the paired differences over documents and over seeds, and what is in them."""
    names = list(dict.fromkeys(name for line in lines for name in line.statistics))
    means, differences, over_seeds = [], [], []
    for line in lines:
        cells = {}
        for name, got in line.statistics.items():
            spread = "" if math.isnan(got.deviation) else f" ± {got.deviation:.{digits(name)}f}"
            mean, space, interval = tables.format_score(got.score, digits(name)).partition(" ")
            cells[name] = f"{mean}{spread}{space}{interval}"
        means.append({"run": line.row.label, "seeds": len(line.outcome.measures)} | cells)
        beside = {"run": line.row.label, "minus": line.baseline}
        gaps = {n: tables.format_score(s.difference, digits(n)) for n, s in line.statistics.items() if s.difference}
        if gaps:
            differences.append(beside | gaps)
        several = {n: s.over_seeds for n, s in line.statistics.items() if s.over_seeds and s.over_seeds.count > 1}
        if several:
            shared = max(score.count for score in several.values())
            cells = {n: tables.format_score(score, digits(n)) for n, score in several.items()}
            over_seeds.append({**beside, "seeds": shared, **cells})
    shown = {len(next(iter(line.outcome.measures.values()))) for line in lines}
    text = [f"# {title}", "", tables.markdown_table(means, ["run", "seeds", *names]), ""]
    if differences:
        text += ["Paired differences:", "", tables.markdown_table(differences, ["run", "minus", *names]), ""]
    if over_seeds:
        table = tables.markdown_table(over_seeds, ["run", "minus", "seeds", *names])
        text += ["The same, with intervals over seeds:", "", table, ""]
    text += [
        f"{' or '.join(map(str, sorted(shown))) or 0} documents. ±: standard deviation over seeds. In brackets: 95 % "
        "intervals of a bootstrap over documents, each with all its seeds: of the same runs on other documents. Over "
        "seeds: 95 % t intervals of the seeds' differences: of other runs on the same documents. Differences are over "
        "the documents and seeds that both have. nll: nats a token of the reference, teacher-forced. Recall: share "
        "kept of the tokens that were read and are marked as evidence; precision: share of the kept tokens that are.",
    ]
    text += ["", "Not in the table:", "", *(f"- {name}" for name in unfinished)] if unfinished else []
    return "\n".join(text) + "\n"


def csv_text(lines: Sequence[Line]) -> str:
    """A line for each row and measure; empty where there is nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row, baseline, outcome, figures in lines:
        for name, (score, seeds, deviation, gap, over_seeds) in figures.items():
            by_seed = " ".join(f"{seed}={value:.6g}" for seed, value in seeds.items())
            documents = len(next(iter(outcome.measures.values())))
            numbers = [score.mean, deviation, score.low, score.high, *(gap[:3] if gap else (math.nan,) * 3)]
            numbers += over_seeds[1:3] if over_seeds else (math.nan,) * 2
            mean, spread, low, high, *gaps = ["" if math.isnan(value) else f"{value:.6g}" for value in numbers]
            names = [row.label, row.variant.name, row.evaluation.name, "" if row.x is None else f"{row.x:g}", name]
            counts = [len(seeds), documents]
            writer.writerow([*names, *counts, mean, spread, low, high, by_seed, baseline if gap else "", *gaps])
    return text.getvalue()
