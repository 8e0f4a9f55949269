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
from jax_simcas.backbones.bart.dialects import Combine, plain_sum, sum_with_norm
from jax_simcas.backbones.ops.attention import Attend, attend_with_weights, attention
from jax_simcas.backbones.ops.layers import Dense, LayerNorm, activation, drop, dropout
from jax_simcas.backbones.ops.memory import SUM
from jax_simcas.common.trees import Params


class Attention(nn.Module):
    """Multi-head attention with BART's four projections; the cache paths call them one by one."""

    heads: int
    config: BartConfig
    dtype: Any
    attend: Attend = attention
    within_chunk: bool = False  # within a chunk; see `Attend`

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
        return self.merge(self.attend(self.query(x), key, value, mask, self.within_chunk))

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


def positions_of(ids: Int[Array, " T"], config: BartConfig) -> Int[Array, " T"]:
    """The positions of the tokens of a sequence."""
    if config.dialect.positions.offset is None:
        return jnp.cumsum(ids != config.pad_token_id) - 1
    return jnp.arange(ids.shape[0])


def position_rows(
    stack: Params, config: BartConfig, ids: Int[Array, " T"], positions: Int[Array, " T"]
) -> Float[Array, "T D"]:
    """The embeddings of positions; those of waves do not learn."""
    table, rows = stack["embed_positions"]["embedding"], positions + config.position_offset
    if config.dialect.positions.offset is None:
        rows = jnp.where(ids == config.pad_token_id, config.pad_token_id, rows)
    return (table if config.dialect.positions.waves is None else lax.stop_gradient(table))[rows]


def embed(
    model: Params,
    stack: Params,
    combine: Combine,
    config: BartConfig,
    ids: Int[Array, " T"],
    positions: Int[Array, " T"],
    dtype: Any,
    added: Float[Array, " D"] | None = None,
) -> Float[Array, "T D"]:
    """combine(layer_norm, scale * token, position [, added]); `stack` is the encoder's or the decoder's tree.

    Tokens that are normalised by themselves (Blenderbot-small's) are not scaled, as in transformers.
    """
    scale = config.d_model**0.5 if config.scale_embedding and combine is not sum_with_norm else 1.0
    tokens = token_table(model, stack)["embedding"][ids] * scale
    # PAD's embedding learns from the output head only, as PyTorch's `padding_idx` has it.
    tokens = jnp.where((ids == config.pad_token_id)[:, None], lax.stop_gradient(tokens), tokens)
    norm = lambda x: LayerNorm(dtype).apply({"params": stack["layernorm_embedding"]}, x)
    more = () if added is None else (added,)
    return combine(norm, tokens, position_rows(stack, config, ids, positions), *more).astype(dtype)


def token_table(model: Params, stack: Params) -> Params:
    """What holds the token embeddings of a stack: its own, where encoder and decoder do not share them."""
    return stack["embed_tokens"] if "embed_tokens" in stack else model["shared"]


def init_tokens(key: Array, config: BartConfig, rows: int) -> Params:
    """Fresh token embeddings; PAD's is 0."""
    embedding = config.init_std * jax.random.normal(key, (rows, config.d_model))
    return {"embedding": embedding.at[config.pad_token_id].set(0.0)}


def init_stack(
    key: Array,
    layer: nn.Module,
    layer_inputs: tuple,
    count: int,
    config: BartConfig,
    combine: Combine,
    positions: int,
) -> Params:
    """Fresh parameters of an encoder or decoder: positions, embedding norm, `count` layers."""
    position_key, *layer_keys = jax.random.split(key, count + 1)
    shape, waves = (positions + config.position_offset, config.d_model), config.dialect.positions.waves
    learned = lambda: config.init_std * jax.random.normal(position_key, shape)
    norm = {"scale": jnp.ones(config.d_model), "bias": jnp.zeros(config.d_model)}
    params = {
        "embed_positions": {"embedding": jnp.asarray(waves(*shape, config.pad_token_id)) if waves else learned()},
        "layers": {str(i): layer.init(layer_keys[i], *layer_inputs)["params"] for i in range(count)},
    }
    if combine is not plain_sum:
        params["layernorm_embedding"] = dict(norm)
    if config.final_layer_norm:
        params["layer_norm"] = dict(norm)
    return params


def final_norm(stack: Params, config: BartConfig, x: Float[Array, "... D"], dtype: Any) -> Float[Array, "... D"]:
    """mBART's closing layer norm; BART has none."""
    return LayerNorm(dtype).apply({"params": stack["layer_norm"]}, x) if config.final_layer_norm else x
