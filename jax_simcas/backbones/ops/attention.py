"""Attention of one sequence to another, in float32 softmax: a value that backbones take as an argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Bool, Float

from jax_simcas.backbones.ops.memory import CONTEXT, materialise
from jax_simcas.common.sharding import chunk_pieces

CHUNKS_AT_ONCE = 4  # their scores fit a TPU's fast memory together: 64 MiB for 16 heads and 512 tokens

# (query [H, T, Dh], key [H, C, Dh], value [H, C, Dh], mask [#T, C], chunks) -> context [H, T, Dh]. `chunks` is True
# within a chunk of the encoder, which `vmap` maps over the chunks of a document; an implementation may ignore it.
# Families that scale q k^T otherwise pass `scale` by its name; those with a bias or a cap call `attention` instead.
Attend = Callable[..., Array]

# What all functions below may be given beside a mask:
#   scale: factor of q k^T; None: Dh ** -0.5.
#   cap: a bound of the scaled products x, which become cap tanh(x / cap); None: no bound.
#   bias: added to scores, after the cap. By distance it is [H, N], N = T + C - 1, the pair of query t and key c gets
#     number c - t + T - 1.


def by_distance(bias: Float[Array, "H N"], rows: int) -> Float[Array, "H T C"]:
    """One bias per distance, as one per pair of a query and a key: row t begins at number T - 1 - t.

    A broadcast and reshapes, which XLA fuses with what reads the result; their transpose sums by distance.
    """
    heads, width = bias.shape
    spare = jnp.pad(bias, ((0, 0), (0, 1)))  # rows one longer than the step from row to row: each moves left by one
    every = jnp.broadcast_to(spare[:, None], (heads, rows, width + 1)).reshape(heads, -1)
    moved = every[:, rows - 1 : rows - 1 + rows * width].reshape(heads, rows, width)
    return moved[:, :, : width + 1 - rows]


def sum_by_distance(pairs: Float[Array, "H T C"]) -> Float[Array, "H N"]:
    """The transpose of `by_distance`."""
    heads, rows, columns = pairs.shape
    bias = jax.ShapeDtypeStruct((heads, rows + columns - 1), pairs.dtype)
    return jax.linear_transpose(partial(by_distance, rows=rows), bias)(pairs)[0]


def scaled(products: Float[Array, ...], width: int, scale: float | None, cap: float | None) -> Array:
    """Scores before bias and mask: q k^T times the scale, within the cap; `width` is Dh."""
    scores = products * (width**-0.5 if scale is None else scale)
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def masked_scores(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T #C"],
    bias: Float[Array, "H N"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "H T C"]:
    """q k^T / sqrt(Dh) in float32, and float32's lowest number where the mask is False; `bias` is by distance."""
    scores = scaled(_products("htd,hcd->htc", query, key), query.shape[-1], scale, cap)
    return _masked(scores, mask, None if bias is None else by_distance(bias, query.shape[1]))


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

    They stand left, as in `few_rows`: under `vmap` the other order takes 1.5 to 4 times as long.
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


def in_groups(function: Callable, chunks: bool) -> Callable:
    """Identity on unbatched inputs. Under vmap, maps over groups of the batch so that their scores fit in fast memory.

    On a CPU the groups are single elements under every `vmap`; on a TPU they are `CHUNKS_AT_ONCE` elements, and only
    under the `vmap` over the `chunks` of a document.
    """
    some = _grouped(function) if chunks else function
    return lambda *inputs: lax.platform_dependent(*inputs, cpu=sequential_vmap(function), tpu=some, default=function)


def _grouped(function: Callable) -> Callable:
    """Under vmap, loops over groups of chunks; each piece of the mesh axis "chunk" has its own groups."""

    def under_vmap(size: int, batched: list[bool], *inputs: Array) -> tuple[Any, Any]:
        pieces = chunk_pieces(size)
        groups, rest = divmod(size // pieces, CHUNKS_AT_ONCE)
        each = jax.vmap(function, tuple(0 if mapped else None for mapped in batched))  # what chunks share stays one
        if rest or groups < 2:
            out = each(*inputs)
        else:
            split = lambda x: x.reshape(pieces, groups, CHUNKS_AT_ONCE, *x.shape[1:]).swapaxes(0, 1)
            own = tuple(split(x) for x, mapped in zip(inputs, batched, strict=True) if mapped)

            def one_piece(*own: Array) -> Any:
                mine = iter(own)
                return each(*(next(mine) if mapped else x for x, mapped in zip(inputs, batched, strict=True)))

            group = jax.vmap(one_piece, spmd_axis_name="chunk" if pieces > 1 else None)
            out = lax.map(lambda some: group(*some), own)
            out = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[3:]), out)
        return out, jax.tree.map(lambda _: True, out)

    some = custom_vmap(function)
    some.def_vmap(under_vmap)
    return some


@partial(jax.custom_vjp, nondiff_argnums=(4, 6, 7))
def attention(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    chunks: bool = False,
    bias: Float[Array, "H N"] | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "H T Dh"]:
    """`attend_with_weights` without the weights. The backward pass recomputes the scores, transposed, and saves none.

    With S^T = K Q^T / sqrt(Dh), P^T = exp(S^T - log_z), and the cotangent G of the context O:
    dV = P^T G, dS^T = P^T (V G^T - rowsum(G O)), dK = dS^T Q / sqrt(Dh), dQ^T = K^T dS^T / sqrt(Dh),
    so that no [T, C] array is ever transposed, and all products take their operands in the dtype of the states.
    The gradient of a bias is dS^T summed by distance within each chunk: no [T, C] array of it leaves the pass either.

    Args:
      chunks: True within a chunk of the encoder, which `vmap` maps over the chunks of a document.
      bias: by distance.
    """
    return _attention_forward(query, key, value, mask, chunks, bias, scale, cap)[0]


def _attention_forward(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    chunks: bool,
    bias: Array | None,
    scale: float | None,
    cap: float | None,
) -> tuple[Array, tuple[Array, ...]]:
    def forward(query: Array, key: Array, value: Array, mask: Array, *bias: Array) -> tuple[Array, Array]:
        # Together with the query, which differs per layer: alone, XLA would hoist the mask of all scores, and the bias
        # of all pairs, out of the loop over layers and keep them in memory.
        query, mask, *bias = materialise((query, mask, *bias))
        scores = masked_scores(query, key, mask, *bias, scale=scale, cap=cap)
        highest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        # A column of ones in the values makes the product return the sum as well: on a TPU it uses their padding.
        with_ones = jnp.pad(value, ((0, 0), (0, 0), (0, 1)), constant_values=1)
        products = _products("htc,hcd->htd", weights.astype(value.dtype), with_ones)
        context, total = products[..., :-1], products[..., -1:]
        return (context / total).astype(value.dtype), (highest + jnp.log(total))[..., 0]

    inputs = (query, key, value, mask, *(() if bias is None else (bias,)))
    context, log_z = in_groups(forward, chunks)(*inputs)
    context, log_z = (checkpoint_name(x, CONTEXT) for x in (context, log_z))
    return context, (query, key, value, mask, context, log_z, *inputs[4:])


def _attention_backward(
    chunks: bool, scale: float | None, cap: float | None, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    def backward(
        query: Array,
        key: Array,
        value: Array,
        mask: Array,
        context: Array,
        log_z: Array,
        cotangent: Array,
        *bias: Array,
    ) -> tuple[Array, ...]:
        dtype, width = query.dtype, query.shape[-1]
        reversed_bias = [x[:, ::-1] for x in bias]  # by the distance from key to query
        scores = masked_scores(key, query, mask.T, *reversed_bias, scale=scale, cap=cap)
        weights = jnp.exp(scores - log_z[:, None, :])
        inner = (cotangent.astype(jnp.float32) * context.astype(jnp.float32)).sum(axis=-1)
        d_value = _products("hct,htd->hcd", weights.astype(dtype), cotangent)
        d_scores = weights * (_products("hcd,htd->hct", value, cotangent) - inner[:, None, :])
        d_bias = [sum_by_distance(jnp.where(mask.T, d_scores, 0.0))[:, ::-1].astype(x.dtype) for x in bias]
        if cap is not None:
            capped = scaled(_products("htd,hcd->htc", key, query), width, scale, cap)  # XLA does not compute it twice
            d_scores = d_scores * (1.0 - jnp.square(capped / cap))
        d_scores = d_scores * (width**-0.5 if scale is None else scale)
        d_scores = jnp.where(mask.T, d_scores, 0.0).astype(dtype)
        d_key = _products("hct,htd->hcd", d_scores, query)
        d_query = _products("hdc,hct->hdt", key.swapaxes(1, 2), d_scores).swapaxes(1, 2)
        return (d_query.astype(dtype), d_key.astype(dtype), d_value.astype(dtype), *d_bias)

    d_query, d_key, d_value, *d_bias = in_groups(backward, chunks)(*saved[:6], cotangent, *saved[6:])
    return d_query, d_key, d_value, None, *(d_bias or (None,))


attention.defvjp(_attention_forward, _attention_backward)


def fused_attention(
    query: Float[Array, "H T Dh"],
    key: Float[Array, "H C Dh"],
    value: Float[Array, "H C Dh"],
    mask: Bool[Array, "#T C"],
    chunks: bool = False,
    implementation: Literal["cudnn", "xla"] = "cudnn",
    scale: float | None = None,
) -> Float[Array, "H T Dh"]:
    """`attend_with_weights` without the weights, as one cuDNN kernel that keeps no [T, C] array in memory.

    A mask of one row goes in as the number of keys, after moving those that count to the front: PAD stands between the
    content of a chunk and its EOS. Where nothing counts, the first key does.

    Args:
      implementation: of `jax.nn.dot_product_attention`.
      scale: factor of q k^T; None: Dh ** -0.5.

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
        key, value = key[:, order], value[:, order]
        options: dict[str, Any] = {"key_value_seq_lengths": jnp.maximum(mask.sum(dtype=jnp.int32), 1)[None]}
    else:
        # A row per head: under `vmap`, jax 0.11.2 has no other.
        options = {"mask": jnp.broadcast_to(mask, (1, query.shape[0], *mask.shape))}
    query, key, value = (x.swapaxes(0, 1)[None] for x in (query, key, value))
    context = jax.nn.dot_product_attention(query, key, value, scale=scale, implementation=implementation, **options)
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
