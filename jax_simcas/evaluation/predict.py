"""From chunks to token ids in two compiled stages: encode and select, then generate from what was selected."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.common.sharding import over_documents
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.tokenizer import TextTokenizer
from jax_simcas.method.attention import Attended, most_attended
from jax_simcas.method.beam_search import Generation, generate
from jax_simcas.method.chunk import bucket
from jax_simcas.method.document import Document, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, decode_selected, encode, select_document
from jax_simcas.method.reward import target_log_prob
from jax_simcas.method.select import Policy, Selection, compact, most_probable

Params = Any

FEWEST_ROWS = 64  # of the decoder: fewer save no time, and each power of two is compiled for itself


class Predictor(NamedTuple):
    """A trained model, and how it reads documents and writes summaries."""

    params: Params
    model: SimCAS
    tokenizer: TextTokenizer
    reading: PipelineConfig
    generate: GenerateConfig


@partial(jax.jit, static_argnames=("model", "policy"))
def select_batch(
    params: Params, documents: Document, keys: Array, budget: Int[Array, " B"], *, model: SimCAS, policy: Policy
) -> tuple[Float[Array, "B K S D"], Selection]:
    """Encodes every document of a batch and selects within the configured capacity.

    Args:
      keys: of each document, for policies that draw.
      budget: candidates per document, for policies that spend one.
    """

    def one(document: Document, key: Array, budget: Array) -> tuple[Array, Selection]:
        hidden, _ = encode(params, model, document)
        selection = select_document(params["selector"], model, hidden, document, policy=policy, key=key, budget=budget)
        if model.capacity is not None:
            kept = most_probable(selection, model.capacity - 1)
            selection = selection._replace(action=kept, overflow=selection.action.sum() - kept.sum())
        return hidden, selection

    return over_documents(one)(documents, keys, budget)


@partial(jax.jit, static_argnames=("model", "config", "capacity"))
def generate_batch(
    params: Params,
    hidden: Float[Array, "B K S D"],
    chunk_mask: Bool[Array, "B K"],
    selection: Selection,
    source: Int[Array, "B N"] | None = None,
    *,
    model: SimCAS,
    config: GenerateConfig,
    capacity: int,
) -> Generation:
    """Compacts the selected states of every document to `capacity` rows and searches for its best summary.

    Args:
      source: see `source_tokens`.
    """

    def one(hidden: Array, chunk_mask: Array, selection: Selection, source: Array | None = None) -> Generation:
        return generate(params, model, config, compact(hidden, chunk_mask, selection, capacity), source)

    given = (hidden, chunk_mask, selection)
    return over_documents(one)(*given if source is None else (*given, source))


def source_tokens(documents: Document, config: GenerateConfig) -> Int[Array, "B N"] | None:
    """The tokens of every document, -1 for PAD, where the search has rules about them; else None."""
    if not config.encoder_no_repeat_ngram_size:
        return None
    tokens = jnp.where(documents.token_mask, documents.input_ids, -1)
    return tokens.reshape(len(tokens), -1)


@partial(jax.jit, static_argnames=("model", "capacity"))
def target_nll(
    params: Params,
    hidden: Float[Array, "B K S D"],
    chunk_mask: Bool[Array, "B K"],
    selection: Selection,
    targets: Target,
    *,
    model: SimCAS,
    capacity: int,
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """(nats, tokens) of every document's reference, given the selected states: the loss without smoothing."""

    def one(hidden: Array, chunk_mask: Array, selection: Selection, target: Target) -> tuple[Array, Array]:
        compacted = compact(hidden, chunk_mask, selection, capacity)
        logits, _ = decode_selected(params, model, compacted, target, with_weights=False)
        log_prob, tokens = target_log_prob(logits, target)
        return -log_prob, tokens

    return over_documents(one)(hidden, chunk_mask, selection, targets)


@partial(jax.jit, static_argnames=("model", "capacity", "count"))
def attend_batch(
    params: Params,
    hidden: Float[Array, "B K S D"],
    chunk_mask: Bool[Array, "B K"],
    selection: Selection,
    sequence: Int[Array, "B T"],
    *,
    model: SimCAS,
    capacity: int,
    count: int,
) -> Attended:
    """Where the decoder looks as it writes every document's `sequence`, given the selected states."""

    def one(hidden: Array, chunk_mask: Array, selection: Selection, ids: Array) -> Attended:
        compacted = compact(hidden, chunk_mask, selection, capacity)
        target = Target(ids, jnp.ones(ids.shape, bool))
        return most_attended(params, model, compacted, target, min(count, len(compacted.index)))

    return over_documents(one)(hidden, chunk_mask, selection, sequence)


def attention_of(
    params: Params,
    hidden: Float[Array, "B K S D"],
    chunk_mask: Bool[Array, "B K"],
    selection: Selection,
    generation: Generation,
    *,
    model: SimCAS,
    capacity: int,
    count: int,
) -> Attended:
    """`attend_batch` of generated summaries, no longer than the longest needs (a power of two, as few are compiled)."""
    length = bucket(int(generation.length.max()), limit=generation.sequence.shape[1])
    sequence = generation.sequence[:, : max(length, 2)]
    return attend_batch(params, hidden, chunk_mask, selection, sequence, model=model, capacity=capacity, count=count)


def overflow_of(selection: Selection) -> Int[Array, " B"]:
    """How many candidates of each document of a batch were selected beyond the capacity."""
    return jnp.zeros(len(selection.action), jnp.int32) if selection.overflow is None else selection.overflow


def capacity_for(selection: Selection, limit: int | None) -> int:
    """The smallest power of two (from FEWEST_ROWS) that holds what was selected, so that few shapes are compiled.

    A configured capacity stays the upper bound: beyond it the most probable candidates stay.
    """
    needed = 1 + int(selection.action.sum(axis=(1, 2)).max())
    rows = max(FEWEST_ROWS, 1 << (needed - 1).bit_length())
    return rows if limit is None else min(rows, limit)
