"""BART's encoder over one chunk."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.bart.layers import Attention, FeedForward, Params, init_stack, sublayer
from jax_simcas.backbones.ops.attention import Attend, attention
from jax_simcas.backbones.ops.layers import LayerNorm


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over one chunk."""

    config: BartConfig
    dtype: Any = jnp.float32
    attend: Attend = attention

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c.encoder_attention_heads, c, self.dtype, self.attend, within_chunk=True)
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
    inputs, dialect = (jnp.zeros((2, config.d_model)), jnp.ones(2, bool)), config.dialect
    layer, positions = EncoderLayer(config), config.max_position_embeddings
    params = init_stack(key, layer, inputs, config.encoder_layers, config, dialect.encoder_input, positions)
    shape = (config.d_model, config.d_model)
    for i, own in params["layers"].items():
        for j, name in enumerate(dialect.kept):
            kernel = config.init_std * jax.random.normal(jax.random.fold_in(key, int(i) * len(dialect.kept) + j), shape)
            own["self_attn"][name] = {"kernel": kernel, "bias": jnp.zeros(config.d_model)}
    return params
