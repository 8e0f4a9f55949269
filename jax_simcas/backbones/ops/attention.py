"""Attention of one sequence to another, in float32 softmax: a value that backbones take as an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from jax_simcas.backbones.ops.distance import sum_by_distance, to_pairs, to_pairs_by_doubling
from jax_simcas.backbones.ops.groups import CHUNKS_AT_ONCE, Groups, in_groups
from jax_simcas.backbones.ops.memory import CONTEXT, materialise
from jax_simcas.backbones.ops.shared import Backward, Level, linear, mapped, one_by_one

# (query [H, T, Dh], key [H, C, Dh], value [H, C, Dh], mask [#T, C], within_chunk) -> context [H, T, Dh].
# `within_chunk` is True within a chunk of the encoder, which `vmap` maps over the chunks of a document; an
# implementation may ignore it.
# It divides q k^T by sqrt(Dh): families that scale otherwise scale the query. Where a family has a bias or a cap, it
# calls `attention` below whatever it is given.
Attend = Callable[..., Array]

# What all functions below may be given beside a mask:
#   scale: factor of q k^T; None: Dh ** -0.5.
#   cap: a bound of the scaled products x, which become cap tanh(x / cap); None: no bound.
#   bias: added to scores, after the cap; [H, N] by distance, as distance.py numbers them, or [H, T, C].


def scaled(products: Float[Array, ...], width: int, scale: float | None, cap: float | None) -> Array:
    """Scores before bias and mask: q k^T times the scale, within the cap; `width` is Dh."""
    scores = products * (width**-0.5 if scale is None else scale)
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def masked_scores(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T #C"],
    bias: Float[Array, "H N"] | Float[Array, "H T C"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "H T C"]:
    """q k^T / sqrt(Dh) in float32, and float32's lowest number where the mask is False.

    `bias` is by distance, or that of every pair.
    """
    scores = scaled(_products("htd,hcd->htc", query, key), query.shape[-1], scale, cap)
    return _masked(scores, mask, to_pairs(bias, query.shape[1]) if bias is not None and bias.ndim == 2 else bias)


def repeated(mask: Bool[Array, "_ C"], rows: int) -> Bool[Array, "_ C"]:
    """The mask tiled for grouped queries, whose `rows` are R blocks of the T tokens; a single row stays one."""
    return mask if mask.shape[0] in (1, rows) else jnp.tile(mask, (rows // mask.shape[0], 1))


def _masked(scores: Float[Array, "H T C"], mask: Array, bias: Float[Array, "H _ C"] | None) -> Float[Array, "H T C"]:
    return jnp.where(mask, scores if bias is None else scores + bias, jnp.finfo(jnp.float32).min)


def attend_with_weights(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    bias: Float[Array, "H N"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Float[Array, "H T Dh"], Float[Array, "H T C"]]:
    """softmax(q k^T / sqrt(Dh)) v, with the softmax in float32; `bias` is by distance.

    A row whose mask is all False attends evenly to everything: finite, and for the caller to ignore.
    """
    weights = jax.nn.softmax(masked_scores(query, key, mask, bias, scale=scale, cap=cap), axis=-1)
    context = _products("htc,hcd->htd", weights.astype(value.dtype), value)
    return context.astype(value.dtype), weights


def attend_few_rows(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H Dh C"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    bias: Float[Array, "H _ C"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "H T Dh"]:
    """`attend_with_weights` for few queries, with the keys laid out as XLA:CPU multiplies them fastest.

    `bias` is per query and key.
    """
    products = _products("htd,hdc->htc", query, key)
    return _few_rows_context(products, value, mask, bias, scale, cap)


def attend_to_rows(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    bias: Float[Array, "H _ C"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "H T Dh"]:
    """The same where keys are rows, as those of a cache that is written row by row.

    The keys are the left operand, as in `few_rows`: under `vmap` the other order takes 1.5 to 4 times as long.
    """
    products = _products("hcd,htd->hct", key, query)
    return _few_rows_context(lax.optimization_barrier(products).swapaxes(1, 2), value, mask, bias, scale, cap)


def _few_rows_context(
    products: Float[Array, "H T C"],
    value: Float[Array, "H C Dh"],
    mask: Array,
    bias: Array | None,
    scale: float | None,
    cap: float | None,
) -> Array:
    scores = _masked(scaled(products, value.shape[-1], scale, cap), mask, bias)
    context = _products("htc,hcd->htd", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)
    return context.astype(value.dtype)


def attention(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "_ C"],
    within_chunk: bool = False,
    bias: Float[Array, "H N"] | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "H T Dh"]:
    """`attend_with_weights` without the weights. The backward pass recomputes the scores, transposed, and saves none.

    With S^T = K Q^T / sqrt(Dh), P^T = exp(S^T - log_z), and the cotangent G of the context O:
    dV = P^T G, dS^T = P^T (V G^T - rowsum(G O)), dK = dS^T Q / sqrt(Dh), dQ^T = K^T dS^T / sqrt(Dh),
    so that no [T, C] array is ever transposed, and all products take their operands in the dtype of the states.
    The gradient of a bias is dS^T, summed over the chunks at hand and then by distance.

    Args:
      mask: of one row, of all, or of some that repeat, as `repeated` has it.
      within_chunk: True within a chunk of the encoder, which `vmap` maps over the chunks of a document.
      bias: by distance.
    """
    if bias is None:
        return _attention(query, key, value, mask, within_chunk, scale, cap)
    return _biased_attention(query, key, value, mask, bias, within_chunk, scale, cap)


def _attention_forward(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    within_chunk: bool,
    scale: float | None,
    cap: float | None,
    bias: Array | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    def forward(query: Array, key: Array, value: Array, mask: Array, *bias: Array) -> tuple[Array, Array]:
        # Together with the query, which differs per layer: alone, XLA would hoist the mask of all scores, and the bias
        # of all pairs, out of the loop over layers and keep them in memory.
        query, mask, *bias = materialise((query, mask, *bias))
        mask = repeated(mask, query.shape[1])
        scores = masked_scores(query, key, mask, *bias, scale=scale, cap=cap)
        highest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        # A column of ones in the values makes the product return the sum as well: on a TPU it uses their padding.
        with_ones = jnp.pad(value, ((0, 0), (0, 0), (0, 1)), constant_values=1)
        products = _products("htc,hcd->htd", weights.astype(value.dtype), with_ones)
        context, total = products[..., :-1], products[..., -1:]
        return (context / total).astype(value.dtype), (highest + jnp.log(total))[..., 0]

    inputs = (query, key, value, mask, *(() if bias is None else (bias,)))
    prepared = None if bias is None else lambda *inputs: (*inputs[:4], to_pairs_by_doubling(inputs[4], query.shape[1]))
    context, log_z = in_groups(forward, within_chunk, prepared)(*inputs)
    context, log_z = (checkpoint_name(x, CONTEXT) for x in (context, log_z))
    return context, (query, key, value, mask, context, log_z, *inputs[4:])


def _score_gradients(
    inputs: Sequence[Array], bias: Array | None, scale: float | None, cap: float | None
) -> tuple[Array, Array]:
    """The gradients of the scores, [H, C, T] before mask, scale and cap, and of the values.

    Args:
      inputs: query, key, value, mask, context, log_z and the cotangent of the context.
      bias: as that of keys to queries.
    """
    query, key, value, mask, context, log_z, cotangent = inputs
    scores = masked_scores(key, query, mask.T, bias, scale=scale, cap=cap)
    weights = jnp.exp(scores - log_z[:, None, :])
    inner = (cotangent.astype(jnp.float32) * context.astype(jnp.float32)).sum(axis=-1)
    d_value = _products("hct,htd->hcd", weights.astype(query.dtype), cotangent)
    return weights * (_products("hcd,htd->hct", value, cotangent) - inner[:, None, :]), d_value


def _scaled_gradients(d_scores: Array, query: Array, key: Array, scale: float | None, cap: float | None) -> Array:
    """The gradients of the products q k^T."""
    width = query.shape[-1]
    if cap is not None:
        capped = scaled(_products("htd,hcd->htc", key, query), width, scale, cap)  # XLA does not compute it twice
        d_scores = d_scores * (1.0 - jnp.square(capped / cap))
    return d_scores * (width**-0.5 if scale is None else scale)


def _operand_gradients(d_products: Array, query: Array, key: Array) -> tuple[Array, Array]:
    d_key = _products("hct,htd->hcd", d_products, query)
    d_query = _products("hdc,hct->hdt", key.swapaxes(1, 2), d_products).swapaxes(1, 2)
    return d_query.astype(query.dtype), d_key.astype(query.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(
    query: Array, key: Array, value: Array, mask: Array, within_chunk: bool, scale: float | None, cap: float | None
) -> Array:
    return _attention_forward(query, key, value, mask, within_chunk, scale, cap)[0]


def _attention_backward(
    within_chunk: bool, scale: float | None, cap: float | None, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    def backward(query: Array, key: Array, value: Array, mask: Array, *rest: Array) -> tuple[Array, ...]:
        mask = repeated(mask, query.shape[1])
        d_scores, d_value = _score_gradients((query, key, value, mask, *rest), None, scale, cap)
        d_scores = _scaled_gradients(d_scores, query, key, scale, cap)
        d_scores = jnp.where(mask.T, d_scores, 0.0).astype(query.dtype)
        return *_operand_gradients(d_scores, query, key), d_value.astype(query.dtype)

    return *in_groups(backward, within_chunk)(*saved, cotangent), None


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.custom_jvp, nondiff_argnums=(5, 6, 7))
def _biased_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    bias: Array,
    within_chunk: bool,
    scale: float | None,
    cap: float | None,
) -> Array:
    return _attention_forward(query, key, value, mask, within_chunk, scale, cap, bias)[0]


@_biased_attention.defjvp
def _biased_derivative(
    within_chunk: bool, scale: float | None, cap: float | None, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    query, key, value, mask, bias = primals
    context, saved = _attention_forward(query, key, value, mask, within_chunk, scale, cap, bias)

    def tangent(*operands: Array) -> Array:
        query, key, value, mask, _, _, bias, *moves = operands
        mask = repeated(mask, query.shape[1])
        plain = lambda query, key, value, bias: attend_with_weights(
            query, key, value, mask, bias, scale=scale, cap=cap
        )[0]
        return jax.jvp(plain, (query, key, value, bias), tuple(moves))[1]

    transpose = partial(_biased_transpose, within_chunk=within_chunk, scale=scale, cap=cap)
    result = jax.ShapeDtypeStruct(context.shape, context.dtype)
    return context, linear(tangent, transpose, saved, [*tangents[:3], tangents[4]], result)


def _biased_transpose(levels: Sequence[Level], within_chunk: bool, scale: float | None, cap: float | None) -> Backward:
    """The backward pass under these `vmap`s: gradients of query, key, value and bias."""

    def with_pairs(*inputs: Array) -> tuple[Array, ...]:
        """The bias is that of transposed pairs or, by distance, from key to query; so is its gradient."""
        query, key, value, mask, context, log_z, bias, cotangent = inputs
        mask = repeated(mask, query.shape[1])
        inputs = (query, key, value, mask, context, log_z, cotangent)
        d_scores, d_value = _score_gradients(inputs, bias, scale, cap)
        # In the dtype of the products' operands, which it is: written once, and read by them and by the sum.
        d_scores = materialise(jnp.where(mask.T, d_scores, 0.0).astype(query.dtype))
        d_products = _scaled_gradients(d_scores, query, key, scale, cap).astype(query.dtype)
        return *_operand_gradients(d_products, query, key), d_value.astype(query.dtype), d_scores

    def summed(pairs: Float[Array, "H C T"]) -> Float[Array, "H N"]:
        return sum_by_distance(pairs.astype(jnp.float32))[:, ::-1]

    def alone(*inputs: Array) -> tuple[Array, ...]:
        *saved, bias, cotangent = inputs
        *gradients, pairs = with_pairs(*saved, bias[:, ::-1], cotangent)
        return *gradients, summed(pairs).astype(bias.dtype)

    def grouped(backward: Backward, level: Level) -> Backward:
        if within_chunk and not level.saved[-1]:
            return _sums_in_groups(with_pairs, summed, level)
        return mapped(alone, level)

    def under(innermost: Callable, others: Callable) -> Backward:
        backward = alone
        for number, level in enumerate(reversed(levels)):
            backward = (others if number else innermost)(backward, level)
        return backward

    loops = under(one_by_one, one_by_one), under(grouped, mapped), under(mapped, mapped)
    return lambda *inputs: lax.platform_dependent(*inputs, **dict(zip(("cpu", "tpu", "default"), loops, strict=True)))


def _sums_in_groups(with_pairs: Callable, summed: Callable, level: Level) -> Backward:
    """A loop over groups of chunks that share a bias: the gradients of its pairs are summed over chunks first."""
    groups, axes = Groups.of(level.size), level.axes

    def run(*inputs: Array) -> tuple[Array, ...]:
        *saved, bias, cotangent = inputs
        pairs = to_pairs_by_doubling(bias[:, ::-1], saved[1].shape[-2])  # once for all groups
        inputs = (*saved, pairs, cotangent)
        each = jax.vmap(with_pairs, axes)

        def one_piece(total: Array, *own: Array) -> tuple[Array, list[Array]]:
            mine = iter(own)
            given = (x if axis is None else next(mine) for x, axis in zip(inputs, axes, strict=True))
            *gradients, d_pairs = each(*given)
            if len(d_pairs) > CHUNKS_AT_ONCE:
                return total + d_pairs.sum(axis=0, dtype=jnp.float32), gradients
            for one in d_pairs:  # one after the other: XLA:TPU is slower with a sum over all
                total = total + one
            return total, gradients

        def step(total: Array, own: Sequence[Array]) -> tuple[Array, list[Array]]:
            return groups.each_piece(one_piece)(total, *own)

        own = [groups.split(x) for x, axis in zip(inputs, axes, strict=True) if axis is not None]
        total, gradients = lax.scan(step, jnp.zeros((groups.pieces, *pairs.shape), jnp.float32), own)
        return *map(groups.join, gradients), jax.vmap(summed)(total).sum(axis=0).astype(bias.dtype)

    return run


def fused_attention(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    within_chunk: bool = False,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "H T Dh"]:
    """`attend_with_weights` without the weights, as one cuDNN kernel that keeps no [T, C] array in memory.

    A mask of one row goes in as the number of keys, after moving those that count to the front: PAD stands between the
    content of a chunk and its EOS. Where nothing counts, the first key does.

    Args:
      implementation: of `jax.nn.dot_product_attention`.

    Raises:
      ValueError: what cuDNN's kernel does not take.
    """
    if implementation == "cudnn" and not fits_cudnn(query, mask):
        raise ValueError(
            "cuDNN's attention takes bfloat16 or float16, heads of 8, 16, ... 128 numbers, masks of one row or of even "
            f"sides, given {query.dtype}, {query.shape[-1]} and {list(mask.shape)}; simcas.attention=auto chooses"
        )
    if mask.shape[0] == 1:
        order = jnp.argsort(~mask[0], stable=True)
        # Each once, so that the backward pass need not add up what it scatters.
        key, value = (x.at[:, order].get(unique_indices=True, mode="promise_in_bounds") for x in (key, value))
        options: dict[str, Any] = {"key_value_seq_lengths": jnp.maximum(mask.sum(dtype=jnp.int32), 1)[None]}
    else:
        # A row per head: under `vmap`, jax 0.11.2 has no other.
        options = {"mask": jnp.broadcast_to(mask, (1, query.shape[0], *mask.shape))}
    query, key, value = (x.swapaxes(0, 1)[None] for x in (query, key, value))
    context = jax.nn.dot_product_attention(query, key, value, implementation=implementation, **options)
    return context[0].swapaxes(0, 1)


def fits_cudnn(query: Array, mask: Array) -> bool:
    """Whether cuDNN's kernel takes these shapes and dtypes; a mask of several rows must have even sides."""
    width = query.shape[-1]
    even = mask.shape[0] == 1 or not any(side % 2 for side in mask.shape)
    return query.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128 and even


def has_cudnn() -> bool:
    """Whether programs that are traced now run on an NVIDIA GPU of compute capability 8.0 or higher."""
    chosen: Any = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, the name of a platform, or None
    platform = getattr(chosen, "platform", chosen) or jax.default_backend()
    if platform not in ("gpu", "cuda"):
        return False
    device = jax.local_devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def _products(indices: str, *operands: Array) -> Array:
    return jnp.einsum(indices, *operands, preferred_element_type=jnp.float32)
