"""T5Gemma's encoder over one chunk."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_simcas.backbones.t5gemma.layers import Layer, encoder_window, keys_values, output, queries


def encoder_layer(layer: Layer, x: Float[Array, "S D"], mask: Bool[Array, " S"]) -> Float[Array, "S D"]:
    """Self-attention and feed-forward over one chunk, at positions 0..S-1."""
    params, stack, dtype = layer.params["self_attn"], layer.stack, layer.dtype
    turned = layer.angles(jnp.arange(x.shape[0]))
    window = encoder_window(layer.config, x.shape[0], layer.sliding)
    seen = mask[None, :] if window is None else mask[None, :] & window

    def attention(y: Array) -> Array:
        query = queries(params, y, stack, turned, dtype)
        context = layer.attended(query, *keys_values(params, y, stack, turned, dtype), seen, within_chunk=True)
        return output(params, context, stack, dtype)

    return layer.sublayers(x, {"self_attn": attention})
