"""Align: the one thing that crosses chunks. Averages the boundary states over a named chunk axis."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

ALIGNMENTS = ("mean", "shift", "none")
AxisName = str | tuple[str, ...]


def chunk_mean(x: Float[Array, "*shape"], real: Bool[Array, ""], axis_name: AxisName) -> Float[Array, "*shape"]:
    """sum over real chunks of x / number of real chunks, in float32; the same on every chunk.

    One collective over `axis_name`, whether that axis is a `vmap`, a mesh axis or a tuple of both.
    """
    total, count = lax.psum((jnp.where(real, x.astype(jnp.float32), 0.0), real.astype(jnp.float32)), axis_name)
    return (total / jnp.maximum(count, 1.0)).astype(x.dtype)


def chunk_shift(boundary: Float[Array, "2 D"], real: Bool[Array, ""], axis_name: AxisName) -> Float[Array, "2 D"]:
    """BOS_k := BOS_{k-1}, EOS_k := EOS_{k+1}, cyclic over the real chunks, which must come first.

    Source: the released code. It gathers all boundary states: [K, 2, D] on every chunk.
    """
    count = lax.psum(real.astype(jnp.int32), axis_name)
    k = lax.axis_index(axis_name)
    every = lax.all_gather(boundary, axis_name).reshape(-1, *boundary.shape)
    count = jnp.maximum(count, 1)
    return jnp.stack([every[(k - 1) % count, 0], every[(k + 1) % count, 1]])


def align(
    hidden: Float[Array, "S D"],
    real: Bool[Array, ""],
    mode: str,
    axis_name: AxisName,
    enabled: Bool[Array, ""] | bool = True,
) -> Float[Array, "S D"]:
    """Exchanges the first (BOS) and last (EOS) state of one chunk with those of the document's other chunks.

    mean: BOS_k := mean_k' BOS_k', EOS_k := mean_k' EOS_k' over real chunks; the identity for a single chunk.
    Source: method.md "Encode and align" (paper: mean; released code: shift; ablation: none).

    Args:
      hidden: states of one chunk.
      real: False for a chunk of pure padding, which gives nothing and keeps its states.
      mode: "mean", "shift" or "none".
      axis_name: the axis (or axes) that the document's chunks are mapped over.
      enabled: False leaves `hidden` as it is, inside a scan over layers.

    Raises:
      ValueError: unknown mode.
    """
    if mode == "none":
        return hidden
    boundary = jnp.stack([hidden[0], hidden[-1]])
    if mode == "mean":
        aligned = chunk_mean(boundary, real, axis_name)
    elif mode == "shift":
        aligned = chunk_shift(boundary, real, axis_name)
    else:
        raise ValueError(f"align={mode!r}: expected 'mean', 'shift' or 'none'")
    boundary = jnp.where(jnp.logical_and(enabled, real), aligned, boundary)
    return hidden.at[0].set(boundary[0]).at[-1].set(boundary[1])
