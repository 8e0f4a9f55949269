"""What goes through the model: a chunked document and its target."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Document(NamedTuple):
    """One document of K chunks, `[BOS] content [EOS]` with S tokens each; masks are True where something is real."""

    input_ids: Int[Array, "*B K S"]
    token_mask: Bool[Array, "*B K S"]
    chunk_mask: Bool[Array, "*B K"]


class Target(NamedTuple):
    """T target tokens, from the decoder start token on."""

    ids: Int[Array, "*B T"]
    mask: Bool[Array, "*B T"]

    def predicted(self) -> Target:
        """What the logits at each position predict, the next token; none at the last position.

        The targets are shifted, not the logits: on a CPU a slice of those is a copy, and its gradient costs more.
        """
        behind = jnp.zeros_like(self.mask[..., :1])
        return Target(jnp.roll(self.ids, -1, axis=-1), jnp.concatenate([self.mask[..., 1:], behind], axis=-1))


class Example(NamedTuple):
    """One document and its target; a batch is the same with a leading axis B in every array."""

    document: Document
    target: Target
