"""What generation keeps between steps: keys and values of the selected states, and of the tokens decoded so far."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class CrossCache(NamedTuple):
    """Keys and values of the selected states in each layer, computed once per document and shared by all beams.

    H: heads of keys, fewer than of queries where those are grouped.
    """

    key: tuple[Float[Array, "H Dh C"], ...]
    value: tuple[Float[Array, "H C Dh"], ...]
    mask: Bool[Array, " C"]


class SelfCache(NamedTuple):
    """One layer's keys and values of the tokens decoded so far; row t * beams + b holds slot b of step t."""

    key: Float[Array, "H R Dh"]
    value: Float[Array, "H R Dh"]


def empty_caches(layers: int, heads: int, rows: int, width: int) -> tuple[SelfCache, ...]:
    """One cache per layer, for `rows` tokens of all beams together.

    In float32 whatever the compute type: to write a row of a bfloat16 array, XLA:CPU converts all of it (at 512 tokens,
    1.3 times the time of a whole step).
    """
    shape = (heads, rows, width)
    return tuple(SelfCache(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(layers))


def with_rows(cache: SelfCache, new: SelfCache, position: Int[Array, ""]) -> SelfCache:
    """The cache with the rows of step `position`, one per beam."""
    start = (0, position * new.key.shape[1], 0)
    write = lambda old, row: lax.dynamic_update_slice(old, row.astype(old.dtype), start)
    return jax.tree.map(write, cache, new)


def own_slots(
    position: Int[Array, ""], beams: int, length: int, ancestors: Int[Array, "beams T"] | None
) -> Bool[Array, "beams T slots"]:
    """Which slot of each step is of each beam's history, that of step `position` included.

    Args:
      ancestors: ancestors[b, t] is the slot that holds step t of beam b's history; None: slot b does.
    """
    if ancestors is None:
        ancestors = jnp.broadcast_to(jnp.arange(beams)[:, None], (beams, length))
    # The row being written belongs to the beam that writes it.
    ancestors = ancestors.at[:, position].set(jnp.arange(beams))
    return ancestors[:, :, None] == jnp.arange(beams)


def visible_rows(own: Bool[Array, "beams T slots"], seen: Bool[Array, " T"]) -> Bool[Array, "beams R"]:
    """The rows of the cache that each beam attends to: its own slots of the steps that are seen."""
    return (own & seen[:, None]).reshape(own.shape[0], -1)
