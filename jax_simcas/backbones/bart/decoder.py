"""BART's decoder for one document: teacher-forced, and step by step with caches for generation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.bart.layers import (
    Attention,
    FeedForward,
    Params,
    dropout_embedding,
    embed,
    final_norm,
    init_stack,
    positions_of,
    sublayer,
    token_table,
)
from jax_simcas.backbones.ops.attention import Attend, attend_few_rows, attend_to_rows, attention
from jax_simcas.backbones.ops.caches import (
    CrossCache,
    SelfCache,
    empty_caches,
    own_slots,
    visible_rows,
    with_rows,
)
from jax_simcas.backbones.ops.layers import TRANSPOSED, LayerNorm, few_rows
from jax_simcas.backbones.ops.stacks import checkpointed, layers_apart, stacked_layers, unstack_layers
from jax_simcas.common.sharding import constrain


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the selected states, feed-forward."""

    config: BartConfig
    dtype: Any = jnp.float32
    attend: Attend = attention

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c.decoder_attention_heads, c, self.dtype, self.attend)
        self.self_attn_layer_norm = LayerNorm(self.dtype)
        self.encoder_attn = Attention(c.decoder_attention_heads, c, self.dtype, self.attend)
        self.encoder_attn_layer_norm = LayerNorm(self.dtype)
        self.mlp = FeedForward(c.decoder_ffn_dim, c, self.dtype)
        nn.share_scope(self, self.mlp)
        self.final_layer_norm = LayerNorm(self.dtype)

    def __call__(
        self,
        x: Float[Array, "T D"],
        selected: Float[Array, "C D"],
        selected_mask: Bool[Array, " C"],
        deterministic: bool = True,
        with_weights: bool = True,
    ) -> tuple[Float[Array, "T D"], Float[Array, "H T C"] | None]:
        """Returns the states and, when asked for, the cross-attention weights (before dropout)."""
        causal = jnp.tril(jnp.ones((x.shape[0], x.shape[0]), bool))
        weights = None

        def cross(y: Array) -> Array:
            nonlocal weights
            if not with_weights:
                return self.encoder_attn(y, selected, selected_mask[None, :], deterministic)
            out, weights = self.encoder_attn.with_weights(y, selected, selected_mask[None, :], deterministic)
            return out

        attention = lambda y: self.self_attn(y, y, causal, deterministic)
        feed_forward = lambda y: self.mlp(y, deterministic)
        x = sublayer(self, x, attention, self.self_attn_layer_norm, self.config, deterministic)
        x = sublayer(self, x, cross, self.encoder_attn_layer_norm, self.config, deterministic)
        x = sublayer(self, x, feed_forward, self.final_layer_norm, self.config, deterministic)
        return x, weights

    def cross_key_value(self, selected: Float[Array, "C D"]) -> tuple[Array, Array]:
        return self.encoder_attn.key_value(selected)

    def step(
        self,
        x: Float[Array, "beams D"],
        position: Int[Array, ""],
        self_cache: SelfCache,
        cross_key: Float[Array, "H Dh C"],
        cross_value: Float[Array, "H C Dh"],
        cross_mask: Bool[Array, " C"],
        history: Bool[Array, "beams R"],
    ) -> tuple[Float[Array, "beams D"], SelfCache]:
        """One token per beam; writes the rows of step `position` of the layer's cache."""
        cache = self_cache

        def attention(y: Array) -> Array:
            nonlocal cache
            cache = with_rows(cache, SelfCache(*self.self_attn.key_value(y)), position)
            # Each beam scores the rows of all slots and the mask keeps those of its ancestors: a product and a mask
            # instead of a gather that would copy the cache.
            query = self.self_attn.query(y).astype(cache.key.dtype)
            return self.self_attn.merge(attend_to_rows(query, cache.key, cache.value, history))

        def cross(y: Array) -> Array:
            context = attend_few_rows(self.encoder_attn.query(y), cross_key, cross_value, cross_mask[None, :])
            return self.encoder_attn.merge(context)

        feed_forward = lambda y: self.mlp(y, True)
        x = sublayer(self, x, attention, self.self_attn_layer_norm, self.config, True)
        x = sublayer(self, x, cross, self.encoder_attn_layer_norm, self.config, True)
        return sublayer(self, x, feed_forward, self.final_layer_norm, self.config, True), cache


def init_decoder(key: Array, config: BartConfig) -> Params:
    """Fresh decoder parameters."""
    inputs = (jnp.zeros((2, config.d_model)), jnp.zeros((2, config.d_model)), jnp.ones(2, bool))
    layer, positions = DecoderLayer(config), config.positions
    return init_stack(key, layer, inputs, config.decoder_layers, config, config.dialect.decoder_input, positions)


def logits_of(params: Params, x: Float[Array, "T D"], dtype: Any) -> Float[Array, "T V"]:
    """x E^T [+ final_logits_bias] with the decoder's embedding E, in float32. `params` is the whole tree."""
    table = token_table(params["model"], params["model"]["decoder"])
    if TRANSPOSED in table:
        products = few_rows(x.astype(dtype), table[TRANSPOSED])
    else:
        embedding = table["embedding"].astype(dtype)
        products = jnp.einsum("td,vd->tv", x.astype(dtype), embedding, preferred_element_type=jnp.float32)
    if "final_logits_bias" not in params:
        return products
    # The output bias is a buffer in BART, not a parameter.
    return products + lax.stop_gradient(params["final_logits_bias"])[0]


def decode(
    params: Params,
    config: BartConfig,
    selected: Float[Array, "C D"],
    selected_mask: Bool[Array, " C"],
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

    Returns:
      logits in float32, and (`with_weights`, else None) the cross-attention weights averaged over layers,
      heads and real target positions: one weight per selected state; they sum to 1.
    """
    decoder = params["model"]["decoder"]
    deterministic = key is None
    keys = jax.random.split(jax.random.key(0) if key is None else key, config.decoder_layers + 1)
    positions = positions_of(target_ids, config)
    selected = constrain(selected, None, None)
    x = embed(params["model"], decoder, config.dialect.decoder_input, config, target_ids, positions, dtype)
    x = dropout_embedding(x, config, None if deterministic else keys[-1])
    layer = DecoderLayer(config, dtype, attend)
    share = target_mask / jnp.maximum(target_mask.sum(), 1)

    def step(x: Array, inputs: tuple) -> tuple[Array, Array | None]:
        layer_params, layer_key = inputs
        rngs = None if deterministic else {"dropout": layer_key}
        x, weights = layer.apply(
            {"params": layer_params}, x, selected.astype(dtype), selected_mask, deterministic, with_weights, rngs=rngs
        )
        x = constrain(x, None, None)  # left free, the partitioner would spread it over the idle chunk axis
        if not with_weights:
            return x, None
        return x, jnp.einsum("htc,t->c", weights, share) / config.decoder_attention_heads

    x, attention = lax.scan(checkpointed(step, remat), x, (stacked_layers(decoder), keys[:-1]))
    logits = logits_of(params, final_norm(decoder, config, x, dtype), dtype)
    return logits, attention.mean(axis=0) if with_weights else None


def cross_cache(
    params: Params,
    config: BartConfig,
    selected: Float[Array, "C D"],
    selected_mask: Bool[Array, " C"],
    dtype: Any = jnp.float32,
) -> CrossCache:
    """Cross-attention keys and values of all layers, for `decode_step`."""
    layer = DecoderLayer(config, dtype)

    def project(layer_params: Params) -> tuple[Array, Array]:
        key, value = layer.apply({"params": layer_params}, selected.astype(dtype), method="cross_key_value")
        return key.swapaxes(1, 2), value

    key, value = zip(*map(project, layers_apart(params["model"]["decoder"])), strict=True)
    return CrossCache(key, value, selected_mask)


def init_self_cache(config: BartConfig, beams: int, max_length: int) -> tuple[SelfCache, ...]:
    """One empty cache per layer, for `max_length` tokens of each beam."""
    heads = config.decoder_attention_heads
    return empty_caches(config.decoder_layers, heads, max_length * beams, config.d_model // heads)


def decode_step(
    params: Params,
    config: BartConfig,
    token: Int[Array, " beams"],
    position: Int[Array, ""],
    self_cache: tuple[SelfCache, ...],
    cross: CrossCache,
    ancestors: Int[Array, "beams T"] | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "beams V"], tuple[SelfCache, ...]]:
    """Logits after one more token of every beam.

    An unrolled loop over layers: a step is bound by reading its weights, and a scan would copy them first.

    Args:
      params: the whole tree; before a loop prepare it once with `for_generation`.
      token: the token at `position` (0 is the decoder start token).
      ancestors: cache slot ancestors[b, t] holds step t of the history of beam b; None: slot b does.
    """
    decoder = params["model"]["decoder"]
    beams = token.shape[0]
    length = self_cache[0].key.shape[1] // beams
    own = own_slots(position, beams, length, ancestors)
    history = visible_rows(own, jnp.arange(length) <= position)
    positions = jnp.full((beams,), position)
    x = embed(params["model"], decoder, config.dialect.decoder_input, config, token, positions, dtype)
    layer = DecoderLayer(config, dtype)

    written = []
    for layer_params, cache, key, value in zip(layers_apart(decoder), self_cache, cross.key, cross.value, strict=True):
        x, cache = layer.apply(
            {"params": layer_params}, x, position, cache, key, value, cross.mask, history, method="step"
        )
        written.append(cache)
    return logits_of(params, final_norm(decoder, config, x, dtype), dtype), tuple(written)


def for_generation(params: Params, dtype: Any) -> Params:
    """The tree as `decode_step` reads it: decoder layers unstacked, and its kernels transposed and in `dtype`.

    `cross_cache` takes the original tree.
    """
    model = unstack_layers(params)["model"]

    def transposed(tree: Params) -> Params:
        if "kernel" not in tree:
            return {name: transposed(x) if isinstance(x, dict) else x for name, x in tree.items()}
        return {TRANSPOSED: tree["kernel"].astype(dtype).T, "bias": tree["bias"]}

    decoder = {**model["decoder"], "layers": transposed(model["decoder"]["layers"])}
    table = token_table(model, decoder)
    table = {**table, TRANSPOSED: table["embedding"].astype(dtype)}
    if "embed_tokens" in decoder:
        return {**params, "model": {**model, "decoder": {**decoder, "embed_tokens": table}}}
    return {**params, "model": {**model, "decoder": decoder, "shared": table}}
