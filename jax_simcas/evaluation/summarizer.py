"""Summarising one document: its summary, what was kept of it, and how long each stage took."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas.data import batches
from jax_simcas.data.features import featurize
from jax_simcas.data.rows import Row
from jax_simcas.evaluation.predict import Predictor, capacity_for, generate_batch, select_batch


def kept_spans(kept: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    """Character spans [start, end) of the document that kept tokens cover, neighbours joined.

    Args:
      kept: [K, N] bool, positions 1..S-1 of every chunk.
      offsets: [K, S, 2] character offsets of every token, -1 where it is not of the document.
    """
    rows = offsets[:, 1:][kept]
    spans: list[list[int]] = []
    for start, end in rows[rows[:, 0] >= 0].tolist():
        # Offsets leave out the space between words: one missing character joins too.
        if spans and start <= spans[-1][1] + 1:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([start, end])
    return spans


def summarize(predictor: Predictor, text: str, query: str | None, key: jax.Array) -> dict[str, Any]:
    """Summarises one document: summary, kept spans, counts and seconds per stage."""
    params, model, config = predictor.params, predictor.model, predictor.reading
    started = time.monotonic()
    row = Row(id="", document=text, summary="", query=query)
    features = featurize(row, predictor.tokenizer, config)
    batch = batches.pad_batch([features], config, predictor.tokenizer.pad_token_id)
    tokenized = time.monotonic()
    document = jax.tree.map(jnp.asarray, batches.as_example(batch).document)
    budget = jnp.full(1, model.budget or 0, jnp.int32)
    hidden, selection = jax.block_until_ready(
        select_batch(params, document, key, budget, model=model, policy=model.policy)
    )
    selected = time.monotonic()
    generation = jax.block_until_ready(
        generate_batch(
            params,
            hidden,
            document.chunk_mask,
            selection,
            model=model,
            config=predictor.generate,
            capacity=capacity_for(selection, model.capacity),
        )
    )
    generated = time.monotonic()
    kept = np.asarray(selection.action[0])[: features["input_ids"].shape[0]]
    return {
        "summary": predictor.tokenizer.decode(np.asarray(generation.sequence[0]), skip_special_tokens=True).strip(),
        "score": float(generation.score[0]),
        "tokens": int(features["token_mask"].sum()),
        "chunks": int(features["input_ids"].shape[0]),
        "cut_tokens": int(features["cut_tokens"]),
        "kept": int(kept.sum()),
        "kept_spans": kept_spans(kept, features["token_offsets"]),
        "seconds": {
            "tokenize": round(tokenized - started, 4),
            "encode_and_select": round(selected - tokenized, 4),
            "generate": round(generated - selected, 4),
        },
    }
