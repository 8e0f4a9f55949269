"""T5's building blocks for one sequence: pure functions of the dicts that hold their parameters.

Between layers states are float32 whatever the compute type: T5's grow to thousands, where bfloat16 has steps of 8 to
16, and every sublayer adds to them without a norm.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops.attention import Attend, attend_with_weights, attention
from jax_simcas.backbones.ops.layers import TRANSPOSED, activation, dropped, few_rows
from jax_simcas.backbones.ops.matmul import Dimensions, product
from jax_simcas.backbones.ops.memory import PRODUCT, SUM
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.common.trees import Params

TO_HEADS, FROM_HEADS = ("width", "heads"), ("heads", "width")
SCALE = 1.0  # of q k^T: T5 has it in its weights


def dense(params: Params, x: Float[Array, "T I"], dtype: Any, dimensions: Dimensions) -> Float[Array, "T O"]:
    """x W: operands in `dtype`, products summed in float32, result in `dtype`."""
    x = x.astype(dtype)
    y = few_rows(x, params[TRANSPOSED]) if TRANSPOSED in params else product(x, params["kernel"], dimensions)
    return y.astype(dtype)


def rms_norm(params: Params, x: Float[Array, "... D"], config: T5Config, dtype: Any) -> Float[Array, "... D"]:
    """w x / rms(x) in float32, result in `dtype`."""
    x = x.astype(jnp.float32)
    size = lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + config.layer_norm_epsilon)
    return (x * size * params["weight"]).astype(dtype)


def summed(x: Float[Array, "T D"], y: Float[Array, "T D"], config: T5Config, key: Array | None) -> Float[Array, "T D"]:
    """x + dropout(y): what a sublayer leaves."""
    return checkpoint_name(x + dropped(y, config.dropout_rate, key, 0).astype(x.dtype), SUM)


def embed(
    params: Params, ids: Int[Array, " T"], config: T5Config, key: Array | None, added: Float[Array, " D"] | None = None
) -> Float[Array, "T D"]:
    """The embedded tokens [+ added], after dropout; PAD's embedding learns, as the decoder starts with it."""
    x = params["shared"]["embedding"][ids]
    return dropped(x if added is None else x + added, config.dropout_rate, key, 0)


def feed_forward(params: Params, x: Float[Array, "T D"], config: T5Config, dtype: Any, key: Array | None) -> Array:
    """wo(activation(wi(x))), or wo(activation(wi_0(x)) wi_1(x))."""
    to_inner = lambda name: dense(params[name], x, dtype, ("width", "inner"))
    if config.gated:
        # Only the product is named: of two inner products, "dots" would keep twice the memory.
        inner = checkpoint_name(activation(to_inner("wi_0"), config.activation) * to_inner("wi_1"), PRODUCT)
    else:
        inner = activation(checkpoint_name(to_inner("wi"), PRODUCT), config.activation)
    inner = dropped(inner, config.dropout_rate, key, 1)
    return checkpoint_name(dense(params["wo"], inner, dtype, ("inner", "width")), PRODUCT)


def key_of(key: Array | None, sublayer: int) -> Array | None:
    """The key of one sublayer of a layer."""
    return None if key is None else jax.random.fold_in(key, sublayer)


# Attention


def queries(params: Params, x: Float[Array, "T D"], config: T5Config, dtype: Any) -> Float[Array, "H T Dh"]:
    return _heads(params["q"], x, config, dtype)


def keys_values(
    params: Params, x: Float[Array, "C D"], config: T5Config, dtype: Any
) -> tuple[Float[Array, "H C Dh"], Float[Array, "H C Dh"]]:
    return _heads(params["k"], x, config, dtype), _heads(params["v"], x, config, dtype)


def _heads(params: Params, x: Float[Array, "T D"], config: T5Config, dtype: Any) -> Float[Array, "H T Dh"]:
    y = checkpoint_name(dense(params, x, dtype, TO_HEADS), PRODUCT)
    return y.reshape(x.shape[0], config.num_heads, -1).transpose(1, 0, 2)


def output(params: Params, context: Float[Array, "H T Dh"], dtype: Any) -> Float[Array, "T D"]:
    """The heads of each token side by side, times the output kernel."""
    joined = context.transpose(1, 0, 2).reshape(context.shape[1], -1)
    return checkpoint_name(dense(params["o"], joined, dtype, FROM_HEADS), PRODUCT)


def self_attention(
    params: Params,
    x: Float[Array, "T D"],
    mask: Bool[Array, "#T T"],
    bias: Float[Array, "H N"],
    config: T5Config,
    dtype: Any,
    key: Array | None,
    within_chunk: bool = False,
) -> Float[Array, "T D"]:
    """Attention of a sequence to itself with a bias by distance, which no other implementation takes."""
    query, (keys, values) = queries(params, x, config, dtype), keys_values(params, x, config, dtype)
    if key is not None and config.attention_dropout:
        context = _with_dropout(query, keys, values, mask, bias, config, key)[0]
    else:
        context = attention(query, keys, values, mask, within_chunk, bias, SCALE)
    return output(params, context, dtype)


def cross_attention(
    params: Params,
    x: Float[Array, "T D"],
    states: Float[Array, "C D"],
    mask: Bool[Array, " C"],
    config: T5Config,
    dtype: Any,
    key: Array | None,
    attend: Attend,
    with_weights: bool,
) -> tuple[Float[Array, "T D"], Float[Array, "H T C"] | None]:
    """Attention to the selected states, which has no bias; and, when asked for, its weights before dropout."""
    query, (keys, values) = queries(params, x, config, dtype), keys_values(params, states, config, dtype)
    weights = None
    if key is not None and config.attention_dropout:
        context, weights = _with_dropout(query, keys, values, mask[None], None, config, key)
    elif with_weights:
        context, weights = attend_with_weights(query, keys, values, mask[None], scale=SCALE)
    elif attend is attention:
        context = attention(query, keys, values, mask[None], scale=SCALE)
    else:
        context = attend(query * config.d_kv**0.5, keys, values, mask[None], False)  # it divides by that
    return output(params, context, dtype), weights if with_weights else None


def _with_dropout(
    query: Float[Array, "H T Dh"],
    keys: Float[Array, "H C Dh"],
    values: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    bias: Float[Array, "H N"] | None,
    config: T5Config,
    key: Array,
) -> tuple[Float[Array, "H T Dh"], Float[Array, "H T C"]]:
    """The context with dropout of the weights, and the weights before it."""
    _, weights = attend_with_weights(query, keys, values, mask, bias, scale=SCALE)
    kept = dropped(weights, config.attention_dropout, key, 2).astype(values.dtype)
    context = jnp.einsum("htc,hcd->htd", kept, values, preferred_element_type=jnp.float32)
    return context.astype(values.dtype), weights


# The bias of attention, by distance


def buckets(distances: Int[np.ndarray, " N"], both_ways: bool, config: T5Config) -> Int[np.ndarray, " N"]:
    """The class of each distance from a query to a key.

    Half of the classes are for single distances, the others for ranges that grow to `relative_attention_max_distance`.
    Made on the host, as the logarithm of an accelerator may fall on the other side of a bound.

    Source: `_relative_position_bucket` of transformers' T5, in the same precision.

    Args:
      both_ways: keys after a query have classes of their own, half of all; else they are of that of distance 0.
    """
    classes, first = config.relative_attention_num_buckets, np.zeros_like(distances)
    if both_ways:
        classes //= 2
        first = np.where(distances > 0, classes, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    single = classes // 2
    share = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(single))
    share /= np.float32(math.log(config.relative_attention_max_distance / single))
    ranged = np.minimum(single + (share * np.float32(classes - single)).astype(np.int64), classes - 1)
    return first + np.where(distances < single, distances, ranged)


def bias_by_distance(
    table: Float[Array, "buckets H"], length: int, both_ways: bool, config: T5Config
) -> Float[Array, "H N"]:
    """The bias for distances from 1 - length to length - 1."""
    return table[buckets(np.arange(1 - length, length), both_ways, config)].T


def bias_of_step(
    table: Float[Array, "buckets H"], position: Int[Array, ""], length: int, beams: int, config: T5Config
) -> Float[Array, "H 1 R"]:
    """The bias of the token at `position` to the rows of a cache, `beams` for each of the tokens 0..length-1."""
    by_distance = bias_by_distance(table, length, False, config)
    of_keys = lax.dynamic_slice_in_dim(by_distance, length - 1 - position, length, axis=1)
    return jnp.repeat(of_keys, beams, axis=1)[:, None]
