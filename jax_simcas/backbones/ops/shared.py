"""Derivatives whose backward pass sees the `vmap`s around it and sums the gradient of what all elements share.

The backward pass of a `custom_vjp` under `vmap` computes one gradient per element, of shared arguments too, and sums
them afterwards. A primitive defines its batching: here it notes each `vmap`, and its transpose gets all elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


class Level(NamedTuple):
    """One `vmap` around: how many elements, and which saved arrays and which linear arguments differ among them."""

    size: int
    saved: tuple[bool, ...]
    linear: tuple[bool, ...]

    @property
    def axes(self) -> tuple[int | None, ...]:
        """`in_axes` of a backward pass, whose last input is the cotangent."""
        return (*(0 if mapped else None for mapped in self.saved), 0)


# (saved arrays, cotangent) -> the gradients of the linear arguments.
Backward = Callable[..., tuple[Array, ...]]

linear_p = Primitive("linear")


def linear(
    tangent: Callable[..., Array],
    transpose: Callable[[Sequence[Level]], Backward],
    saved: Sequence[Array],
    arguments: Sequence[Array],
    result: jax.ShapeDtypeStruct,
) -> Array:
    """tangent(*saved, *arguments), linear in the arguments, with a transpose of its own.

    Args:
      transpose: the `vmap`s around, outermost first -> the backward pass under them. Inputs that differ have an axis
        for each, and so has the cotangent; the gradient of an argument has axes where the argument differs, and is
        summed over those where it is shared.
      result: what `tangent` gives.
    """
    shape, dtype = result.shape, result.dtype
    return linear_p.bind(
        *saved, *arguments, tangent=tangent, transpose=transpose, count=len(saved), levels=(), shape=shape, dtype=dtype
    )


def mapped(backward: Backward, level: Level) -> Backward:
    """The backward pass under one more `vmap`, side by side."""

    def run(*inputs: Array) -> tuple[Array, ...]:
        gradients = jax.vmap(backward, level.axes, axis_size=level.size)(*inputs)
        return tuple(x if own else x.sum(axis=0) for x, own in zip(gradients, level.linear, strict=True))

    return run


def one_by_one(backward: Backward, level: Level) -> Backward:
    """The same in a loop."""

    def run(*inputs: Array) -> tuple[Array, ...]:
        own = [x for x, axis in zip(inputs, level.axes, strict=True) if axis is not None]

        def every(mine: Sequence[Array]) -> tuple[Array, ...]:
            rest = iter(mine)
            return backward(*(x if axis is None else next(rest) for x, axis in zip(inputs, level.axes, strict=True)))

        def step(totals: list[Array], mine: Sequence[Array]) -> tuple[list[Array], list[Array]]:
            gradients = every(mine)
            shared = [x for x, is_own in zip(gradients, level.linear, strict=True) if not is_own]
            stacked = [x for x, is_own in zip(gradients, level.linear, strict=True) if is_own]
            return [total + x for total, x in zip(totals, shared, strict=True)], stacked

        shapes = jax.eval_shape(every, [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in own])
        start = [jnp.zeros(x.shape, x.dtype) for x, is_own in zip(shapes, level.linear, strict=True) if not is_own]
        totals, stacked = map(iter, lax.scan(step, start, own))
        return tuple(next(stacked if is_own else totals) for is_own in level.linear)

    return run


def _evaluated(*operands: Array, tangent: Callable, levels: tuple[Level, ...], **_: Any) -> Array:
    for level in reversed(levels):
        axes = tuple(0 if own else None for own in (*level.saved, *level.linear))
        tangent = jax.vmap(tangent, axes, axis_size=level.size)
    return tangent(*operands)


def _batched(operands: tuple, axes: tuple, *, count: int, levels: tuple[Level, ...], **rest: Any) -> tuple[Array, int]:
    own = tuple(axis is not None for axis in axes)
    (size,) = {x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None}
    moved = (x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True))
    level = Level(size, own[:count], own[count:])
    return linear_p.bind(*moved, count=count, levels=(level, *levels), **rest), 0


def _transposed(
    cotangent: Any, *operands: Any, transpose: Callable, count: int, levels: tuple[Level, ...], **_: Any
) -> list[Any]:
    saved, arguments = operands[:count], operands[count:]
    asked = [ad.is_undefined_primal(x) for x in arguments]
    if type(cotangent) is ad.Zero:
        gradients = [ad.Zero(x.aval) if wanted else None for x, wanted in zip(arguments, asked, strict=True)]
    else:
        gradients = [
            x if wanted else None for x, wanted in zip(transpose(levels)(*saved, cotangent), asked, strict=True)
        ]
    return [None] * count + gradients


def _result(*operands: Any, levels: tuple[Level, ...], shape: tuple[int, ...], dtype: Any, **_: Any) -> Any:
    return operands[0].update(shape=(*(level.size for level in levels), *shape), dtype=dtype)


def _derivative(primals: tuple, tangents: tuple, **parameters: Any) -> tuple[Array, Array]:
    return jax.jvp(partial(_evaluated, **parameters), primals, tuple(map(ad.instantiate_zeros, tangents)))


linear_p.def_impl(_evaluated)
linear_p.def_abstract_eval(_result)
ad.primitive_jvps[linear_p] = _derivative
ad.primitive_transposes[linear_p] = _transposed
batching.primitive_batchers[linear_p] = _batched
mlir.register_lowering(linear_p, mlir.lower_fun(_evaluated, multiple_results=False))
