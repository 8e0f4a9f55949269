"""BART's encoder for one chunk, with a hook between layers where chunks meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.bart.config import BartConfig
from jax_simcas.bart.layers import (
    Attention,
    FeedForward,
    LayerNorm,
    Params,
    dropout_embedding,
    embed,
    final_norm,
    init_stack,
    stack_layers,
    sublayer,
)

REMAT = ("none", "dots", "layer")


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over one chunk."""

    config: BartConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c.encoder_attention_heads, c, self.dtype)
        self.self_attn_layer_norm = LayerNorm(self.dtype)
        self.mlp = FeedForward(c.encoder_ffn_dim, c, self.dtype)
        nn.share_scope(self, self.mlp)
        self.final_layer_norm = LayerNorm(self.dtype)

    def __call__(
        self, x: Float[Array, "S D"], mask: Bool[Array, " S"], deterministic: bool = True
    ) -> Float[Array, "S D"]:
        attention = lambda y: self.self_attn(y, y, mask[None, :], deterministic)
        feed_forward = lambda y: self.mlp(y, deterministic)
        x = sublayer(self, x, attention, self.self_attn_layer_norm, self.config, deterministic)
        return sublayer(self, x, feed_forward, self.final_layer_norm, self.config, deterministic)


def init_encoder(key: Array, config: BartConfig) -> Params:
    """Fresh encoder parameters."""
    inputs = (jnp.zeros((2, config.d_model)), jnp.ones(2, bool))
    return init_stack(key, EncoderLayer(config), inputs, config.encoder_layers, config)


def checkpointed(function: Callable, remat: str) -> Callable:
    """What the backward pass recomputes: nothing, a whole layer, or all but its weight products."""
    if remat == "none":
        return function
    if remat == "layer":
        return jax.checkpoint(function)
    if remat == "dots":
        return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    raise ValueError(f"remat={remat!r}: expected one of {', '.join(REMAT)}")


def encode_chunk(
    params: Params,
    config: BartConfig,
    input_ids: Int[Array, " S"],
    token_mask: Bool[Array, " S"],
    between: Callable[[Array, Array], Array],
    *,
    added: Float[Array, " D"] | None = None,
    key: Array | None = None,
    dtype: Any = jnp.float32,
    remat: str = "none",
) -> tuple[Float[Array, "S D"], Float[Array, "L S D"]]:
    """Runs the encoder over one chunk at positions 0..S-1.

    Args:
      params: the tree `model`, with `shared` and `encoder`.
      token_mask: what may be attended to.
      between: (states, is_inner) -> states, applied after every layer; is_inner is False after the last.
      added: a vector added to every embedded token before layer 0 (the chunk's position).
      key: dropout key; None switches dropout off.
      dtype: compute type of products and states.

    Returns:
      The last layer's states, and the input of every layer (for parity tests; free when unused).
    """
    encoder = params["encoder"]
    deterministic = key is None
    keys = jax.random.split(jax.random.key(0) if key is None else key, config.encoder_layers + 1)
    positions = jnp.arange(input_ids.shape[0])
    x = embed(params["shared"], encoder, config, input_ids, positions, dtype, added)
    x = dropout_embedding(x, config, None if deterministic else keys[-1])
    layer = EncoderLayer(config, dtype)

    def step(x: Array, inputs: tuple) -> tuple[Array, Array]:
        layer_params, index, layer_key = inputs
        rngs = None if deterministic else {"dropout": layer_key}
        y = layer.apply({"params": layer_params}, x, token_mask, deterministic, rngs=rngs)
        return between(y, index < config.encoder_layers - 1), x

    layers = (stack_layers(encoder["layers"]), jnp.arange(config.encoder_layers), keys[:-1])
    x, layer_inputs = lax.scan(checkpointed(step, remat), x, layers)
    return final_norm(encoder, config, x, dtype), layer_inputs
