"""From chunks to token ids in two compiled stages: encode and select, then generate from what was selected."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.common.sharding import over_documents
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.method.beam_search import GenerateConfig, Generation, generate
from jax_simcas.method.model import SimcasConfig, candidates, decode_selected, encode
from jax_simcas.method.reward import target_log_prob
from jax_simcas.method.select import Selection, compact, most_probable, select
from jax_simcas.method.steps import Batch

Params = Any


class Predictor(NamedTuple):
    """A trained model, and how it reads documents and writes summaries."""

    params: Params
    bart: BartConfig
    simcas: SimcasConfig
    tokenizer: Any
    reading: PipelineConfig
    generate: GenerateConfig


@partial(jax.jit, static_argnames=("bart", "simcas", "policy"))
def select_batch(
    params: Params,
    batch: Batch,
    key: Array,
    budget: Int[Array, " B"],
    *,
    bart: BartConfig,
    simcas: SimcasConfig,
    policy: str,
) -> tuple[Float[Array, "B K S D"], Selection]:
    """Encodes every document of a batch and lets the policy choose, within the configured capacity.

    Args:
      key: for the policies that draw; document b uses the b-th of its split.
      budget: candidates a document, for the policies that spend one.
    """
    keys = jax.random.split(key, budget.shape[0])

    def one(
        input_ids: Array, token_mask: Array, chunk_mask: Array, key: Array, budget: Array
    ) -> tuple[Array, Selection]:
        hidden, _ = encode(params, bart, simcas, input_ids, token_mask, chunk_mask)
        selection = select(
            params["selector"],
            hidden,
            candidates(simcas, token_mask, chunk_mask),
            chunk_mask,
            policy=policy,
            key=key,
            budget=budget,
            threshold=simcas.threshold,
            empty_chunk=simcas.empty_chunk,
        )
        if simcas.capacity is not None:
            selection = selection._replace(action=most_probable(selection, simcas.capacity - 1))
        return hidden, selection

    rows = (batch["input_ids"], batch["token_mask"], batch["chunk_mask"])
    return over_documents(one)(*rows, keys, budget)


@partial(jax.jit, static_argnames=("bart", "simcas", "config", "capacity"))
def generate_batch(
    params: Params,
    hidden: Float[Array, "B K S D"],
    chunk_mask: Array,
    selection: Selection,
    *,
    bart: BartConfig,
    simcas: SimcasConfig,
    config: GenerateConfig,
    capacity: int,
) -> Generation:
    """Compacts the selected states of every document to `capacity` rows and searches for its best summary."""

    def one(hidden: Array, chunk_mask: Array, selection: Selection) -> Generation:
        compacted = compact(hidden, chunk_mask, selection, capacity)
        return generate(params, bart, config, compacted.states, compacted.mask, dtype=jnp.dtype(simcas.dtype))

    return over_documents(one)(hidden, chunk_mask, selection)


@partial(jax.jit, static_argnames=("bart", "simcas", "capacity"))
def target_nll(
    params: Params,
    hidden: Float[Array, "B K S D"],
    chunk_mask: Array,
    selection: Selection,
    target_ids: Int[Array, "B T"],
    target_mask: Bool[Array, "B T"],
    *,
    bart: BartConfig,
    simcas: SimcasConfig,
    capacity: int,
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """(nats, tokens) of every document's reference, given what was selected: the loss without smoothing."""

    def one(
        hidden: Array, chunk_mask: Array, selection: Selection, target_ids: Array, target_mask: Array
    ) -> tuple[Array, Array]:
        compacted = compact(hidden, chunk_mask, selection, capacity)
        logits, _ = decode_selected(params, bart, simcas, compacted, target_ids, target_mask, with_weights=False)
        log_prob, tokens = target_log_prob(logits, target_ids, target_mask)
        return -log_prob, tokens

    return over_documents(one)(hidden, chunk_mask, selection, target_ids, target_mask)


def capacity_for(selection: Selection, limit: int | None) -> int:
    """The smallest power of two (from 64) that holds what was selected, so that few shapes are compiled.

    A configured capacity stays the upper bound: beyond it the most probable candidates stay.
    """
    needed = 1 + int(selection.action.sum(axis=(1, 2)).max())
    rows = max(64, 1 << (needed - 1).bit_length())
    return rows if limit is None else min(rows, limit)
