"""Paired differences of two systems on the same documents, with confidence intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common import pairs, plots, tables
from jax_simcas.common.errors import UserError
from jax_simcas.common.files import PathLike
from jax_simcas.evaluation import bertscore, bootstrap, metrics
from jax_simcas.evaluation import words as words_lib
from jax_simcas.evaluation.files import read_rows
from jax_simcas.evaluation.metrics import ANSWER_SCORES, STANDARD, SUMMARY_SCORES
from jax_simcas.evaluation.words import Words

RESAMPLES = 10_000  # of the documents


class Predicted(NamedTuple):
    """A row of predictions.jsonl; missing fields are empty, and null scores are NaN."""

    prediction: str | None
    references: tuple[str, ...]
    are_answers: bool  # the references
    scores: dict[str, float]
    words: str = STANDARD.name  # that the scores count


class Compared(NamedTuple):
    """One score's means over the documents for which both systems have it, and their difference A - B."""

    a: float
    b: float
    difference: bootstrap.Difference


Key = tuple[str, int]  # an id, and how many rows before have it too: ids of user data may repeat


def read_predictions(path: Path) -> dict[Key, Predicted]:
    """The rows of a predictions.jsonl, given as the file or as its evaluation's folder; not those without a reference.

    Raises:
      UserError: unreadable, empty, not JSON, or a row without an id, or with neither scores nor texts to score.
    """
    rows: dict[Key, Predicted] = {}
    seen: Counter[str] = Counter()
    for where, record in read_rows(path):
        name, row = _parsed(record, where)
        if row:
            rows[name, seen[name]] = row
        seen[name] += 1
    if not rows:
        raise UserError(f"{path}: no row has a reference; there is nothing to compare")
    return rows


def _parsed(row: dict[str, Any], where: str) -> tuple[str, Predicted | None]:
    """The id and what was predicted; None where `evaluate` had no reference to score by."""
    if not isinstance(row.get("id"), (str, int)):
        raise UserError(f"{where}: expected an object with an id")
    prediction, references, scores = row.get("prediction"), _references(row, where), _scores(row, where)
    if not isinstance(prediction, (str, type(None))):
        raise UserError(f"{where}: field 'prediction': expected a text")
    if not scores and row.get("references") == []:
        return str(row["id"]), None
    if not scores and (prediction is None or not references):
        raise UserError(f"{where}: neither scores nor a prediction and a reference to score")
    words = row.get("rouge_tokenizer", STANDARD.name)
    try:
        words_lib.named(words)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{where}: field 'rouge_tokenizer': {error}") from None
    return str(row["id"]), Predicted(prediction, references, bool(row.get("answers")), scores, words)


def _references(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """All references, or the answers, or the reference, or nothing."""
    several, reference = row.get("references") or row.get("answers") or [], row.get("reference")
    references = several or ([] if reference is None else [reference])
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise UserError(f"{where}: field 'reference' or 'answers': expected a text, or a list of answers")
    return tuple(references)


def _scores(row: dict[str, Any], where: str) -> dict[str, float]:
    scores = row.get("scores") or {}
    if not isinstance(scores, dict) or not all(isinstance(v, (int, float, type(None))) for v in scores.values()):
        raise UserError(f"{where}: field 'scores': expected an object of numbers")
    if infinite := [name for name, value in scores.items() if value is not None and math.isinf(value)]:
        raise UserError(f"{where}: score {infinite[0]!r} is not finite")
    return {name: math.nan if value is None else float(value) for name, value in scores.items()}


def check_pairs(a: dict[Key, Predicted], b: dict[Key, Predicted]) -> None:
    """Checks that two files are about the same documents.

    Raises:
      UserError: ids that only one of them has, or other references for the same id.
    """
    for name, mine, other, others in (("A", a, "B", b), ("B", b, "A", a)):
        lacking = [id for id, occurrence in mine if (id, occurrence) not in others]
        if lacking:
            raise UserError(
                f"{other} lacks {len(lacking)} of the {len(mine)} ids of {name}, the first is "
                f"{lacking[0]!r}; compare evaluations of the same documents (the same --split and --limit)"
            )
    differ = [key[0] for key in a if a[key].references and b[key].references and a[key].references != b[key].references]
    if differ:
        raise UserError(
            f"A and B have different references for {len(differ)} of {len(a)} ids, the first is "
            f"{differ[0]!r}; compare evaluations of the same data"
        )


def common_scores(a: dict[Key, Predicted], b: dict[Key, Predicted]) -> tuple[str, ...]:
    """The scores that all rows of both files have; if there are none, those that can be computed from their texts."""
    rows = [*a.values(), *b.values()]
    held = tuple(name for name in rows[0].scores if all(name in row.scores for row in rows))
    return held or (ANSWER_SCORES if any(row.are_answers for row in rows) else SUMMARY_SCORES)


def task_of(files: Sequence[dict[Key, Predicted]]) -> str:
    """What the rows' scores are for: answers or summaries."""
    rows = [row for file in files for row in file.values()]
    return "answers" if any(row.are_answers or "f1" in row.scores for row in rows) else "summarization"


def words_of(files: Sequence[dict[Key, Predicted]], asked: str | None) -> Words:
    """The words to count in all files: those asked for, else those that all their scores count, else by `auto`."""
    rows = [row for file in files for row in file.values()]
    counted = {row.words for row in rows if not row.scores.keys().isdisjoint(SUMMARY_SCORES + ANSWER_SCORES)}
    if asked is None and len(counted) == 1:
        return words_lib.named(counted.pop())
    texts = (text for row in rows for text in row.references)
    return words_lib.choose(asked or words_lib.AUTO, texts, task_of(files))


def scored(
    rows: dict[Key, Predicted], names: Sequence[str], where: str, words: Words = STANDARD
) -> dict[Key, dict[str, float]]:
    """The named scores of each row: read from it, or computed from its texts where it counts other words.

    Raises:
      UserError: a score that is neither there nor computable, or no texts to compute it from.
    """
    found = {}
    for key, row in rows.items():
        held = row.scores if row.words == words.name else _without_words(row.scores)
        lacking = [name for name in names if name not in held]
        unknown = [name for name in lacking if name not in SUMMARY_SCORES + ANSWER_SCORES]
        if unknown:
            known = ", ".join(dict.fromkeys((*row.scores, *SUMMARY_SCORES, *ANSWER_SCORES)))
            raise UserError(f"{where} has no score {unknown[0]!r}; expected some of {known}")
        computed: dict[str, float] = {}
        if lacking:
            prediction, references = _texts(key, row, lacking[0], where)
            if not set(lacking).isdisjoint(SUMMARY_SCORES):
                computed |= metrics.summary_scores(prediction, references, words)
            if not set(lacking).isdisjoint(ANSWER_SCORES):
                computed |= metrics.answer_scores(prediction, references, words)
        found[key] = {name: held.get(name, computed.get(name, math.nan)) for name in names}
    return found


def _without_words(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name not in SUMMARY_SCORES + ANSWER_SCORES}


def bertscored(rows: dict[Key, Predicted], encoder: bertscore.Encoder, where: str) -> dict[Key, dict[str, float]]:
    """The BERTScore of each row.

    Raises:
      UserError: a row without texts.
    """
    name = encoder.score_name
    predictions, references = zip(*(_texts(key, row, name, where) for key, row in rows.items()), strict=True)
    matches = bertscore.bertscore(encoder, predictions, references)
    return {key: {name: 100 * match.f1} for key, match in zip(rows, matches, strict=True)}


def _texts(key: Key, row: Predicted, name: str, where: str) -> tuple[str, tuple[str, ...]]:
    if row.prediction is None or not row.references:
        raise UserError(f"{where}: id {key[0]!r} holds no {name}, and no prediction and reference to compute it from")
    return row.prediction, row.references


def paired_differences(
    a: dict[Key, dict[str, float]], b: dict[Key, dict[str, float]], seed: int
) -> dict[str, Compared]:
    """Every score of A beside that of B, over the documents for which neither is NaN."""
    found = {}
    for name in next(iter(a.values())):
        both = [key for key in a if not (math.isnan(a[key][name]) or math.isnan(b[key][name]))]
        first, second = ([scores[key][name] for key in both] for scores in (a, b))
        difference = bootstrap.paired_difference(first, second, seed=seed, samples=RESAMPLES)
        a_mean, b_mean = (pairs.mean((sum(values), len(values))) for values in (first, second))
        found[name] = Compared(a_mean, b_mean, difference)
    return found


def differences_table(compared: dict[str, Compared], words: Words = STANDARD) -> str:
    """One row per score, as Markdown, with its name in words."""
    rows: list[dict[str, Any]] = [
        {
            "score": metrics.labelled(name, words),
            "A": tables.format_number(found.a, 2),
            "B": tables.format_number(found.b, 2),
            "A - B": tables.format_score(found.difference.score, 2),
            "p": format_p(found.difference.p),
            "documents": found.difference.count,
        }
        for name, found in compared.items()
    ]
    return tables.markdown_table(rows, list(rows[0]))


def plot(compared: dict[str, Compared], path: PathLike, a: str, b: str) -> Path:
    """Draws the differences with their p; scores of prepared texts only where the plain score is missing.

    Raises:
      UserError: the image cannot be written.
    """
    shown = {
        name: found.difference
        for name, found in compared.items()
        if not name.startswith(metrics.AUTHORS) or name.removeprefix(metrics.AUTHORS) not in compared
    }
    return plots.plot_differences(
        {name: difference.score for name, difference in shown.items()},
        path,
        a,
        b,
        metrics.measure_of,
        {
            name: f"p = {format_p(difference.p)}".replace("= <", "<")
            for name, difference in shown.items()
            if not math.isnan(difference.p)
        },
    )


def format_p(p: float, resamples: int = RESAMPLES) -> str:
    """`< 0.0002` for the smallest p that so many resamples can give; else the number."""
    if math.isnan(p):
        return "–"
    floor = 2 / (1 + resamples)
    return f"< {floor:.1g}" if p <= floor else f"{p:.4g}"
