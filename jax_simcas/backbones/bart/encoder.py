"""BART's encoder: one layer over one chunk, and chunks side by side with a hook between layers where they meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.bart.layers import (
    CONTEXT,
    KEPT,
    PRODUCT,
    SUM,
    Attention,
    FeedForward,
    LayerNorm,
    Params,
    dropout_embedding,
    embed,
    final_norm,
    init_stack,
    stacked_layers,
    sublayer,
)
from jax_simcas.common.sharding import constrain

# What the backward pass of a layer keeps for each choice of `remat`, by name; the rest it computes anew.
REMAT: dict[str, tuple[str, ...] | None] = {
    "none": None,  # everything
    "dots": (CONTEXT, PRODUCT),
    "sums": (CONTEXT, SUM, KEPT),
    "layer": (CONTEXT,),
}
TOKENS_AT_ONCE = 1024  # of one document, that a layer works on together on a CPU


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over one chunk."""

    config: BartConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c.encoder_attention_heads, c, self.dtype, chunks=True)
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
    """A layer that keeps for its backward pass what REMAT says, besides what it is given."""
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r}: expected one of {', '.join(REMAT)}")
    kept = REMAT[remat]
    if kept is None:
        return function
    return jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(*kept))


def each_chunk(function: Callable, states: Float[Array, "K S D"], *inputs: Any) -> Float[Array, "K S D"]:
    """`vmap(function)` over chunks; on a CPU about 1,024 tokens at a time.

    There a layer's temporaries for a whole document fall out of the caches and are paged in anew every time; a few
    chunks at a time keep time and memory linear in K. Other platforms, and short documents, get the plain `vmap`.
    """
    chunks, length = states.shape[:2]
    at_once = max(1, TOKENS_AT_ONCE // length)
    everything = jax.vmap(function)
    if chunks <= at_once:
        return everything(states, *inputs)

    def in_turn(states: Array, *inputs: Any) -> Array:
        # As float32 in and out of the loop: to put a few rows into a bfloat16 array XLA:CPU converts all of it.
        dtype, wide = states.dtype, jnp.float32
        one = lambda x: function(x[0].astype(dtype), *x[1:]).astype(wide)
        size = at_once if at_once > 1 else None
        return lax.map(one, (states.astype(wide), *inputs), batch_size=size).astype(dtype)

    return lax.platform_dependent(states, *inputs, cpu=in_turn, default=everything)


def encode_chunks(
    params: Params,
    config: BartConfig,
    input_ids: Int[Array, "K S"],
    token_mask: Bool[Array, "K S"],
    between: Callable[[Array, Array], Array],
    *,
    added: Float[Array, "K D"] | None = None,
    keys: Key[Array, " K"] | None = None,
    dtype: Any = jnp.float32,
    remat: str = "none",
) -> tuple[Float[Array, "K S D"], Float[Array, "L K S D"]]:
    """Runs the encoder over chunks side by side, each at positions 0..S-1.

    Args:
      params: the tree `model`, with `shared` and `encoder`.
      token_mask: what may be attended to.
      between: (states [K, S, D], is_inner) -> states, applied after every layer; is_inner is False after the last.
      added: a vector a chunk, added to all its embedded tokens before layer 0 (the chunk's position).
      keys: a dropout key a chunk; None switches dropout off.
      dtype: compute type of products and states.

    Returns:
      The last layer's states, and the input of every layer (for parity tests; free when unused).
    """
    encoder, count = params["encoder"], config.encoder_layers
    positions = jnp.arange(input_ids.shape[1])
    layer_keys = start_keys = None
    if keys is not None:
        split = jax.vmap(lambda key: jax.random.split(key, count + 1), out_axes=1)(keys)
        layer_keys, start_keys = split[:-1], split[-1]

    def start(ids: Array, added: Array | None, key: Array | None) -> Array:
        x = embed(params["shared"], encoder, config, ids, positions, dtype, added)
        return dropout_embedding(x, config, key)

    def one_chunk(layer_params: Params, x: Array, mask: Array, key: Array | None) -> Array:
        rngs = None if key is None else {"dropout": key}
        return EncoderLayer(config, dtype).apply({"params": layer_params}, x, mask, key is None, rngs=rngs)

    def step(x: Array, inputs: tuple) -> tuple[Array, Array]:
        layer_params, index, key = inputs
        run = checkpointed(partial(one_chunk, layer_params), remat)
        x_next = constrain(each_chunk(run, x, token_mask, key), "chunks", None, None)
        return between(x_next, index < count - 1), x

    x = constrain(jax.vmap(start)(input_ids, added, start_keys), "chunks", None, None)
    x, layer_inputs = lax.scan(step, x, (stacked_layers(encoder), jnp.arange(count), layer_keys))
    return constrain(final_norm(encoder, config, x, dtype), "chunks", None, None), layer_inputs
