"""Where the decoder looked: the kept states that it attended to most as it wrote each token of a target."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jax_simcas.common.trees import Params
from jax_simcas.method.document import Target
from jax_simcas.method.model import SimCAS, decode_selected
from jax_simcas.method.select import Compacted


class Attended(NamedTuple):
    """Of every target token, the P candidates that got most of its cross-attention, averaged over layers and heads.

    Row t is the step that reads tokens 0..t and so writes token t + 1.
    """

    candidate: Int[Array, "*B T P"]  # into the K * N candidates, the most attended first; K * N where there is none
    weight: Float[Array, "*B T P"]  # share of the attention, 0 where there is none
    document_state: Float[Array, "*B T"]  # the share of g


def most_attended(params: Params, model: SimCAS, compacted: Compacted, target: Target, count: int) -> Attended:
    """The `count` most attended candidates of each token of one target, by one pass with teacher forcing.

    Args:
      compacted: the selected states, row 0 being g.
      target: from the decoder start token on; T tokens give T - 1 rows. Rows from the last token on mean nothing.
      count: P, at most C - 1.
    """
    steps = jnp.arange(target.ids.shape[0])

    def of_step(step: Array) -> Array:
        """`decode` averages over the positions of the mask, here one. No state depends on it: one pass serves all."""
        _, weights = decode_selected(params, model, compacted, Target(target.ids, steps == step))
        assert weights is not None
        return weights

    weights = jax.vmap(of_step)(steps[:-1])
    weight, row = lax.top_k(jnp.where(compacted.mask[1:], weights[:, 1:], 0.0), count)
    return Attended(compacted.index[row], weight, weights[:, 0])
