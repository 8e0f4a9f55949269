"""Evaluating documents: predictions, their scores, and what was kept, one row per document; and means over all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas.common import pairs
from jax_simcas.common.sharding import batch_shardings, put, replicated
from jax_simcas.data import batches
from jax_simcas.data.features import Features, featurize, shuffle_parts
from jax_simcas.data.rows import Row, RowSource
from jax_simcas.data.tokenizer import TextTokenizer, count_unknown
from jax_simcas.evaluation import bertscore, bootstrap, metrics
from jax_simcas.evaluation.highlight import Shown
from jax_simcas.evaluation.predict import (
    Predictor,
    attention_of,
    capacity_for,
    compact_batch,
    generate_batch,
    overflow_of,
    select_batch,
    source_tokens,
    target_nll,
)
from jax_simcas.evaluation.summarizer import tokens_read
from jax_simcas.evaluation.words import Words, choose
from jax_simcas.evaluation.written import PLACES, spelled_out, written_tokens
from jax_simcas.method.attention import Attended
from jax_simcas.method.select import Policy


class Scoring(NamedTuple):
    """How predictions are scored: by the task's scores, which count these words; how long the lead baseline is."""

    task: str
    words: Words
    lead_words: int


class Evaluated(NamedTuple):
    """What came out for one document; without a reference there are no scores, and its nll is (0, 0)."""

    number: int  # of its row
    row: Row
    prediction: str
    scores: dict[str, float]
    lead: dict[str, float]
    kept_and_candidates: tuple[int, int]  # their numbers
    evidence: dict[str, pairs.Pair]  # (sum, count) pairs; empty without marked evidence
    cut_tokens: int  # beyond max_input_len, and so not read
    nll: tuple[float, int]  # (nats, tokens) of the reference, teacher-forced
    unknown_and_read: tuple[int, int]  # tokens of the document
    overflow: int = 0  # candidates selected beyond the capacity
    cut_target: int = 0  # tokens of the reference beyond max_target_len, which nll leaves out


class Predictions(NamedTuple):
    """What the device gives for a batch, on the host."""

    sequence: np.ndarray  # [B, T] token ids
    kept: np.ndarray  # [B, K, S - 1]
    candidate: np.ndarray  # [B, K, S - 1]
    reference_nats: np.ndarray  # [B]
    reference_tokens: np.ndarray  # [B]
    # [B, K, S - 1]: mean cross-attention while the reference is written; None without marked evidence
    attention: np.ndarray | None
    overflow: np.ndarray  # [B]
    keep_prob: np.ndarray  # [B, K, S - 1]
    attended: Attended | None  # [B, T - 1, ...], if asked for


def references(row: Row) -> tuple[str, ...]:
    """What a prediction is compared with: all references of a list, or the only one; none where there is no text."""
    return row.answers or ((row.summary,) if row.summary.strip() else ())


def scoring(name: str, task: str, given: Sequence[Sequence[str]]) -> Scoring:
    """How to score all systems on documents of these references: `name` chooses the words, see `words.choose`."""
    every = [text for texts in given for text in texts]
    words = choose(name, every, task)
    return Scoring(task, words, metrics.average_words(every, words))


def score(prediction: str, row: Row, by: Scoring) -> dict[str, float]:
    """ROUGE of a summary, or exact match and F1 of an answer, the best over references, 0 to 100; {} without any."""
    given = references(row)
    if not given:
        return {}
    return (metrics.answer_scores if by.task == "answers" else metrics.summary_scores)(prediction, given, by.words)


def lead_of(row: Row, by: Scoring) -> str:
    """The lead baseline's text."""
    return metrics.lead(row.document, by.lead_words, by.words)


def evaluate_documents(
    predictor: Predictor,
    source: RowSource,
    *,
    policy: Policy,
    by: Scoring,
    key: jax.Array,
    on_batch: Callable[[int], None],
    on_document: Callable[[Evaluated, Shown], None] | None = None,
) -> Iterator[Evaluated]:
    """Summarises and scores this process's rows of `source`, in order, and their first words.

    Of several processes each takes its share of every batch, `reading.batch_size` documents, which lie on its own
    devices: nothing waits for the others. `on_document` gets what can be shown of each document; it costs a pass of the
    decoder.
    """
    share, own_share = predictor.reading.batch_size, jax.process_index()
    config = dataclasses.replace(predictor.reading, batch_size=share * jax.process_count())
    places = range(own_share * share, (own_share + 1) * share)
    mesh = jax.sharding.get_mesh()
    predictor = predictor._replace(
        params=put(predictor.params, jax.tree.map(lambda _: replicated(mesh), predictor.params))
    )
    for batch in batches.make_iterator(source, predictor.tokenizer, config, training=False, places=places):
        predictions = predict_batch(predictor, batch, policy, key, attention=on_document is not None)
        real = np.flatnonzero(batch["row_mask"]).tolist()
        for b in real:
            row = source[int(batch["row_index"][b])]
            scored = score_row(predictor.tokenizer, row, batch, predictions, b, by)
            if on_document is not None:
                on_document(scored, shown_row(predictor, scored, predictions, b))
            yield scored
        on_batch(len(real))


def predict_batch(
    predictor: Predictor, batch: Features, policy: Policy, key: jax.Array, attention: bool = False
) -> Predictions:
    """Selects by `policy`, generates, and scores the references, on the devices of the current mesh.

    Policies that spend a budget keep as many candidates of each document as the configured policy would: an
    equal budget. What policies draw depends on `key` and on the number of the row, not on batches and processes.
    """
    params, model, example = predictor.params, predictor.model, batches.as_example(batch)
    document, target = jax.device_put(example, batch_shardings(jax.sharding.get_mesh(), example))
    keys = jax.vmap(partial(jax.random.fold_in, key))(batch["row_index"])
    budget = jnp.full(document.input_ids.shape[0], model.budget or 0, jnp.int32)
    if policy.budgeted and model.budget is None:
        _, selection = select_batch(params, document, keys, budget, model=model, policy=model.policy)
        budget = selection.action.sum(axis=(1, 2))
    hidden, selection = select_batch(params, document, keys, budget, model=model, policy=policy)
    capacity = capacity_for(int(selection.action.sum(axis=(1, 2)).max()), model.capacity)
    compacted = compact_batch(hidden, document.chunk_mask, selection, capacity=capacity)
    source = source_tokens(document, predictor.generate)
    generation = generate_batch(params, compacted, source, model=model, config=predictor.generate)
    candidates = selection.action.shape[1:] if batch["has_evidence"].any() else None
    nats, tokens, by_reference = target_nll(params, compacted, target, model=model, candidates=candidates)
    attended = attention_of(params, compacted, generation, model=model, count=PLACES) if attention else None
    on_device: dict[str, Any] = {
        "sequence": generation.sequence,
        "kept": selection.action,
        "candidate": selection.candidate_mask,
        "reference_nats": nats,
        "reference_tokens": tokens,
        "attention": by_reference,
        "overflow": overflow_of(selection),
        "keep_prob": selection.keep_prob,
        "attended": attended,
    }
    return Predictions(**jax.device_get(on_device))


def score_row(
    tokenizer: TextTokenizer, row: Row, batch: Features, predictions: Predictions, b: int, by: Scoring
) -> Evaluated:
    """What came out for `row`, the b-th of a batch."""
    prediction = tokenizer.decode(predictions.sequence[b], skip_special_tokens=True).strip()
    return Evaluated(
        number=int(batch["row_index"][b]),
        row=row,
        prediction=prediction,
        scores=score(prediction, row, by),
        lead=score(lead_of(row, by), row, by),
        kept_and_candidates=(int(predictions.kept[b].sum()), int(predictions.candidate[b].sum())),
        evidence=evidence_of(batch, predictions, b, bool(references(row))),
        cut_tokens=int(batch["cut_tokens"][b]),
        nll=(float(predictions.reference_nats[b]), int(predictions.reference_tokens[b]))
        if references(row)
        else (0.0, 0),
        unknown_and_read=count_unknown(tokenizer, batch["input_ids"][b], batch["token_mask"][b]),
        overflow=int(predictions.overflow[b]),
        cut_target=int(batch["cut_target"][b]) if references(row) else 0,
    )


def shown_row(predictor: Predictor, scored: Evaluated, predictions: Predictions, b: int) -> Shown:
    """What a page shows of the b-th document of a batch. Its tokens are found anew, as batches carry no offsets."""
    row = shuffle_parts(scored.row, predictor.reading)
    features = featurize(row, predictor.tokenizer, predictor.reading)
    text, offsets = row.document, features["token_offsets"]
    if row.chunks is not None:
        text, offsets = spelled_out(predictor.tokenizer, features["input_ids"], features["token_mask"])
    chunks = len(offsets)
    written = None
    if predictions.attended is not None:
        attended = jax.tree.map(lambda x: x[b], predictions.attended)
        sequence = predictions.sequence[b][: len(attended.weight) + 1]
        written = written_tokens(predictor.tokenizer, sequence, scored.prediction, attended, offsets)
    return Shown(
        name=str(row.id),
        document=text,
        summary=scored.prediction,
        read=tokens_read(predictions.kept[b][:chunks], predictions.keep_prob[b][:chunks], offsets),
        written=written,
        evidence=row.evidence,
        query=row.query,
        references=references(row),
        scores={metrics.measure_of(name).title: value for name, value in scored.scores.items()},
        cut_tokens=scored.cut_tokens,
    )


def evidence_of(batch: Features, predictions: Predictions, b: int, has_reference: bool) -> dict[str, pairs.Pair]:
    """How much of marked evidence was kept and, while a reference is written, attended to; empty if none is marked."""
    if not batch["has_evidence"][b]:
        return {}
    known = predictions.candidate[b] & batch["token_mask"][b][:, 1:]
    matters = batch["evidence_mask"][b][:, 1:]
    attention = predictions.attention[b][known] if has_reference and predictions.attention is not None else None
    return metrics.evidence_scores(predictions.kept[b][known], matters[known], attention)


def of_all_processes(rows: list[Evaluated], source: RowSource, gather: Callable[[Any], list[Any]]) -> list[Evaluated]:
    """The rows of all processes, each once and in order; `gather` gives the JSON values of all of them."""
    if jax.process_count() == 1:
        return rows
    every = [item for part in gather([(number, *rest) for number, _, *rest in rows]) for item in part]
    return [Evaluated(number, source[number], *rest) for number, *rest in sorted(every, key=lambda item: item[0])]


def with_bertscore(rows: list[Evaluated], encoder: bertscore.Encoder, by: Scoring) -> list[Evaluated]:
    """The rows with BERTScore, the best over references, among the scores of the model and of the lead baseline."""
    scored = [row for row in rows if references(row.row)]
    given = [references(row.row) for row in scored]
    found = {}
    for name, texts in (
        ("scores", [row.prediction for row in scored]),
        ("lead", [lead_of(row.row, by) for row in scored]),
    ):
        matches = bertscore.bertscore(encoder, texts, given)
        found[name] = {row.number: {encoder.score_name: 100 * m.f1} for row, m in zip(scored, matches, strict=True)}
    return [
        row._replace(**{name: getattr(row, name) | of[row.number] for name, of in found.items() if row.number in of})
        for row in rows
    ]


def summary_of(rows: list[Evaluated], seed: int) -> dict[str, Any]:
    """Means with bootstrap intervals of the model and of the lead baseline, and what was kept."""
    kept = np.sum([row.kept_and_candidates for row in rows], axis=0)
    unknown = np.sum([row.unknown_and_read for row in rows], axis=0)
    overflow = sum(row.overflow for row in rows)
    return {
        "documents": len(rows),
        "documents_scored": sum(bool(references(row.row)) for row in rows),
        "documents_cut": sum(row.cut_tokens > 0 for row in rows),
        "references_cut": sum(row.cut_target > 0 for row in rows),
        "empty_predictions": sum(not row.prediction for row in rows),
        "unknown_share": float(unknown[0] / max(unknown[1], 1)),
        "scores": _as_dicts(bootstrap.summarize_scores([row.scores for row in rows], seed)),
        "lead": _as_dicts(bootstrap.summarize_scores([row.lead for row in rows], seed)),
        "nll": bootstrap.pool_scores([{"nll": row.nll} for row in rows], seed)["nll"]._asdict(),
        "kept_share": float(kept[0] / max(kept[1], 1)),
        "overflow_share": overflow / max(overflow + int(kept[0]), 1),
        "states": float(kept[0] / len(rows)),
        "evidence": _as_dicts(metrics.evidence_summary([row.evidence for row in rows if row.evidence], seed)),
    }


def _as_dicts(scores: dict[str, bootstrap.Score]) -> dict[str, dict[str, Any]]:
    return {name: score._asdict() for name, score in scores.items()}
