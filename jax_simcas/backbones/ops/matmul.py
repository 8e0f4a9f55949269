"""x W in mixed precision, as a primitive of its own: its backward products run in the operands' type too.

`lax.dot_general` with bfloat16 operands and a float32 result hands a float32 cotangent to both of its backward
products, which then run in float32: on a CPU at a fifth of the speed, elsewhere with twice the bytes. A `custom_vjp`
would compute one weight gradient per chunk under `vmap` and sum them afterwards; a primitive defines its batching.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from jax_simcas.common.sharding import constrain

Dimensions = tuple[str | None, str | None]

product_p = Primitive("product")


def product(
    x: Float[Array, "*rows I"], kernel: Float[Array, "I O"], dimensions: Dimensions = (None, None)
) -> Float[Array, "*rows O"]:
    """x W with both operands in the dtype of x, summed in float32.

    Differentiable: the cotangent is rounded to the dtype of x before it meets W or x; the gradient of W is float32.
    `vmap` over x makes more rows of one product.

    Args:
      dimensions: what those of W mean on a mesh (sharding.RULES); its pieces of "width" are brought together first.
    """
    return product_p.bind(x, kernel, dimensions=dimensions)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _together(kernel: Array, dimensions: Dimensions) -> Array:
    """W in one piece of "width": left to choose, XLA may send its pieces round and add up as many large products."""
    return constrain(kernel, *(None if name == "width" else name for name in dimensions))


def _product(x: Array, kernel: Array, *, dimensions: Dimensions) -> Array:
    return _dot(x, _together(kernel.astype(x.dtype), dimensions), x.ndim - 1, 0)


def _input_gradient(cotangent: Any, x: Any, kernel: Array, *, dimensions: Dimensions) -> Any:
    """G W^T."""
    if type(cotangent) is ad.Zero:
        return ad.Zero(x.aval)
    dtype = x.aval.dtype
    kernel = _together(kernel.astype(dtype), dimensions)
    return _dot(cotangent.astype(dtype), kernel, cotangent.ndim - 1, 1).astype(dtype)


def _kernel_gradient(cotangent: Any, x: Array, kernel: Any, *, dimensions: Dimensions) -> Any:
    """x^T G, over all rows at once."""
    if type(cotangent) is ad.Zero:
        return ad.Zero(kernel.aval)

    def plain(x: Array, g: Array) -> Array:
        rows = tuple(range(x.ndim - 1))  # summed as they are: documents and chunks may lie on different mesh axes
        return lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)

    gradient = lax.platform_dependent(x, cotangent.astype(x.dtype), cpu=_kernel_gradient_on_cpu, default=plain)
    # Summed over chunks as a whole, for the same reason.
    summed = ("gradient width" if name == "width" else name for name in dimensions)
    return constrain(gradient.astype(kernel.aval.dtype), *summed)


def _kernel_gradient_on_cpu(x: Array, cotangent: Array) -> Array:
    """XLA:CPU only has fast bfloat16 products that sum over the last axis of the left operand: 5 times as fast.

    So x^T is copied into a new layout, in two blocks of rows: a plain transpose would be folded into the product.
    """
    x, cotangent = (y.reshape(-1, y.shape[-1]) for y in (x, cotangent))
    if x.dtype == jnp.float32:
        return _dot(x, cotangent, 0, 0)
    count, width = x.shape
    x, cotangent = (jnp.pad(y, ((0, count % 2), (0, 0))) for y in (x, cotangent))
    blocks = lax.optimization_barrier(x.reshape(2, -1, width).transpose(2, 0, 1))
    return _dot(blocks.reshape(width, -1), cotangent, 1, 0)


def _batched(operands: tuple, axes: tuple, *, dimensions: Dimensions) -> tuple[Array, int]:
    x, kernel = operands
    if axes[1] is None:
        return product(jnp.moveaxis(x, axes[0], 0), kernel, dimensions), 0
    each = partial(_product, dimensions=dimensions)
    return jax.vmap(each, axes)(x, kernel), 0  # a kernel of its own for each: nothing to be gained


def _result(x: Any, kernel: Any, *, dimensions: Dimensions) -> Any:
    return x.update(shape=(*x.shape[:-1], kernel.shape[1]), dtype=jnp.float32)


product_p.def_impl(jax.jit(_product, static_argnames="dimensions"))
product_p.def_abstract_eval(_result)
ad.defbilinear(product_p, _input_gradient, _kernel_gradient)
batching.primitive_batchers[product_p] = _batched
mlir.register_lowering(product_p, mlir.lower_fun(_product, multiple_results=False))
