"""Evaluations side by side: the scores of each with their own intervals, and what each kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jax_simcas.common import tables
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation import metrics
from jax_simcas.evaluation.bootstrap import Score

RATIO = "likelihood_ratio"


def as_score(fields: dict[str, Any]) -> Score:
    """A score as JSON holds it: null where it is not finite."""
    mean, low, high = (math.nan if fields[name] is None else fields[name] for name in ("mean", "low", "high"))
    return Score(mean, low, high, fields["count"])


def shown_measures(there: Iterable[str], asked: list[str], folder: str) -> list[str]:
    """The scores to show: those asked for, else all of texts as they are.

    Raises:
      UserError: one that is not there.
    """
    there = list(there)
    missing = [name for name in asked if name not in there]
    if missing:
        raise UserError(f"{folder} has no score {missing[0]!r}; it has {', '.join(there)}")
    return asked or [name for name in there if not name.startswith(metrics.AUTHORS)]


def differing_documents(summaries: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """What to say of evaluations of other documents than those of the first: their scores cannot be compared."""
    (first, baseline), *others = summaries.items()
    for name, summary in others:
        for what in ("split", "documents", "source"):
            ours, theirs = baseline.get(what), summary.get(what)
            if ours != theirs:
                yield f"{first} and {name} are evaluations of different documents ({what}: {ours} and {theirs})"
                break


def percent(share: float) -> str:
    """`12.3`; a dash where there is nothing to take a share of."""
    return tables.format_score((100 * share, math.nan, math.nan, 0))


def kept_score(summary: Mapping[str, Any]) -> dict[str, Score]:
    """The kept share as a score without an interval, by the name that its measure has."""
    share = math.nan if summary["kept_share"] is None else 100 * summary["kept_share"]
    return {"kept %": Score(share, math.nan, math.nan, summary.get("documents") or 0)}


def row(name: str, summary: dict[str, Any], scores: dict[str, Score]) -> dict[str, str]:
    """A row of the table: what scores.json holds of one evaluation; scores from 0 to 100, shares in percent.

    Raises:
      KeyError: a summary without `kept_share` or `evidence`.
    """
    cells = {"run": name, **{measure: tables.format_score(score) for measure, score in scores.items()}}
    cells["kept %"] = percent(summary["kept_share"])
    evidence = {key: as_score(score) for key, score in summary["evidence"].items()}
    if RATIO in evidence:
        cells["evidence recall %"] = percent(evidence["evidence_kept"].mean)
        cells["others kept %"] = percent(evidence["rest_kept"].mean)
        cells["times as likely"] = tables.format_score(evidence[RATIO], 2)
    return cells


def comparison_table(rows: list[dict[str, str]]) -> str:
    """All rows, as Markdown."""
    columns = list(dict.fromkeys(column for cells in rows for column in cells))
    return tables.markdown_table([{column: cells.get(column, "") for column in columns} for cells in rows], columns)
