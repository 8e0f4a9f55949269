"""Align: the only operation that crosses chunks. Exchanges boundary states over a named chunk axis."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

AxisName = str | tuple[str, ...]
# (boundary [2, D] (BOS and EOS states of one chunk), real [], axis name) -> the new boundary states [2, D].
Alignment = Callable[[Float[Array, "2 D"], Bool[Array, ""], AxisName], Float[Array, "2 D"]]


def chunk_mean(x: Float[Array, "*shape"], real: Bool[Array, ""], axis_name: AxisName) -> Float[Array, "*shape"]:
    """BOS_k := mean_k' BOS_k', EOS_k := mean_k' EOS_k' over real chunks, in float32; the identity for a single chunk.

    One collective over `axis_name`, whether that axis is a `vmap`, a mesh axis or a tuple of both.
    Source: the paper; docs/method.md, "Encode and align".
    """
    total, count = lax.psum((jnp.where(real, x.astype(jnp.float32), 0.0), real.astype(jnp.float32)), axis_name)
    return (total / jnp.maximum(count, 1.0)).astype(x.dtype)


def chunk_shift(boundary: Float[Array, "2 D"], real: Bool[Array, ""], axis_name: AxisName) -> Float[Array, "2 D"]:
    """BOS_k := BOS_{k-1}, EOS_k := EOS_{k+1}, cyclic over the real chunks, which must come first.

    Gathers all boundary states: [K, 2, D] on every chunk. Source: the released code; docs/method.md.
    """
    count = lax.psum(real.astype(jnp.int32), axis_name)
    k = lax.axis_index(axis_name)
    every = lax.all_gather(boundary, axis_name).reshape(-1, *boundary.shape)
    count = jnp.maximum(count, 1)
    return jnp.stack([every[(k - 1) % count, 0], every[(k + 1) % count, 1]])


# By the name that a config gives; None leaves the chunks alone (the paper's ablation).
ALIGNMENTS: dict[str, Alignment | None] = {"mean": chunk_mean, "shift": chunk_shift, "none": None}


def align(
    hidden: Float[Array, "S D"],
    real: Bool[Array, ""],
    exchange: Alignment | None,
    axis_name: AxisName,
    enabled: Bool[Array, ""] | bool = True,
    wide: bool = False,
) -> Float[Array, "S D"]:
    """Replaces the first (BOS) and last (EOS) state of one chunk by what `exchange` makes of all chunks' boundaries.

    Args:
      hidden: states of one chunk.
      real: False for a chunk of pure padding, which contributes nothing and keeps its states.
      exchange: `chunk_mean`, `chunk_shift` or a function of your own; None returns `hidden`.
      axis_name: the axis (or axes) that the chunks of the document are mapped over.
      enabled: False returns `hidden` unchanged, inside a scan over layers.
      wide: `hidden` is float32 among bfloat16 products. To read or write single rows of it, XLA:TPU copies all of them
        into another layout, which costs more than to visit all rows.
    """
    if exchange is None:
        return hidden
    read, write = (_read_among_all, _write_among_all) if wide else (_read, _write)
    boundary = read(hidden)
    aligned = exchange(boundary, real, axis_name)
    boundary = jnp.where(jnp.logical_and(enabled, real), aligned, boundary)
    return write(hidden, boundary)


def _read(hidden: Float[Array, "S D"]) -> Float[Array, "2 D"]:
    return jnp.stack([hidden[0], hidden[-1]])


def _write(hidden: Float[Array, "S D"], boundary: Float[Array, "2 D"]) -> Float[Array, "S D"]:
    return hidden.at[0].set(boundary[0]).at[-1].set(boundary[1])


def _read_among_all(hidden: Float[Array, "S D"]) -> Float[Array, "2 D"]:
    def visited(hidden: Array) -> Array:
        return jnp.stack([jnp.where(place, hidden, 0).sum(axis=0) for place in _ends(hidden)])

    return lax.platform_dependent(hidden, tpu=visited, default=_read)


def _write_among_all(hidden: Float[Array, "S D"], boundary: Float[Array, "2 D"]) -> Float[Array, "S D"]:
    def visited(hidden: Array, boundary: Array) -> Array:
        first, last = _ends(hidden)
        return jnp.where(last, boundary[1], jnp.where(first, boundary[0], hidden))

    return lax.platform_dependent(hidden, boundary, tpu=visited, default=_write)


def _ends(hidden: Float[Array, "S D"]) -> tuple[Bool[Array, "S 1"], Bool[Array, "S 1"]]:
    """Where the first row is, and the last one."""
    place = jnp.arange(hidden.shape[0])[:, None]
    return place == 0, place == hidden.shape[0] - 1
