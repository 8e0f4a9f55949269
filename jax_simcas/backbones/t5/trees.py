"""T5's stacks of layers: one by one as published, or with a leading layer axis and the shared bias beside them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_simcas.backbones.ops.stacks import apart, together
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.common.trees import Params, updated

BLOCKS, BIAS = "block", "relative_attention_bias"
OWNER = ("layer", "0", "SelfAttention")  # of the bias, within a block


def stacked(stack: Params, config: T5Config) -> Params:
    """The encoder or decoder with its blocks as one tree; a bias that they share, which block 0 has, stands beside."""
    blocks = stack[BLOCKS]
    if "0" not in blocks:
        return stack
    if config.shares_bias:
        blocks = blocks | {"0": _without_bias(blocks["0"])}
        stack = stack | {BIAS: bias_of(stack[BLOCKS]["0"])}
    return stack | {BLOCKS: together(blocks)}


def unstacked(stack: Params, config: T5Config) -> Params:
    """The published layout of an encoder or decoder that `stacked` may have changed."""
    if "0" in stack[BLOCKS]:
        return stack
    blocks = {str(number): block for number, block in enumerate(apart(stack[BLOCKS]))}
    if config.shares_bias:
        blocks["0"] = updated(blocks["0"], OWNER, {BIAS: stack[BIAS]})
    return {name: x for name, x in stack.items() if name != BIAS} | {BLOCKS: blocks}


def layers_and_tables(stack: Params, config: T5Config) -> tuple[Params, Float[Array, "L buckets H"]]:
    """All blocks with a leading layer axis, and the table of biases that each of them reads."""
    stack = stacked(stack, config)
    blocks = stack[BLOCKS]
    if not config.shares_bias:
        return blocks, bias_of(blocks)["embedding"]
    table = stack[BIAS]["embedding"]
    depth = blocks["layer"]["0"]["layer_norm"]["weight"].shape[0]
    return blocks, jnp.broadcast_to(table, (depth, *table.shape))


def bias_of(block: Params) -> Params:
    """The bias that a block has."""
    return block["layer"]["0"]["SelfAttention"][BIAS]


def _without_bias(block: Params) -> Params:
    attention = block["layer"]["0"]
    kept = {name: x for name, x in attention["SelfAttention"].items() if name != BIAS}
    return block | {"layer": block["layer"] | {"0": attention | {"SelfAttention": kept}}}
