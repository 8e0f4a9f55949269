"""Where a chunk stands in its document, as a vector that is added to all its tokens before layer 0.

Neither the paper nor the released code encodes the order of chunks; see docs/method.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common.errors import UserError
from jax_simcas.common.trees import Params

NAME = "chunk_positions"  # of the learned table, among the encoder's parameters


@runtime_checkable
class ChunkPosition(Protocol):
    """A frozen, hashable value; None in its place adds nothing."""

    def init(self, key: Array, backbone: Backbone) -> Params:
        """Fresh parameters, to be merged into the encoder's."""

    def __call__(self, encoder: Params, backbone: Backbone, chunks: int) -> Float[Array, "K D"]:
        """The vectors of the first `chunks` chunks; `encoder` is the encoder's dict of parameters."""


@dataclass(frozen=True)
class Sinusoidal:
    """c sin(k w_i), c cos(k w_i) with w_i = 10000^(-2i/D).

    c = sqrt(2) init_std: the scale at which embeddings start, which waves of size 1 would drown.
    """

    def init(self, key: Array, backbone: Backbone) -> Params:
        return {}

    def __call__(self, encoder: Params, backbone: Backbone, chunks: int) -> Float[Array, "K D"]:
        rates = 10_000.0 ** (-jnp.arange(0, backbone.width, 2) / backbone.width)
        angles = jnp.arange(chunks)[:, None] * rates
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, : backbone.width]
        return math.sqrt(2) * backbone.init_std * waves


@dataclass(frozen=True)
class Learned:
    """One learned vector per chunk, for at most `max_chunks` chunks."""

    max_chunks: int = 1_024

    def init(self, key: Array, backbone: Backbone) -> Params:
        return {NAME: {"embedding": backbone.init_std * jax.random.normal(key, (self.max_chunks, backbone.width))}}

    def __call__(self, encoder: Params, backbone: Backbone, chunks: int) -> Float[Array, "K D"]:
        if chunks > self.max_chunks:
            raise UserError(
                f"config.simcas.max_chunks={self.max_chunks}: a document has {chunks} chunks, more than there are "
                "learned positions; lower config.simcas.max_input_len"
            )
        return encoder[NAME]["embedding"][:chunks]
