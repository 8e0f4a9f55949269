"""BART's building blocks for one sequence: Linen modules whose tree is the published Flax BART tree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops.matmul import Dimensions, product
from jax_simcas.common.sharding import chunk_pieces

PRODUCT = "product"  # the name under which a backward pass may keep what a dense layer gave
CONTEXT = "context"  # ... and what attention gave
SUM = "sum"  # ... and what a sublayer's norm takes in
KEPT = "kept"  # ... and which values dropout let through
CHUNKS_AT_ONCE = 4  # whose scores fit a TPU's fast memory together: 64 MiB for 16 heads and 512 tokens
TRANSPOSED = "kernel_transposed"  # what a dense layer has in place of `kernel` when its inputs have few rows
POSITION_OFFSET = 2  # rows that BART's position tables carry before position 0
LAYER_NORM_EPSILON = 1e-5
Params = Any  # nested dict of arrays


class Dense(nn.Module):
    """y = x W + b: operands in `dtype`, products summed in float32, result in `dtype`.

    dimensions: what those of W mean on a mesh; see `product`.
    """

    features: int
    dtype: Any
    init_std: float
    dimensions: Dimensions
    learn_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        if self.has_variable("params", TRANSPOSED):
            kernel, bias = (self.get_variable("params", name) for name in (TRANSPOSED, "bias"))
            return (few_rows(x.astype(self.dtype), kernel) + bias).astype(self.dtype)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        bias = bias if self.learn_bias else lax.stop_gradient(bias)
        y = product(x.astype(self.dtype), kernel, self.dimensions) + bias
        return checkpoint_name(y.astype(self.dtype), PRODUCT)


class LayerNorm(nn.Module):
    """Layer normalisation in float32, result in `dtype`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return (centred * lax.rsqrt(variance + LAYER_NORM_EPSILON) * scale + bias).astype(self.dtype)


def few_rows(x: Float[Array, "T I"], transposed: Float[Array, "O I"]) -> Float[Array, "T O"]:
    """x W from W^T, summed in float32.

    With a few rows it is W that takes the time. On the left, summed over its last axis, a CPU reads it as it lies, at
    the memory's speed; on the right it is laid out anew each time (BART-base, 4 rows: 1.3 to 3 times as long).
    """
    product = jnp.einsum("oi,ti->ot", transposed, x, preferred_element_type=jnp.float32)
    return lax.optimization_barrier(product).T  # without a barrier the transpose is folded into the product again


def masked_scores(
    query: Float[Array, "H T Dh"], key: Float[Array, "H C Dh"], mask: Bool[Array, "#T #C"]
) -> Float[Array, "H T C"]:
    """q k^T / sqrt(Dh) in float32, and float32's lowest number where the mask is False."""
    scores = _products("htd,hcd->htc", query, key) * query.shape[-1] ** -0.5
    return jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def attend(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
) -> tuple[Float[Array, "H T Dh"], Float[Array, "H T C"]]:
    """softmax(q k^T / sqrt(Dh)) v, with the softmax in float32.

    A row whose mask is all False attends evenly to everything: finite, and for the caller to ignore.
    """
    weights = jax.nn.softmax(masked_scores(query, key, mask), axis=-1)
    context = _products("htc,hcd->htd", weights.astype(value.dtype), value)
    return context.astype(value.dtype), weights


def attend_few_rows(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H Dh C"],
    value: Float[Array, "H Dh C"],
    mask: Bool[Array, "#T C"],
) -> Float[Array, "H T Dh"]:
    """`attend` for few queries, with keys and values laid out as `few_rows` would have them."""
    scores = _products("htd,hdc->htc", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    context = _products("hdc,htc->hdt", value, weights.astype(value.dtype))
    return lax.optimization_barrier(context).swapaxes(1, 2).astype(value.dtype)


def in_turn(function: Callable, chunks: bool) -> Callable:
    """The function itself, of arrays; under `vmap` its inputs take turns, so that a few's scores stay in fast memory.

    On a CPU one after the other under every `vmap`, on a TPU `CHUNKS_AT_ONCE` under that over a document's `chunks`.
    """
    some = _some_in_turn(function) if chunks else function
    return lambda *inputs: lax.platform_dependent(*inputs, cpu=sequential_vmap(function), tpu=some, default=function)


def _some_in_turn(function: Callable) -> Callable:
    """Splits the chunks of each piece of the mesh axis "chunk" into groups; a loop goes over all pieces' groups."""

    def under_vmap(size: int, batched: list[bool], *inputs: Array) -> tuple[Any, Any]:
        pieces = chunk_pieces(size)
        groups, rest = divmod(size // pieces, CHUNKS_AT_ONCE)
        inputs = tuple(
            x if mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, mapped in zip(inputs, batched, strict=True)
        )
        if rest or groups < 2:
            out = jax.vmap(function)(*inputs)
        else:
            split = lambda x: x.reshape(pieces, groups, CHUNKS_AT_ONCE, *x.shape[1:]).swapaxes(0, 1)
            group = jax.vmap(jax.vmap(function), spmd_axis_name="chunk" if pieces > 1 else None)
            out = lax.map(lambda some: group(*some), tuple(map(split, inputs)))
            out = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[3:]), out)
        return out, jax.tree.map(lambda _: True, out)

    some = custom_vmap(function)
    some.def_vmap(under_vmap)
    return some


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    chunks: bool = False,
) -> Float[Array, "H T Dh"]:
    """`attend` without the weights. The backward pass computes the scores anew, transposed, and keeps none.

    With S^T = K Q^T / sqrt(Dh), P^T = exp(S^T - log_z), and the cotangent G of the context O:
    dV = P^T G, dS^T = P^T (V G^T - rowsum(G O)), dK = dS^T Q / sqrt(Dh), dQ^T = K^T dS^T / sqrt(Dh),
    so that no [T, C] array is ever transposed, and all products take their operands in the dtype of the states.

    Args:
      chunks: True within a chunk of the encoder, of which `vmap` makes a document.
    """
    return _attention_forward(query, key, value, mask, chunks)[0]


def _attention_forward(
    query: Array, key: Array, value: Array, mask: Array, chunks: bool
) -> tuple[Array, tuple[Array, ...]]:
    def forward(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Array]:
        # With a query, which each layer has of its own: else the mask of all scores is made once, before all layers.
        query, mask = stored((query, mask))
        scores = masked_scores(query, key, mask)
        highest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        # A column of ones under the product gives the sum: on a TPU it is padding of the values turned to use.
        with_ones = jnp.pad(value, ((0, 0), (0, 0), (0, 1)), constant_values=1)
        products = _products("htc,hcd->htd", weights.astype(value.dtype), with_ones)
        context, total = products[..., :-1], products[..., -1:]
        return (context / total).astype(value.dtype), (highest + jnp.log(total))[..., 0]

    context, log_z = in_turn(forward, chunks)(query, key, value, mask)
    context, log_z = (checkpoint_name(x, CONTEXT) for x in (context, log_z))
    return context, (query, key, value, mask, context, log_z)


def _attention_backward(chunks: bool, saved: tuple[Array, ...], cotangent: Array) -> tuple[Array | None, ...]:
    def backward(
        query: Array, key: Array, value: Array, mask: Array, context: Array, log_z: Array, cotangent: Array
    ) -> tuple[Array, ...]:
        dtype, scale = query.dtype, query.shape[-1] ** -0.5
        weights = jnp.exp(masked_scores(key, query, mask.T) - log_z[:, None, :])
        inner = (cotangent.astype(jnp.float32) * context.astype(jnp.float32)).sum(axis=-1)
        d_value = _products("hct,htd->hcd", weights.astype(dtype), cotangent)
        d_scores = weights * (_products("hcd,htd->hct", value, cotangent) - inner[:, None, :]) * scale
        d_scores = jnp.where(mask.T, d_scores, 0.0).astype(dtype)
        d_key = _products("hct,htd->hcd", d_scores, query)
        d_query = _products("hdc,hct->hdt", key.swapaxes(1, 2), d_scores).swapaxes(1, 2)
        return d_query.astype(dtype), d_key.astype(dtype), d_value.astype(dtype)

    return (*in_turn(backward, chunks)(*saved, cotangent), None)


attention.defvjp(_attention_forward, _attention_backward)


def _products(indices: str, *operands: Array) -> Array:
    return jnp.einsum(indices, *operands, preferred_element_type=jnp.float32)


class Attention(nn.Module):
    """Multi-head attention with BART's four projections; the cache paths call them one by one."""

    heads: int
    config: BartConfig
    dtype: Any
    chunks: bool = False  # within a chunk; see `attention`

    def setup(self) -> None:
        size = (self.config.d_model, self.dtype, self.config.init_std)
        to_heads = (*size, ("width", "heads"))
        self.q_proj, self.v_proj = Dense(*to_heads), Dense(*to_heads)
        self.out_proj = Dense(*size, ("heads", "width"))
        # A key bias shifts all scores of a query alike, so its gradient is exactly 0; what rounding leaves of it
        # Adam would blow up to full steps.
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
        return self.merge(attention(self.query(x), key, value, mask, self.chunks))

    def with_weights(
        self, x: Float[Array, "T D"], states: Float[Array, "C D"], mask: Bool[Array, "#T C"], deterministic: bool
    ) -> tuple[Float[Array, "T D"], Float[Array, "H T C"]]:
        """Attention of `x` to `states`, and the weights before dropout."""
        key, value = self.key_value(states)
        context, weights = attend(self.query(x), key, value, mask)
        if not deterministic and self.config.attention_dropout:
            kept = _dropout(weights, self.config.attention_dropout, self.make_rng("dropout"))
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
            inner = _dropout(inner, self.config.activation_dropout, self.make_rng("dropout"))
        return self.fc2(inner)


def activation(x: Float[Array, ...], name: str) -> Float[Array, ...]:
    """The named activation, computed in float32."""
    functions = {
        "gelu": lambda y: 0.5 * y * (1.0 + lax.erf(y * 2.0**-0.5)),
        "gelu_new": lambda y: jax.nn.gelu(y, approximate=True),
        "relu": jax.nn.relu,
    }
    return functions[name](x.astype(jnp.float32)).astype(x.dtype)


def dropout(module: nn.Module, x: Float[Array, ...], rate: float, deterministic: bool) -> Float[Array, ...]:
    """Inverted dropout with the module's own `dropout` key."""
    return x if deterministic or rate == 0.0 else _dropout(x, rate, module.make_rng("dropout"))


def dropout_embedding(x: Float[Array, "T D"], config: BartConfig, key: Array | None) -> Float[Array, "T D"]:
    """Dropout after the embedding norm; None switches it off."""
    return x if key is None or config.dropout == 0.0 else _dropout(x, config.dropout, key)


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


def _dropout(x: Float[Array, ...], rate: float, key: Array) -> Float[Array, ...]:
    keep = checkpoint_name(stored(jax.random.bernoulli(key, 1.0 - rate, x.shape)), KEPT)
    return jnp.where(keep, _with_stored_cotangent(x) / (1.0 - rate), 0.0).astype(x.dtype)


def stored(tree: Any) -> Any:
    """The same arrays, which a TPU puts into memory before they are used.

    There what a product takes in is computed anew for each of its blocks, and in each product that takes it.
    """
    return lax.platform_dependent(tree, tpu=lax.optimization_barrier, default=lambda tree: tree)


@jax.custom_vjp
def _with_stored_cotangent(x: Array) -> Array:
    return x


_with_stored_cotangent.defvjp(lambda x: (x, None), lambda _, cotangent: (stored(cotangent),))


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


def stack_layers(params: Params) -> Params:
    """A copy of a whole tree in which encoder and decoder hold their layers as one tree with a leading layer axis.

    {"0": tree, "1": tree, ...}, the published layout, becomes what `lax.scan` runs over. `encode` and `decode` take
    either; for a loop, training or generation, stack once outside it.
    """
    model = params["model"]
    stacked = {name: {**model[name], "layers": stacked_layers(model[name])} for name in ("encoder", "decoder")}
    return {**params, "model": {**model, **stacked}}


def stacked_layers(stack: Params) -> Params:
    """The layers of an encoder or decoder with a leading layer axis, whichever way the tree holds them."""
    layers = stack["layers"]
    if "0" not in layers:
        return layers
    ordered = [layers[str(i)] for i in range(len(layers))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)


def layers_apart(stack: Params) -> list[Params]:
    """The layers of an encoder or decoder one by one, whichever way the tree holds them."""
    layers = stack["layers"]
    if "0" in layers:
        return [layers[str(i)] for i in range(len(layers))]
    return [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(jax.tree.leaves(layers)[0].shape[0])]


def unstack_layers(params: Params) -> Params:
    """The published layout of a tree that `stack_layers` may have changed."""
    model = params["model"]
    apart = lambda stack: {**stack, "layers": {str(i): layer for i, layer in enumerate(layers_apart(stack))}}
    return {**params, "model": {**model, **{name: apart(model[name]) for name in ("encoder", "decoder")}}}


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
