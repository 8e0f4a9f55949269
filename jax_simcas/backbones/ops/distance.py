"""Biases of attention that depend on the distance of a key from its query: [H, N] in place of [H, T, C].

N = T + C - 1; the pair of query t and key c has number c - t + T - 1.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def to_pairs(bias: Float[Array, "H N"], rows: int) -> Float[Array, "H T C"]:
    """Expands one bias per distance into one per (query, key) pair: row t begins at number T - 1 - t.

    A broadcast and reshapes, which XLA fuses with what reads the result; their transpose sums by distance.
    """
    heads, width = bias.shape
    spare = jnp.pad(bias, ((0, 0), (0, 1)))  # rows one longer than the step from row to row: each moves left by one
    every = jnp.broadcast_to(spare[:, None], (heads, rows, width + 1)).reshape(heads, -1)
    moved = every[:, rows - 1 : rows - 1 + rows * width].reshape(heads, rows, width)
    return moved[:, :, : width + 1 - rows]


def to_pairs_by_doubling(bias: Float[Array, "H N"], rows: int) -> Float[Array, "H T C"]:
    """`to_pairs` where nothing is fused with it: fewer numbers move.

    R rows become twice as many: those R numbers further on, above themselves.
    """
    every = bias[:, None]
    while (count := every.shape[1]) < rows:
        more = min(count, rows - count)
        every = jnp.concatenate([every[:, :, more:], every[:, count - more :, :-more]], axis=1)
    return every


def sum_by_distance(pairs: Float[Array, "H T C"]) -> Float[Array, "H N"]:
    """The transpose of both: the lower half of the rows is added to the upper one, moved, over and over."""
    heads, rows, columns = pairs.shape
    bias = jax.ShapeDtypeStruct((heads, rows + columns - 1), pairs.dtype)
    return jax.linear_transpose(partial(to_pairs_by_doubling, rows=rows), bias)(pairs)[0]
