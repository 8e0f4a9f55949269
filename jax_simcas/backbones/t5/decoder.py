"""T5's decoder for one document: teacher-forced, and step by step with caches for generation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops.attention import Attend, attend_few_rows, attend_to_rows, attention
from jax_simcas.backbones.ops.caches import (
    CrossCache,
    SelfCache,
    empty_caches,
    own_slots,
    visible_rows,
    with_rows,
)
from jax_simcas.backbones.ops.layers import TRANSPOSED, dropped, few_rows
from jax_simcas.backbones.ops.matmul import product
from jax_simcas.backbones.ops.stacks import apart, checkpointed
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.backbones.t5.layers import (
    SCALE,
    Params,
    bias_by_distance,
    bias_of_step,
    cross_attention,
    embed,
    feed_forward,
    key_of,
    keys_values,
    output,
    queries,
    rms_norm,
    self_attention,
    summed,
)
from jax_simcas.backbones.t5.trees import BLOCKS, layers_and_tables, unstacked
from jax_simcas.common.sharding import constrain

HEAD = "head"  # the output head of a tree for generation, [V, D]


def decoder_layer(
    block: Params,
    table: Float[Array, "buckets H"],
    x: Float[Array, "T D"],
    states: Float[Array, "C D"],
    states_mask: Bool[Array, " C"],
    config: T5Config,
    dtype: Any,
    key: Array | None,
    attend: Attend,
    with_weights: bool,
) -> tuple[Float[Array, "T D"], Float[Array, "H T C"] | None]:
    """Causal self-attention, cross-attention to the selected states, feed-forward; and the cross-attention weights."""
    own, cross, inner = (block["layer"][name] for name in "012")
    length = x.shape[0]
    causal = jnp.tril(jnp.ones((length, length), bool))
    bias = bias_by_distance(table, length, False, config)
    first, second, third = (key_of(key, sublayer) for sublayer in range(3))
    y = rms_norm(own["layer_norm"], x, config, dtype)
    x = summed(x, self_attention(own["SelfAttention"], y, causal, bias, config, dtype, first), config, first)
    y = rms_norm(cross["layer_norm"], x, config, dtype)
    y, weights = cross_attention(
        cross["EncDecAttention"], y, states, states_mask, config, dtype, second, attend, with_weights
    )
    x = summed(x, y, config, second)
    y = feed_forward(inner["DenseReluDense"], rms_norm(inner["layer_norm"], x, config, dtype), config, dtype, third)
    return summed(x, y, config, third), weights


def logits_of(
    params: Params, x: Float[Array, "T D"], config: T5Config, dtype: Any, key: Array | None = None
) -> Float[Array, "T V"]:
    """The final norm, and products with the head of its own or the table of embeddings, in float32."""
    x = rms_norm(params["decoder"]["final_layer_norm"], x, config, jnp.float32)
    x = dropped(x, config.dropout_rate, key, 1)
    x = (x * config.d_model**-0.5 if config.scales_logits else x).astype(dtype)
    if HEAD in params:
        return few_rows(x, params[HEAD])
    if "lm_head" in params:
        return product(x, params["lm_head"]["kernel"], ("width", "vocabulary"))
    embedding = params["shared"]["embedding"].astype(dtype)
    return jnp.einsum("td,vd->tv", x, embedding, preferred_element_type=jnp.float32)


def decode(
    params: Params,
    config: T5Config,
    states: Float[Array, "C D"],
    states_mask: Bool[Array, " C"],
    target_ids: Int[Array, " T"],
    target_mask: Bool[Array, " T"],
    *,
    key: Array | None = None,
    dtype: Any = jnp.float32,
    remat: str = "none",
    with_weights: bool = True,
    attend: Attend = attention,
) -> tuple[Float[Array, "T V"], Float[Array, " C"] | None]:
    """Teacher forcing: logits at t predict target t + 1.

    Dropout of the encoder's last states, which transformers applies before it hands them on, is applied here: what
    the selector reads has none.

    Returns:
      logits in float32, and (`with_weights`, else None) the cross-attention weights averaged over layers,
      heads and real target positions: one weight per selected state; they sum to 1.
    """
    layers_key, start_key = (None, None) if key is None else jax.random.split(key)
    keys = None if layers_key is None else jax.random.split(layers_key, config.num_decoder_layers)
    states = constrain(states, None, None)
    states = dropped(states, config.dropout_rate, start_key, 2).astype(dtype)
    x = embed(params, target_ids, config, start_key)
    share = target_mask / jnp.maximum(target_mask.sum(), 1)

    def step(x: Array, inputs: tuple) -> tuple[Array, Array | None]:
        (block, table), layer_key = inputs
        x, weights = decoder_layer(block, table, x, states, states_mask, config, dtype, layer_key, attend, with_weights)
        x = constrain(x, None, None)  # left free, the partitioner would spread it over the idle chunk axis
        if weights is None:
            return x, None
        return x, jnp.einsum("htc,t->c", weights, share) / config.num_heads

    x, weights = lax.scan(checkpointed(step, remat), x, (layers_and_tables(params["decoder"], config), keys))
    logits = logits_of(params, x, config, dtype, start_key)
    return logits, None if weights is None else weights.mean(axis=0)


def cross_cache(
    params: Params,
    config: T5Config,
    states: Float[Array, "C D"],
    states_mask: Bool[Array, " C"],
    dtype: Any = jnp.float32,
) -> CrossCache:
    """Cross-attention keys and values of all layers, for `decode_step`."""

    def project(block: Params) -> tuple[Array, Array]:
        key, value = keys_values(block["layer"]["1"]["EncDecAttention"], states, config, dtype)
        return key.swapaxes(1, 2), value

    # `apart` goes by number: jit sorts the names of blocks, and "10" stands before "2".
    key, value = zip(*map(project, apart(params["decoder"][BLOCKS])), strict=True)
    return CrossCache(key, value, states_mask)


def init_self_cache(config: T5Config, beams: int, max_length: int) -> tuple[SelfCache, ...]:
    """One empty cache per layer, for `max_length` tokens of each beam."""
    return empty_caches(config.num_decoder_layers, config.num_heads, max_length * beams, config.d_kv)


def decode_step(
    params: Params,
    config: T5Config,
    token: Int[Array, " beams"],
    position: Int[Array, ""],
    self_cache: tuple[SelfCache, ...],
    cross: CrossCache,
    ancestors: Int[Array, "beams T"] | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "beams V"], tuple[SelfCache, ...]]:
    """Logits after one more token of every beam, in an unrolled loop over layers.

    Args:
      params: the whole tree; before a loop prepare it once with `for_generation`.
      token: the token at `position` (0 is the decoder start token).
      ancestors: cache slot ancestors[b, t] holds step t of the history of beam b; None: slot b does.
    """
    decoder = unstacked(params["decoder"], config)
    beams = token.shape[0]
    length = self_cache[0].key.shape[1] // beams
    own = own_slots(position, beams, length, ancestors)
    history = visible_rows(own, jnp.arange(length) <= position)
    x = embed(params, token, config, None)
    written = []
    bias = None
    for number, cache in enumerate(self_cache):
        block = decoder["block"][str(number)]
        if bias is None or not config.shares_bias:
            table = block["layer"]["0"]["SelfAttention"]["relative_attention_bias"]["embedding"]
            bias = bias_of_step(table, position, length, beams, config)
        selected = (cross.key[number], cross.value[number], cross.mask)
        x, cache = layer_step(block, x, position, cache, selected, history, bias, config, dtype)
        written.append(cache)
    return logits_of(params, x, config, dtype), tuple(written)


def layer_step(
    block: Params,
    x: Float[Array, "beams D"],
    position: Int[Array, ""],
    cache: SelfCache,
    cross: tuple[Float[Array, "H Dh C"], Float[Array, "H C Dh"], Bool[Array, " C"]],
    history: Bool[Array, "beams R"],
    bias: Float[Array, "H 1 R"],
    config: T5Config,
    dtype: Any,
) -> tuple[Float[Array, "beams D"], SelfCache]:
    """One token per beam; writes the rows of step `position` of the layer's cache."""
    own, other, inner = (block["layer"][name] for name in "012")
    y = rms_norm(own["layer_norm"], x, config, dtype)
    cache = with_rows(cache, SelfCache(*keys_values(own["SelfAttention"], y, config, dtype)), position)
    # Each beam scores the rows of all slots and the mask keeps those of its ancestors.
    query = queries(own["SelfAttention"], y, config, dtype).astype(cache.key.dtype)
    context = attend_to_rows(query, cache.key, cache.value, history, bias, scale=SCALE)
    x = x + output(own["SelfAttention"], context, dtype)
    y = rms_norm(other["layer_norm"], x, config, dtype)
    key, value, mask = cross
    context = attend_few_rows(queries(other["EncDecAttention"], y, config, dtype), key, value, mask[None], scale=SCALE)
    x = x + output(other["EncDecAttention"], context, dtype)
    y = rms_norm(inner["layer_norm"], x, config, dtype)
    return x + feed_forward(inner["DenseReluDense"], y, config, dtype, None), cache


def for_generation(params: Params, config: T5Config, dtype: Any) -> Params:
    """The tree as `decode_step` reads it: decoder layers one by one, their kernels and the head transposed, in `dtype`.

    `cross_cache` takes the original tree.
    """

    def transposed(tree: Params) -> Params:
        if "kernel" in tree:
            return {TRANSPOSED: tree["kernel"].astype(dtype).T}
        return {name: transposed(x) if isinstance(x, dict) else x for name, x in tree.items()}

    head = params["lm_head"]["kernel"].T if "lm_head" in params else params["shared"]["embedding"]
    return {**params, "decoder": transposed(unstacked(params["decoder"], config)), HEAD: head.astype(dtype)}
