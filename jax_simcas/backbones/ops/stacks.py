"""Stacks of layers: their trees, what their backward pass keeps, and how chunks go through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_simcas.backbones.ops.memory import CONTEXT, DROPOUT_MASK, PRODUCT, SUM
from jax_simcas.common.trees import Params

# What the backward pass of a layer saves for each choice of `remat`, by name; it recomputes the rest.
REMAT: dict[str, tuple[str, ...] | None] = {
    "none": None,  # everything
    "dots": (CONTEXT, PRODUCT, DROPOUT_MASK),
    "sums": (CONTEXT, SUM, DROPOUT_MASK),
    "layer": (CONTEXT, DROPOUT_MASK),
}
# To write a few rows of a bfloat16 array in a loop, earlier XLA:CPU converts all of it: the loop holds float32 there.
CONVERTS_WHOLE_ARRAYS = jax.__version_info__ < (0, 12)
TOKENS_AT_ONCE = 1024  # tokens of one document that a layer processes together on a CPU


def checkpointed(function: Callable, remat: str) -> Callable:
    """`function`, whose backward pass saves its inputs and what REMAT lists."""
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r}: expected one of {', '.join(REMAT)}")
    kept = REMAT[remat]
    if kept is None:
        return function
    return jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(*kept))


def each_chunk(function: Callable, states: Float[Array, "K S D"], *inputs: Any) -> Float[Array, "K S D"]:
    """`vmap(function)` over chunks; on a CPU about 1,024 tokens at a time.

    There the temporaries of a whole document fall out of the caches and page-fault at every use; a few chunks at a
    time keep time and memory linear in K. Other platforms, and short documents, get the plain `vmap`.
    """
    chunks, length = states.shape[:2]
    at_once = max(1, TOKENS_AT_ONCE // length)
    everything = jax.vmap(function)
    if chunks <= at_once:
        return everything(states, *inputs)

    def in_groups(states: Array, *inputs: Any) -> Array:
        dtype, inside = states.dtype, jnp.float32 if CONVERTS_WHOLE_ARRAYS else states.dtype
        one = lambda x: function(x[0].astype(dtype), *x[1:]).astype(inside)
        size = at_once if at_once > 1 else None
        return lax.map(one, (states.astype(inside), *inputs), batch_size=size).astype(dtype)

    return lax.platform_dependent(states, *inputs, cpu=in_groups, default=everything)


def scan_layers(step: Callable, x: Array, inputs: Any, unroll: bool = False) -> tuple[Array, Any]:
    """`lax.scan(step, x, inputs)`; `unroll`: its steps one after the other in the program.

    A loop copies what its backward pass needs into stacks, and out of them again.
    """
    if not unroll:
        return lax.scan(step, x, inputs)
    leaves, tree = jax.tree.flatten(inputs)
    # Split, not indexed: the gradient of an index is a whole stack, and they would be added up.
    layers = zip(*(lax.split(leaf, (1,) * leaf.shape[0]) for leaf in leaves), strict=True)
    outputs = []
    for layer in layers:
        x, output = step(x, jax.tree.unflatten(tree, [leaf[0] for leaf in layer]))
        outputs.append(output)
    return x, jax.tree.map(lambda *rows: jnp.stack(rows), *outputs)


def stack_layers(params: Params) -> Params:
    """A copy of a whole tree in which encoder and decoder hold their layers as one tree with a leading layer axis.

    {"0": tree, "1": tree, ...}, the published layout, becomes what `lax.scan` runs over. `encode` and `decode` take
    either; for a loop, training or generation, stack once outside it.
    """
    model = params["model"]
    stacked = {name: {**model[name], "layers": stacked_layers(model[name])} for name in ("encoder", "decoder")}
    return {**params, "model": {**model, **stacked}}


def stacked_layers(stack: Params) -> Params:
    """The layers of an encoder or decoder with a leading layer axis, whichever way the tree holds them."""
    return together(stack["layers"])


def layers_apart(stack: Params) -> list[Params]:
    """The layers of an encoder or decoder one by one, whichever way the tree holds them."""
    return apart(stack["layers"])


def together(layers: Params) -> Params:
    """Layers {"0": tree, "1": tree, ...} as one tree with a leading layer axis, if they are not."""
    if "0" not in layers:
        return layers
    ordered = [layers[str(i)] for i in range(len(layers))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)


def apart(layers: Params) -> list[Params]:
    """The layers that `together` may have joined, one by one."""
    if "0" in layers:
        return [layers[str(i)] for i in range(len(layers))]
    return [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(jax.tree.leaves(layers)[0].shape[0])]


def unstack_layers(params: Params) -> Params:
    """The published layout of a tree that `stack_layers` may have changed."""
    model = params["model"]
    apart = lambda stack: {**stack, "layers": {str(i): layer for i, layer in enumerate(layers_apart(stack))}}
    return {**params, "model": {**model, **{name: apart(model[name]) for name in ("encoder", "decoder")}}}
