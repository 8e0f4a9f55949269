"""T5's encoder over one chunk."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float

from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.backbones.t5.layers import (
    Params,
    bias_by_distance,
    feed_forward,
    key_of,
    rms_norm,
    self_attention,
    summed,
)


def encoder_layer(
    block: Params,
    table: Float[Array, "buckets H"],
    x: Float[Array, "S D"],
    mask: Bool[Array, " S"],
    config: T5Config,
    dtype: Any,
    key: Array | None,
) -> Float[Array, "S D"]:
    """Self-attention and feed-forward over one chunk; `table` has the biases."""
    attention, inner = block["layer"]["0"], block["layer"]["1"]
    bias = bias_by_distance(table, x.shape[0], True, config)
    first, second = key_of(key, 0), key_of(key, 1)
    y = rms_norm(attention["layer_norm"], x, config, dtype)
    y = self_attention(attention["SelfAttention"], y, mask[None], bias, config, dtype, first, within_chunk=True)
    x = summed(x, y, config, first)
    y = feed_forward(inner["DenseReluDense"], rms_norm(inner["layer_norm"], x, config, dtype), config, dtype, second)
    return summed(x, y, config, second)
