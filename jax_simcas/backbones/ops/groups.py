"""How the chunks of a document take turns in attention, so that the scores at hand fit in fast memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array

from jax_simcas.common.sharding import chunk_pieces

CHUNKS_AT_ONCE = 4  # their scores fit a TPU's fast memory together: 64 MiB for 16 heads and 512 tokens


def in_groups(function: Callable, within_chunk: bool, prepared: Callable | None = None) -> Callable:
    """`function` itself on unbatched inputs; under `vmap`, over groups of the batch whose scores fit in fast memory.

    On a CPU the groups are single elements under every `vmap`; on a TPU they are `CHUNKS_AT_ONCE` elements, and only
    under the `vmap` over the chunks of a document, with `within_chunk`.

    Args:
      prepared: makes the function's inputs of those given, on a TPU: what elements share, once for all groups.
    """
    some = _grouped(function) if within_chunk else function
    on_tpu = some if prepared is None else lambda *inputs: some(*prepared(*inputs))
    return lambda *inputs: lax.platform_dependent(*inputs, cpu=sequential_vmap(function), tpu=on_tpu, default=function)


class Groups(NamedTuple):
    """How the chunks of a document are taken: `steps` groups in sequence, of each piece of the mesh axis "chunk"."""

    pieces: int
    steps: int

    @classmethod
    def of(cls, chunks: int) -> Groups:
        """Groups of CHUNKS_AT_ONCE; a single one where that does not divide."""
        pieces = chunk_pieces(chunks)
        steps, rest = divmod(chunks // pieces, CHUNKS_AT_ONCE)
        return cls(pieces, 1 if rest else max(steps, 1))

    def split(self, x: Array) -> Array:
        """[K, ...] -> [steps, pieces, some, ...]."""
        return x.reshape(self.pieces, self.steps, -1, *x.shape[1:]).swapaxes(0, 1)

    def join(self, x: Array) -> Array:
        """The inverse of `split`."""
        return x.swapaxes(0, 1).reshape(-1, *x.shape[3:])

    def each_piece(self, function: Callable) -> Callable:
        """`vmap` over the pieces."""
        return jax.vmap(function, spmd_axis_name="chunk" if self.pieces > 1 else None)


def _map(function: Callable, inputs: tuple[Array, ...]) -> Any:
    """`lax.map` without its derivative, into memory as it is: XLA:TPU first fills that of `lax.map` with zeros."""
    steps = inputs[0].shape[0]
    row = lambda step: jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, step, keepdims=False), inputs)
    out = jax.tree.map(lambda x: lax.empty((steps, *x.shape), x.dtype), jax.eval_shape(function, row(0)))

    def take_turn(step: Array, out: Any) -> Any:
        write = lambda x, value: lax.dynamic_update_index_in_dim(x, value, step, 0)
        return jax.tree.map(write, out, function(row(step)))

    return lax.fori_loop(0, steps, take_turn, out)


def _grouped(function: Callable) -> Callable:
    """Under vmap, loops over groups of chunks; each piece of the mesh axis "chunk" has its own groups."""

    def under_vmap(size: int, batched: list[bool], *inputs: Array) -> tuple[Any, Any]:
        groups = Groups.of(size)
        each = jax.vmap(function, tuple(0 if mapped else None for mapped in batched))  # what chunks share stays one
        if groups.steps < 2:
            out = each(*inputs)
        else:
            own = tuple(groups.split(x) for x, mapped in zip(inputs, batched, strict=True) if mapped)

            def one_piece(*own: Array) -> Any:
                mine = iter(own)
                return each(*(next(mine) if mapped else x for x, mapped in zip(inputs, batched, strict=True)))

            group = groups.each_piece(one_piece)
            out = _map(lambda some: group(*some), own)
            out = jax.tree.map(groups.join, out)
        return out, jax.tree.map(lambda _: True, out)

    some = custom_vmap(function)
    some.def_vmap(under_vmap)
    return some
