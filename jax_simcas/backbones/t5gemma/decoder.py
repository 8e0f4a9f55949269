"""T5Gemma's decoder for one document: teacher-forced, and step by step with caches for generation.

A T5Gemma's layer attends to the target, then to the selected states. A T5Gemma 2's attends to both in one softmax, with
the same projections; keys of selected states are not turned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops.attention import Attend, attend_few_rows, attend_to_rows, attention, masked_scores
from jax_simcas.backbones.ops.caches import (
    CrossCache,
    SelfCache,
    empty_caches,
    own_slots,
    visible_rows,
    with_rows,
)
from jax_simcas.backbones.ops.layers import TRANSPOSED, dropped, few_rows
from jax_simcas.backbones.ops.stacks import checkpointed, layers_apart, stacked_layers, unstack_layers
from jax_simcas.backbones.t5gemma.config import T5GemmaConfig
from jax_simcas.backbones.t5gemma.layers import (
    Layer,
    Params,
    capped,
    decoder_window,
    embed,
    in_rows,
    keys_values,
    output,
    queries,
    rms_norm,
    weighted,
)
from jax_simcas.common.sharding import constrain


def table_of(params: Params) -> Params:
    """The embeddings of target tokens: the decoder's own, else the encoder's."""
    model = params["model"]
    return model["decoder"].get("embed_tokens") or model["encoder"]["embed_tokens"]


def head_of(params: Params) -> Params:
    """What gives logits: the head's own rows, else the embeddings of target tokens."""
    return params["lm_head"]["out_proj"] if "lm_head" in params else table_of(params)


def logits_of(
    params: Params, config: T5GemmaConfig, x: Float[Array, "T D"], dtype: Any, key: Array | None = None
) -> Float[Array, "T V"]:
    """The closing norm (and dropout), x E^T with the rows E of the head, and the cap, in float32."""
    x = dropped(rms_norm(params["model"]["decoder"]["norm"], x, config.decoder, dtype), config.dropout_rate, key, 0)
    head = head_of(params)
    if TRANSPOSED in head:
        products = few_rows(x, head[TRANSPOSED])
    else:
        products = jnp.einsum("td,vd->tv", x, head["embedding"].astype(dtype), preferred_element_type=jnp.float32)
    return capped(products, config.decoder.final_logit_softcapping)


def decoder_layer(
    layer: Layer, x: Float[Array, "T D"], selected: Float[Array, "C E"], mask: Bool[Array, " C"], with_weights: bool
) -> tuple[Float[Array, "T D"], Float[Array, "H T C"] | None]:
    """Returns the states and, when asked for, the weights of the selected states, which sum to 1 (before dropout)."""
    positions = jnp.arange(x.shape[0])
    seen = decoder_window(layer.config, positions[:, None] - positions, layer.sliding)
    run = _merged if layer.config.merged else _apart
    x, weights = run(layer, x, seen, layer.angles(positions), selected, mask, with_weights)
    return x, None if weights is None else weights.reshape(-1, x.shape[0], mask.shape[0])


def _apart(
    layer: Layer, x: Array, seen: Array, turned: Any, selected: Array, mask: Array, with_weights: bool
) -> tuple[Array, Array | None]:
    """A T5Gemma's: self-attention, then cross-attention."""
    own, cross, stack, dtype = layer.params["self_attn"], layer.params["cross_attn"], layer.stack, layer.dtype
    weights = None

    def to_target(y: Array) -> Array:
        query = queries(own, y, stack, turned, dtype)
        return output(own, layer.attended(query, *keys_values(own, y, stack, turned, dtype), seen), stack, dtype)

    def to_selected(y: Array) -> Array:
        nonlocal weights
        query, (key, value) = queries(cross, y, stack, None, dtype), keys_values(cross, selected, stack, None, dtype)
        if with_weights:
            weights = jax.nn.softmax(masked_scores(query, key, mask[None, :], **layer.limits), axis=-1)
            context = layer.weighted(weights, value, place=1)
        else:
            context = layer.attended(query, key, value, mask[None, :], place=1)
        return output(cross, context, stack, dtype)

    x = layer.sublayers(x, {"self_attn": to_target, "cross_attn": to_selected})
    return x, weights


def _merged(
    layer: Layer, x: Array, seen: Array, turned: Any, selected: Array, mask: Array, with_weights: bool
) -> tuple[Array, Array | None]:
    """A T5Gemma 2's: one softmax over target and selected states.

    The weights of the selected states are taken as those of a softmax over them alone. In the merged one they sum to
    what the target leaves, less the longer it is; the method asks how each compares with the others.
    """
    params, stack, dtype = layer.params["self_attn"], layer.stack, layer.dtype
    both = jnp.concatenate([seen, jnp.broadcast_to(mask, (x.shape[0], *mask.shape))], axis=1)
    weights = None

    def attention(y: Array) -> Array:
        nonlocal weights
        query = queries(params, y, stack, turned, dtype)
        target, states = keys_values(params, y, stack, turned, dtype), keys_values(params, selected, stack, None, dtype)
        key, value = (jnp.concatenate(pair, axis=1) for pair in zip(target, states, strict=True))
        if with_weights:
            scores = masked_scores(query, key, in_rows(both, stack), **layer.limits)
            context = layer.weighted(jax.nn.softmax(scores, axis=-1), value)
            weights = jax.nn.softmax(scores[..., y.shape[0] :], axis=-1)
        else:
            context = layer.attended(query, key, value, both)
        return output(params, context, stack, dtype)

    return layer.sublayers(x, {"self_attn": attention}), weights


def decode(
    params: Params,
    config: T5GemmaConfig,
    selected: Float[Array, "C E"],
    selected_mask: Bool[Array, " C"],
    target_ids: Int[Array, " T"],
    target_mask: Bool[Array, " T"],
    *,
    key: Array | None,
    dtype: Any,
    remat: str,
    with_weights: bool,
    attend: Attend,
) -> tuple[Float[Array, "T V"], Float[Array, " C"] | None]:
    """Teacher forcing: logits at t predict target t + 1.

    Returns:
      logits in float32, and (`with_weights`, else None) the weights of the selected states, averaged over layers, heads
      and real target positions; they sum to 1.
    """
    decoder, stack = params["model"]["decoder"], config.decoder
    keys = None if key is None else jax.random.split(key, stack.num_hidden_layers + 3)
    layer_keys, *others = (None,) * 4 if keys is None else (keys[:-3], *keys[-3:])
    states, start, end = others
    # transformers' dropout after the encoder's closing norm, whose states nothing but the decoder learns from.
    selected = dropped(constrain(selected, None, None).astype(dtype), config.dropout_rate, states, 0)
    x = embed(table_of(params), config, target_ids).astype(dtype)
    x = dropped(x, config.dropout_rate, start, 0)
    share = target_mask / jnp.maximum(target_mask.sum(), 1)

    def step(x: Array, inputs: tuple) -> tuple[Array, Array | None]:
        layer_params, sliding, layer_key = inputs
        layer = Layer(layer_params, config, stack, sliding, dtype, attend, layer_key)
        x, weights = decoder_layer(layer, x, selected, selected_mask, with_weights)
        x = constrain(x, None, None)  # left free, the partitioner would spread it over the idle chunk axis
        return x, None if weights is None else jnp.einsum("htc,t->c", weights, share) / weights.shape[0]

    inputs = (stacked_layers(decoder), jnp.array(stack.sliding), layer_keys)
    x, weights = lax.scan(checkpointed(step, remat), x, inputs)
    logits = logits_of(params, config, x, dtype, end)
    return logits, weights.mean(axis=0) if with_weights else None


def cross_cache(
    params: Params,
    config: T5GemmaConfig,
    selected: Float[Array, "C E"],
    selected_mask: Bool[Array, " C"],
    dtype: Any,
) -> CrossCache:
    """Keys and values of the selected states in all layers, for `decode_step`."""
    name = "self_attn" if config.merged else "cross_attn"

    def project(layer: Params) -> tuple[Array, Array]:
        key, value = keys_values(layer[name], selected, config.decoder, None, dtype)
        return key.swapaxes(1, 2), value

    key, value = zip(*map(project, layers_apart(params["model"]["decoder"])), strict=True)
    return CrossCache(key, value, selected_mask)


def init_self_cache(config: T5GemmaConfig, beams: int, length: int) -> tuple[SelfCache, ...]:
    """One empty cache per layer, for `length` tokens of each beam."""
    stack = config.decoder
    return empty_caches(stack.num_hidden_layers, stack.num_key_value_heads, length * beams, stack.head_dim)


def decode_step(
    params: Params,
    config: T5GemmaConfig,
    token: Int[Array, " beams"],
    position: Int[Array, ""],
    self_cache: tuple[SelfCache, ...],
    cross: CrossCache,
    ancestors: Int[Array, "beams T"] | None,
    dtype: Any,
) -> tuple[Float[Array, "beams V"], tuple[SelfCache, ...]]:
    """Logits after one more token of every beam.

    Args:
      params: the whole tree; before a loop prepare it once with `for_generation`.
      token: the token at `position` (0 is the decoder start token).
      ancestors: cache slot ancestors[b, t] holds step t of the history of beam b; None: slot b does.
    """
    beams = token.shape[0]
    length = self_cache[0].key.shape[1] // beams
    own = own_slots(position, beams, length, ancestors)
    x = embed(table_of(params), config, token).astype(dtype)

    written = []
    layers = zip(layers_apart(params["model"]["decoder"]), config.decoder.sliding, strict=True)
    for (layer, sliding), cache, *states in zip(layers, self_cache, cross.key, cross.value, strict=True):
        seen = decoder_window(config, position - jnp.arange(length), sliding)
        history = visible_rows(own, seen)
        one = Layer(layer, config, config.decoder, sliding, dtype, attention, None)
        x, cache = _step(one, x, position, cache, (*states, cross.mask), history)
        written.append(cache)
    return logits_of(params, config, x, dtype), tuple(written)


def _step(
    layer: Layer,
    x: Float[Array, "beams D"],
    position: Int[Array, ""],
    cache: SelfCache,
    states: tuple[Array, ...],
    history: Bool[Array, "beams R"],
) -> tuple[Float[Array, "beams D"], SelfCache]:
    """One token per beam through one layer; writes the rows of step `position` of its cache."""
    params, merged, stack, dtype = layer.params, layer.config.merged, layer.stack, layer.dtype
    own, (key, value, mask) = params["self_attn"], states
    turned = layer.angles(jnp.full(x.shape[:1], position))
    history = in_rows(history, stack)

    def to_target(y: Array) -> Array:
        nonlocal cache
        cache = with_rows(cache, SelfCache(*keys_values(own, y, stack, turned, dtype)), position)
        query = queries(own, y, stack, turned, dtype)
        # Each beam scores the rows of all slots and the mask keeps those of its ancestors: a product and a mask
        # instead of a gather that would copy the cache.
        if merged:
            context = _attend_to_both(query, cache, history, states, layer.limits["scale"])
        else:
            context = attend_to_rows(query.astype(cache.key.dtype), cache.key, cache.value, history, **layer.limits)
        return output(own, context, stack, dtype)

    def to_selected(y: Array) -> Array:
        query = queries(params["cross_attn"], y, stack, None, dtype)
        context = attend_few_rows(query, key, value, mask[None, :], **layer.limits)
        return output(params["cross_attn"], context, stack, dtype)

    attentions: dict[str, Callable[[Array], Array]] = {"self_attn": to_target}
    if not merged:
        attentions["cross_attn"] = to_selected
    return layer.sublayers(x, attentions), cache


def _attend_to_both(
    query: Float[Array, "G Q Dh"],
    cache: SelfCache,
    history: Bool[Array, "#Q R"],
    states: tuple[Array, ...],
    scale: float,
) -> Float[Array, "G Q Dh"]:
    """One softmax over the rows of a cache and the selected states, each laid out as the functions for few rows do."""
    key, value, mask = states
    rows = jnp.einsum("hcd,htd->hct", cache.key, query.astype(cache.key.dtype), preferred_element_type=jnp.float32)
    rows = lax.optimization_barrier(rows).swapaxes(1, 2)
    others = jnp.einsum("htd,hdc->htc", query, key, preferred_element_type=jnp.float32)
    products = jnp.concatenate([rows, others], axis=-1)
    seen = jnp.concatenate([history, jnp.broadcast_to(mask, (history.shape[0], *mask.shape))], axis=-1)
    scores = jnp.where(seen, products * scale, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    length = cache.key.shape[1]
    context = weighted(weights[..., :length], cache.value) + weighted(weights[..., length:], value)
    return context.astype(value.dtype)


def for_generation(params: Params, dtype: Any) -> Params:
    """The tree as `decode_step` reads it: decoder layers unstacked, and its kernels transposed and in `dtype`.

    `cross_cache` takes the original tree.
    """
    params = unstack_layers(params)
    model = params["model"]

    def transposed(tree: Params) -> Params:
        if "kernel" not in tree:
            return {name: transposed(x) if isinstance(x, dict) else x for name, x in tree.items()}
        return {name: x for name, x in tree.items() if name != "kernel"} | {TRANSPOSED: tree["kernel"].astype(dtype).T}

    decoder = {**model["decoder"], "layers": transposed(model["decoder"]["layers"])}
    head = {TRANSPOSED: head_of(params)["embedding"].astype(dtype)}
    return {**params, "model": {**model, "decoder": decoder}, "lm_head": {"out_proj": head}}
