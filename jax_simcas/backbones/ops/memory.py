"""What stays in memory: names of arrays that a backward pass may save, and arrays that a TPU materialises."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array

PRODUCT = "product"  # what a dense layer gave
CONTEXT = "context"  # what attention gave
SUM = "sum"  # what the norm of a sublayer takes in
DROPOUT_MASK = "dropout_mask"  # which values dropout keeps, a bit each


def materialise(tree: Any) -> Any:
    """Identity that writes its arrays to memory on a TPU (optimization_barrier).

    Otherwise a fusion recomputes the operand of a product for each block, and in each product that reads it.
    """
    return lax.platform_dependent(tree, tpu=lax.optimization_barrier, default=lambda tree: tree)


def row_major(x: Array) -> Array:
    """Identity whose result, and cotangent, a TPU has in memory with the last axis first.

    Where no loop fixes the layout of states, its compiler turns them from one into another within a layer.
    """
    fixed = lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    return lax.platform_dependent(x, tpu=fixed, default=lambda x: x)


@jax.custom_vjp
def with_materialised_cotangent(x: Array) -> Array:
    """Identity whose cotangent is materialised."""
    return x


with_materialised_cotangent.defvjp(lambda x: (x, None), lambda _, cotangent: (materialise(cotangent),))
