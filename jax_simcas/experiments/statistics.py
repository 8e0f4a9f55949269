"""What the runs of an experiment measured: means, intervals over documents and over seeds, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from jax_simcas.common.pairs import Pair, mean, total
from jax_simcas.evaluation.bootstrap import Score, pool_scores
from jax_simcas.evaluation.words import ROUGE_SCORE

Measures = Mapping[str, Pair]  # measure -> (sum, count) of one document
EVIDENCE = {
    "evidence recall %": "evidence_kept",
    "others kept %": "rest_kept",
    "evidence precision %": "evidence_precision",
    "evidence attended %": "evidence_attended",
}
# Quotients of two of the measures, as `metrics.EVIDENCE_RATIOS`; without differences to a baseline.
RATIOS = {"times as likely": ("evidence recall %", "others kept %")}


class Results(NamedTuple):
    """What the finished runs of one cell measured.

    documents: identifies the set of documents; measures: seed -> the measures of each document, in order.
    words: the name of the words that the scores count.
    """

    documents: str
    measures: Mapping[int, Sequence[Measures]]
    words: str = ROUGE_SCORE

    @property
    def document_count(self) -> int:
        return len(next(iter(self.measures.values())))


class Statistics(NamedTuple):
    """One measure of one cell.

    score: sum of sums / sum of counts over documents and seeds, with the 95 % interval of a bootstrap over documents
      (a drawn document brings all its seeds).
    seeds: the mean of each seed.
    deviation: standard deviation over seeds; NaN for one seed.
    difference: to the baseline, paired over documents; None without seeds that both have.
    over_seeds: mean and t interval of the seeds' differences to the baseline; None likewise.
    """

    score: Score
    seeds: Mapping[int, float]
    deviation: float
    difference: Score | None
    over_seeds: Score | None


def measures_of(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The measures of one document, from its line of predictions.jsonl; scores and shares are percentages."""
    out = {name: (float(value), 1.0) for name, value in record["scores"].items() if value is not None}
    if record.get("nll"):
        nats, tokens = record["nll"]
        out["nll"] = (float(nats), float(tokens))
    out["kept %"] = (100.0 * record["kept"], float(record["candidates"]))
    evidence = record.get("evidence") or {}
    # Attention is not in files of earlier versions, nor of documents without a reference.
    out |= {
        name: (100.0 * evidence[key][0], float(evidence[key][1])) for name, key in EVIDENCE.items() if key in evidence
    }
    return out


def compute(results: Results, baseline: Results | None, names: Sequence[str] = ()) -> dict[str, Statistics]:
    """The statistics of every measure, or of those named, in that order; measures without a count are left out.

    Differences are paired: over the documents and the seeds of both.
    """
    rows = _add_seeds(results, results.measures)
    measured = {name for row in rows for name in row}
    pooled = pool_scores(rows, ratios={name: pair for name, pair in RATIOS.items() if measured.issuperset(pair)})
    differences = _differences(results, baseline) if baseline else {}
    out = {}
    for name, score in pooled.items():
        if (names and name not in names) or not score.count:
            continue
        seeds = _seed_means(results, name)
        deviation = float(np.std(list(seeds.values()), ddof=1)) if len(seeds) > 1 else math.nan
        over_seeds = None
        if baseline and name in differences:
            others = _seed_means(baseline, name)
            over_seeds = t_interval([value - others[seed] for seed, value in seeds.items() if seed in others])
        out[name] = Statistics(score, seeds, deviation, differences.get(name), over_seeds)
    return {name: out[name] for name in names if name in out} if names else out


def t_interval(values: Sequence[float]) -> Score:
    """The mean and its 95 % interval by Student's t (`stdtrit` is its quantile); NaN below two values."""
    count, middle = len(values), float(np.mean(values))
    half = math.nan
    if count > 1:
        half = float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
    return Score(middle, middle - half, middle + half, count)


def _seed_means(results: Results, name: str) -> dict[int, float]:
    """The mean of one measure for each seed, or the quotient of two means."""
    if name in RATIOS:
        over, under = (_seed_means(results, part) for part in RATIOS[name])
        with np.errstate(divide="ignore", invalid="ignore"):
            return {seed: float(np.divide(share, under[seed])) for seed, share in over.items()}
    return {
        seed: mean(total(document[name] for document in documents if name in document))
        for seed, documents in results.measures.items()
    }


def _add_seeds(results: Results, seeds: Sequence[int] | Mapping[int, Any]) -> list[dict[str, Pair]]:
    """The measures of each document, added up over seeds."""
    return [_add_measures(runs) for runs in zip(*(results.measures[seed] for seed in seeds), strict=True)]


def _add_measures(runs: Sequence[Measures]) -> dict[str, Pair]:
    """One document's measures in several runs, added up."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: total(run[name] for run in runs if name in run) for name in names}


def _differences(results: Results, baseline: Results) -> dict[str, Score]:
    """results - baseline for each measure that both have, bootstrapped over documents."""
    seeds = [seed for seed in results.measures if seed in baseline.measures]
    documents = list(zip(_add_seeds(results, seeds), _add_seeds(baseline, seeds), strict=True))
    names = dict.fromkeys(name for ours, theirs in documents for name in ours if name in theirs)
    if not names:
        return {}
    rows = [
        {f"ours {name}": pair for name, pair in ours.items() if name in names}
        | {f"baseline {name}": pair for name, pair in theirs.items() if name in names}
        for ours, theirs in documents
    ]
    pooled = pool_scores(rows, differences={name: (f"ours {name}", f"baseline {name}") for name in names})
    return {name: pooled[name] for name in names if pooled[name].count}
