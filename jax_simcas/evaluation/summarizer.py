"""Summarising one document: its summary, what was kept of it, and how long each stage took."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import plural
from jax_simcas.data import batches
from jax_simcas.data.features import Features, check_rows, featurize, shuffle_parts
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import count_unknown, special_id
from jax_simcas.evaluation.predict import (
    Predictor,
    attention_of,
    capacity_for,
    generate_batch,
    overflow_of,
    select_batch,
    source_tokens,
)
from jax_simcas.evaluation.written import PLACES, WrittenTokens, written_tokens
from jax_simcas.method.attention import Attended
from jax_simcas.method.beam_search import Generation
from jax_simcas.method.select import Selection


class ReadTokens(NamedTuple):
    """The n tokens that were read of a document, in order; the special tokens around chunks are left out."""

    span: Int[np.ndarray, "n 2"]  # characters [start, end)
    chunk: Int[np.ndarray, " n"]
    keep_prob: Float[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]


class Summary(NamedTuple):
    """A document's summary, and what the decoder saw of the document."""

    summary: str
    document: str  # as it was read: `kept_spans` and `read` count its characters
    score: float  # of the beam search: log-probability, nats, over length ** length_penalty
    tokens: int  # read, without special ones
    unknown_tokens: int
    cut_tokens: int  # beyond max_input_len, and so not read
    chunks: int
    candidates: int  # states that could be kept: those of the tokens, of a query, of the EOS of each chunk
    kept: int  # of the candidates, what the decoder saw
    kept_spans: list[list[int]]  # characters [start, end)
    read: ReadTokens
    seconds: dict[str, float]  # wall time of tokenize, encode_and_select (the first time with compiling), generate
    written: WrittenTokens | None = None  # where the decoder looked, if that was asked for
    overflow: int = 0  # candidates that were selected beyond the capacity, and so not kept

    def record(self) -> dict[str, Any]:
        """What `summarize --json` prints."""
        left_out = ("document", "read", "written")
        return {name: value for name, value in self._asdict().items() if name not in left_out}


class Summarizer(NamedTuple):
    """A trained model that summarises text."""

    predictor: Predictor

    def summarize(self, text: str, query: str | None = None, seed: int = 0, attention: bool = False) -> Summary:
        """Summarises one document of any length.

        Args:
          query: for models trained with queries.
          seed: for policies that draw.
          attention: also find where the decoder looked as it wrote each token, the result's `written`.

        Raises:
          UserError: an empty text; no query where the model needs one; a text whose every token is unknown.
        """
        predictor, started = self.predictor, time.monotonic()
        row = Row(id="text", document=text, summary="", query=query)
        features = featurize(row, predictor.tokenizer, predictor.reading)
        check_rows(features, predictor.tokenizer, predictor.reading.embedding_rows, "")
        unknown, tokens = count_unknown(predictor.tokenizer, features["input_ids"], features["token_mask"])
        if tokens and unknown == tokens:
            count = plural(tokens, "token")
            raise UserError(f"this model cannot read the text: none of its {count} is in the tokenizer's vocabulary")
        tokenized = time.monotonic()
        selection, generation, attended, selected = _predict(predictor, features, jax.random.key(seed), attention)
        generated = time.monotonic()
        chunks = features["input_ids"].shape[0]
        kept = np.asarray(selection.action[0])[:chunks]
        sequence, offsets = np.asarray(generation.sequence[0]), features["token_offsets"]
        summary = predictor.tokenizer.decode(sequence, skip_special_tokens=True).strip()
        return Summary(
            summary=summary,
            document=shuffle_parts(row, predictor.reading).document,
            score=float(generation.score[0]),
            tokens=tokens,
            unknown_tokens=unknown,
            cut_tokens=int(features["cut_tokens"]),
            chunks=chunks,
            candidates=int(selection.candidate_mask.sum()),
            kept=int(kept.sum()),
            kept_spans=kept_spans(kept, offsets),
            read=tokens_read(kept, np.asarray(selection.keep_prob[0])[:chunks], offsets),
            written=attended
            and written_tokens(predictor.tokenizer, sequence[: len(attended.weight) + 1], summary, attended, offsets),
            overflow=int(overflow_of(selection)[0]),
            seconds={
                "tokenize": round(tokenized - started, 4),
                "encode_and_select": round(selected - tokenized, 4),
                "generate": round(generated - selected, 4),
            },
        )


def _predict(
    predictor: Predictor, features: Features, key: jax.Array, attention: bool
) -> tuple[Selection, Generation, Attended | None, float]:
    """Of a batch of one: selection, generation, `attention` of the document if asked for; when the first was there."""
    params, model = predictor.params, predictor.model
    batch = batches.pad_batch([features], predictor.reading, special_id(predictor.tokenizer, "pad"))
    document = jax.tree.map(jnp.asarray, batches.as_example(batch).document)
    budget = jnp.full(1, model.budget or 0, jnp.int32)
    hidden, selection = jax.block_until_ready(
        select_batch(params, document, key[None], budget, model=model, policy=model.policy)
    )
    selected = time.monotonic()
    given, capacity = (params, hidden, document.chunk_mask, selection), capacity_for(selection, model.capacity)
    source = source_tokens(document, predictor.generate)
    generation = generate_batch(*given, source, model=model, config=predictor.generate, capacity=capacity)
    attended = None
    if attention:
        every = attention_of(*given, generation, model=model, capacity=capacity, count=PLACES)
        attended = jax.tree.map(lambda x: np.asarray(x[0]), every)
    return selection, jax.block_until_ready(generation), attended, selected


def kept_spans(kept: Bool[np.ndarray, "K N"], offsets: Int[np.ndarray, "K S 2"]) -> list[list[int]]:
    """Character spans [start, end) of the document that kept tokens cover, each run of them as one span.

    What lies between the tokens of a run, such as the space between two words, belongs to its span; a token that was
    not kept ends it.

    Args:
      kept: positions 1..S-1 of every chunk.
      offsets: characters [start, end) of every token, -1 where it is not of the document.
    """
    rows = offsets[:, 1:]
    own = rows[..., 0] >= 0
    spans: list[list[int]] = []
    joins = False  # whether the token before was kept
    for (start, end), is_kept in zip(rows[own].tolist(), kept[own].tolist(), strict=True):
        if is_kept and joins:
            spans[-1][1] = max(end, spans[-1][1])
        elif is_kept:
            spans.append([start, end])
        joins = is_kept
    return spans


def tokens_read(
    kept: Bool[np.ndarray, "K N"], keep_prob: Float[np.ndarray, "K N"], offsets: Int[np.ndarray, "K S 2"]
) -> ReadTokens:
    """The document's own tokens among all positions of its chunks."""
    spans = offsets[:, 1:]
    own = spans[..., 0] >= 0
    chunk = np.broadcast_to(np.arange(len(spans))[:, None], own.shape)
    return ReadTokens(spans[own], chunk[own], keep_prob[own].astype(np.float64), kept[own])
