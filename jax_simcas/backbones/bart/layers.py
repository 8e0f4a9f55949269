"""BART's building blocks for one sequence: Linen modules whose tree is the published Flax BART tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops.attention import Attend, attend_with_weights, attention
from jax_simcas.backbones.ops.layers import Dense, LayerNorm, activation, drop, dropout
from jax_simcas.backbones.ops.memory import SUM

POSITION_OFFSET = 2  # rows that BART's position tables carry before position 0
Params = Any  # nested dict of arrays


class Attention(nn.Module):
    """Multi-head attention with BART's four projections; the cache paths call them one by one."""

    heads: int
    config: BartConfig
    dtype: Any
    attend: Attend = attention
    chunks: bool = False  # within a chunk; see `Attend`

    def setup(self) -> None:
        size = (self.config.d_model, self.dtype, self.config.init_std)
        to_heads = (*size, ("width", "heads"))
        self.q_proj, self.v_proj = Dense(*to_heads), Dense(*to_heads)
        self.out_proj = Dense(*size, ("heads", "width"))
        # A key bias shifts all scores of a query equally, so its true gradient is 0; Adam would turn the rounding
        # noise of a computed gradient into full steps.
        self.k_proj = Dense(*to_heads, learn_bias=False)

    def split(self, x: Float[Array, "T D"]) -> Float[Array, "H T Dh"]:
        return x.reshape(x.shape[0], self.heads, -1).transpose(1, 0, 2)

    def merge(self, x: Float[Array, "H T Dh"]) -> Float[Array, "T D"]:
        return self.out_proj(x.transpose(1, 0, 2).reshape(x.shape[1], -1))

    def query(self, x: Float[Array, "T D"]) -> Float[Array, "H T Dh"]:
        return self.split(self.q_proj(x))

    def key_value(self, x: Float[Array, "C D"]) -> tuple[Float[Array, "H C Dh"], Float[Array, "H C Dh"]]:
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def __call__(
        self, x: Float[Array, "T D"], states: Float[Array, "C D"], mask: Bool[Array, "#T C"], deterministic: bool
    ) -> Float[Array, "T D"]:
        """Attention of `x` to `states`."""
        if not deterministic and self.config.attention_dropout:
            return self.with_weights(x, states, mask, deterministic)[0]
        key, value = self.key_value(states)
        return self.merge(self.attend(self.query(x), key, value, mask, self.chunks))

    def with_weights(
        self, x: Float[Array, "T D"], states: Float[Array, "C D"], mask: Bool[Array, "#T C"], deterministic: bool
    ) -> tuple[Float[Array, "T D"], Float[Array, "H T C"]]:
        """Attention of `x` to `states`, and the weights before dropout."""
        key, value = self.key_value(states)
        context, weights = attend_with_weights(self.query(x), key, value, mask)
        if not deterministic and self.config.attention_dropout:
            kept = drop(weights, self.config.attention_dropout, self.make_rng("dropout"))
            context = jnp.einsum("htc,hcd->htd", kept.astype(self.dtype), value)
        return self.merge(context), weights


class FeedForward(nn.Module):
    """fc2(activation(fc1(x))); layers share their scope with it, so that fc1 and fc2 sit where BART has them."""

    width: int
    config: BartConfig
    dtype: Any

    def setup(self) -> None:
        self.fc1 = Dense(self.width, self.dtype, self.config.init_std, ("width", "inner"))
        self.fc2 = Dense(self.config.d_model, self.dtype, self.config.init_std, ("inner", "width"))

    def __call__(self, x: Float[Array, "T D"], deterministic: bool) -> Float[Array, "T D"]:
        inner = activation(self.fc1(x), self.config.activation_function)
        if not deterministic and self.config.activation_dropout:
            inner = drop(inner, self.config.activation_dropout, self.make_rng("dropout"))
        return self.fc2(inner)


def dropout_embedding(x: Float[Array, "T D"], config: BartConfig, key: Array | None) -> Float[Array, "T D"]:
    """Dropout after the embedding norm; None switches it off."""
    return x if key is None or config.dropout == 0.0 else drop(x, config.dropout, key)


def sublayer(
    layer: nn.Module,
    x: Float[Array, "T D"],
    function: Callable[[Array], Array],
    norm: LayerNorm,
    config: BartConfig,
    deterministic: bool,
) -> Float[Array, "T D"]:
    """norm(x + dropout(f(x))) as in BART, or x + dropout(f(norm(x))) when `normalize_before` (mBART)."""
    inner = function(norm(x) if config.normalize_before else x)
    x = checkpoint_name(x + dropout(layer, inner, config.dropout, deterministic), SUM)
    return x if config.normalize_before else norm(x)


def embed(
    shared: Params,
    stack: Params,
    config: BartConfig,
    ids: Int[Array, " T"],
    positions: Int[Array, " T"],
    dtype: Any,
    added: Float[Array, " D"] | None = None,
) -> Float[Array, "T D"]:
    """layer_norm(scale * token + position [+ added]); `stack` is the encoder's or the decoder's tree."""
    scale = config.d_model**0.5 if config.scale_embedding else 1.0
    tokens = shared["embedding"][ids] * scale
    # PAD's embedding learns from the output head only, as PyTorch's `padding_idx` has it.
    tokens = jnp.where((ids == config.pad_token_id)[:, None], lax.stop_gradient(tokens), tokens)
    x = tokens + stack["embed_positions"]["embedding"][positions + POSITION_OFFSET]
    if added is not None:
        x = x + added
    return LayerNorm(dtype).apply({"params": stack["layernorm_embedding"]}, x)


def init_stack(key: Array, layer: nn.Module, layer_inputs: tuple, count: int, config: BartConfig) -> Params:
    """Fresh parameters of an encoder or decoder: positions, embedding norm, `count` layers."""
    position_key, *layer_keys = jax.random.split(key, count + 1)
    rows = config.max_position_embeddings + POSITION_OFFSET
    norm = {"scale": jnp.ones(config.d_model), "bias": jnp.zeros(config.d_model)}
    params = {
        "embed_positions": {"embedding": config.init_std * jax.random.normal(position_key, (rows, config.d_model))},
        "layernorm_embedding": dict(norm),
        "layers": {str(i): layer.init(layer_keys[i], *layer_inputs)["params"] for i in range(count)},
    }
    if config.final_layer_norm:
        params["layer_norm"] = dict(norm)
    return params


def final_norm(stack: Params, config: BartConfig, x: Float[Array, "... D"], dtype: Any) -> Float[Array, "... D"]:
    """mBART's closing layer norm; BART has none."""
    return LayerNorm(dtype).apply({"params": stack["layer_norm"]}, x) if config.final_layer_norm else x
