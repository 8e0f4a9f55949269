"""From chunks to token ids in compiled stages: encode and select; compact what was selected; generate from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.common.sharding import over_documents
from jax_simcas.common.trees import Params
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.tokenizer import TextTokenizer
from jax_simcas.method.attention import Attended, most_attended
from jax_simcas.method.beam_search import Generation, generate
from jax_simcas.method.chunk import bucket, half_step
from jax_simcas.method.document import Document, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, decode_selected, encode, select_document
from jax_simcas.method.reward import by_candidate, target_log_prob
from jax_simcas.method.select import Compacted, Policy, Selection, compact, most_probable

FEWEST_ROWS = 64  # of the decoder: fewer save no time


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


@partial(jax.jit, static_argnames=("capacity",))
def compact_batch(
    hidden: Float[Array, "B K S D"], chunk_mask: Bool[Array, "B K"], selection: Selection, *, capacity: int
) -> Compacted:
    """The selected states of every document in `capacity` rows."""
    return over_documents(partial(compact, capacity=capacity))(hidden, chunk_mask, selection)


@partial(jax.jit, static_argnames=("model", "config"))
def generate_batch(
    params: Params,
    compacted: Compacted,
    source: Int[Array, "B N"] | None = None,
    *,
    model: SimCAS,
    config: GenerateConfig,
) -> Generation:
    """Searches for the best summary of every document, given its selected states.

    Args:
      source: see `source_tokens`.
    """

    def one(compacted: Compacted, source: Array | None) -> Generation:
        return generate(params, model, config, compacted, source)

    return over_documents(one)(compacted, source)


def source_tokens(documents: Document, config: GenerateConfig) -> Int[Array, "B N"] | None:
    """The tokens of every document, -1 for PAD, where the search has rules about them; else None."""
    if not config.encoder_no_repeat_ngram_size:
        return None
    tokens = jnp.where(documents.token_mask, documents.input_ids, -1)
    return tokens.reshape(len(tokens), -1)


@partial(jax.jit, static_argnames=("model", "candidates"))
def target_nll(
    params: Params, compacted: Compacted, targets: Target, *, model: SimCAS, candidates: tuple[int, int] | None = None
) -> tuple[Float[Array, " B"], Int[Array, " B"], Float[Array, "B K N"] | None]:
    """(nats, tokens) of every document's reference, given the selected states: the loss without smoothing.

    Args:
      candidates: (K, N), for the mean cross-attention to each candidate as the third value; None: it is None.
    """

    def one(compacted: Compacted, target: Target) -> tuple[Array, Array, Array | None]:
        logits, attention = decode_selected(params, model, compacted, target, with_weights=candidates is not None)
        log_prob, tokens = target_log_prob(logits, target)
        if attention is None or candidates is None:
            return -log_prob, tokens, None
        return -log_prob, tokens, by_candidate(attention, compacted.index, candidates)

    return over_documents(one)(compacted, targets)


@partial(jax.jit, static_argnames=("model", "count"))
def attend_batch(
    params: Params, compacted: Compacted, sequence: Int[Array, "B T"], *, model: SimCAS, count: int
) -> Attended:
    """Where the decoder looks as it writes every document's `sequence`, given the selected states."""

    def one(compacted: Compacted, ids: Array) -> Attended:
        target = Target(ids, jnp.ones(ids.shape, bool))
        return most_attended(params, model, compacted, target, min(count, len(compacted.index)))

    return over_documents(one)(compacted, sequence)


def attention_of(
    params: Params, compacted: Compacted, generation: Generation, *, model: SimCAS, count: int
) -> Attended:
    """`attend_batch` of generated summaries, no longer than the longest needs (a power of two, as few are compiled)."""
    length = bucket(int(generation.length.max()), limit=generation.sequence.shape[1])
    sequence = generation.sequence[:, : max(length, 2)]
    return attend_batch(params, compacted, sequence, model=model, count=count)


def overflow_of(selection: Selection) -> Int[Array, " B"]:
    """How many candidates of each document of a batch were selected beyond the capacity."""
    return jnp.zeros(len(selection.action), jnp.int32) if selection.overflow is None else selection.overflow


def capacity_for(selected: int, limit: int | None, step: Callable[[int], int] = half_step) -> int:
    """Rows for g and so many selected candidates: few sizes (from FEWEST_ROWS), as each is compiled for itself.

    A configured capacity stays the upper bound: beyond it the most probable candidates stay.
    """
    rows = max(FEWEST_ROWS, step(1 + selected))
    return rows if limit is None else min(rows, limit)
