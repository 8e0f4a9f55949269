"""Reward: what the decoder's own likelihood and attention say about every kept and skipped candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.common.trees import Params
from jax_simcas.method.document import Example, Target
from jax_simcas.method.select import Compacted, Selection

REWARD_SCALE = 10_000.0  # xi
HYPER_LENGTH = 2048  # L_hyper


class Encoded(NamedTuple):
    """One document, ready for the decoder."""

    hidden: Float[Array, "*B K S D"]
    selection: Selection
    compacted: Compacted


class Forward(NamedTuple):
    """One document through encoder, selector and teacher-forced decoder."""

    encoded: Encoded
    logits: Float[Array, "T V"]
    cross_attention: Float[Array, " C"] | None  # averaged over layers, heads and real target positions


# (params, model: a SimCAS, example, forward) -> the reward R of one document.
Reward = Callable[[Params, Any, Example, Forward], Float[Array, ""]]
# (R, forward) -> the reward of each candidate.
Credit = Callable[[Float[Array, ""], Forward], Float[Array, "K N"]]


def target_log_prob(logits: Float[Array, "T V"], target: Target) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """(sum, count) over real t >= 1 of log p(y_t | y_<t), in nats; logits at t - 1 predict y_t."""
    ids, mask = target.predicted()
    gold = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    log_prob = gold - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(mask, log_prob, 0.0).sum(), mask.sum()


@dataclass(frozen=True)
class Likelihood:
    """R = xi * exp(mean over real t >= 1 of log p(y_t | y_<t)). Source: docs/method.md, "Decode and reward"."""

    scale: float = REWARD_SCALE  # xi

    def __call__(self, params: Params, model: Any, example: Example, forward: Forward) -> Float[Array, ""]:
        total, count = target_log_prob(forward.logits, example.target)
        return self.scale * jnp.exp(total / jnp.maximum(count, 1))


LIKELIHOOD = Likelihood()


def skip_reward(
    reward: Float[Array, ""],
    selected_count: Int[Array, ""],
    candidate_count: Int[Array, ""],
    hyper_length: int = HYPER_LENGTH,
) -> Float[Array, ""]:
    """R / n_sel when n_sel > L_hyper, else R / max(n_all, L_hyper). Source: the released code."""
    plenty = jnp.maximum(candidate_count, hyper_length)
    return reward / jnp.where(selected_count > hyper_length, selected_count, plenty)


def by_candidate(attention: Float[Array, " C"], index: Int[Array, " M"], shape: tuple[int, ...]) -> Float[Array, "K N"]:
    """The attention to each of K * N candidates, of that shape; 0 where it was not selected.

    Args:
      index: of each selected state after the first into the candidates; K * N where there is none.
    """
    return jnp.zeros(shape).ravel().at[index].set(attention[1:], mode="drop").reshape(shape)


@dataclass(frozen=True)
class CrossAttention:
    """Credit by attention: R a_j / (1 - a_0) for a kept candidate j, `skip_reward` for a skipped one, 0 if masked.

    a is the mean cross-attention, one weight per selected state, that of the document state first.
    Source: docs/method.md, "Decode and reward".
    Deviation: a candidate that was kept but lies beyond the capacity got no attention: reward 0.
    """

    hyper_length: int = HYPER_LENGTH  # L_hyper

    def __call__(self, reward: Float[Array, ""], forward: Forward) -> Float[Array, "K N"]:
        _, selection, compacted = forward.encoded
        assert forward.cross_attention is not None
        return self.candidates(
            reward, forward.cross_attention, compacted.index, selection.action, selection.candidate_mask
        )

    def candidates(
        self,
        reward: Float[Array, ""],
        attention: Float[Array, " C"],
        index: Int[Array, " M"],
        action: Bool[Array, "K N"],
        candidate_mask: Bool[Array, "K N"],
    ) -> Float[Array, "K N"]:
        """`index`: see `by_candidate`."""
        weight = by_candidate(attention, index, action.shape)
        kept = reward * weight / jnp.maximum(1.0 - attention[0], jnp.finfo(jnp.float32).tiny)
        selected_count = (action & candidate_mask).sum()  # those beyond the capacity too
        skipped = skip_reward(reward, selected_count, candidate_mask.sum(), self.hyper_length)
        return jnp.where(candidate_mask, jnp.where(action, kept, skipped), 0.0)


CROSS_ATTENTION = CrossAttention()
