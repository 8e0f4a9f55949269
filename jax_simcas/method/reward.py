"""Reward: what the decoder's own likelihood and attention say about every kept and skipped candidate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

REWARD_SCALE = 10_000.0  # xi
HYPER_LENGTH = 2048  # L_hyper


def target_log_prob(
    logits: Float[Array, "T V"], target_ids: Int[Array, " T"], target_mask: Bool[Array, " T"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """(sum, count) over real t >= 1 of log p(y_t | y_<t), in nats; logits at t - 1 predict y_t."""
    gold = jnp.take_along_axis(logits[:-1], target_ids[1:, None], axis=-1)[:, 0]
    log_prob = gold - jax.nn.logsumexp(logits[:-1], axis=-1)
    return jnp.where(target_mask[1:], log_prob, 0.0).sum(), target_mask[1:].sum()


def document_reward(
    logits: Float[Array, "T V"],
    target_ids: Int[Array, " T"],
    target_mask: Bool[Array, " T"],
    scale: float = REWARD_SCALE,
) -> Float[Array, ""]:
    """R = xi * exp(mean over real t >= 1 of log p(y_t | y_<t)). Source: method.md "Decode, reward"."""
    total, count = target_log_prob(logits, target_ids, target_mask)
    return scale * jnp.exp(total / jnp.maximum(count, 1))


def skip_reward(
    reward: Float[Array, ""],
    selected_count: Int[Array, ""],
    candidate_count: Int[Array, ""],
    hyper_length: int = HYPER_LENGTH,
) -> Float[Array, ""]:
    """R / n_sel when n_sel > L_hyper, else R / max(n_all, L_hyper). Source: the released code."""
    plenty = jnp.maximum(candidate_count, hyper_length)
    return reward / jnp.where(selected_count > hyper_length, selected_count, plenty)


def candidate_rewards(
    reward: Float[Array, ""],
    cross_attention: Float[Array, " C"],
    index: Int[Array, " M"],
    action: Bool[Array, "K N"],
    candidate_mask: Bool[Array, "K N"],
    hyper_length: int = HYPER_LENGTH,
) -> Float[Array, "K N"]:
    """R a_j / (1 - a_0) for a kept candidate j, `skip_reward` for a skipped one, 0 outside the mask.

    Deviation: a candidate that was kept but found no place in the capacity got no attention: reward 0.

    Args:
      cross_attention: one weight a selected state, the document's state first.
      index: of each selected state after the first into the K * N candidates; K * N where there is none.
    """
    attention = jnp.zeros(action.size).at[index].set(cross_attention[1:], mode="drop").reshape(action.shape)
    kept = reward * attention / jnp.maximum(1.0 - cross_attention[0], jnp.finfo(jnp.float32).tiny)
    skipped = skip_reward(reward, (index < action.size).sum(), candidate_mask.sum(), hyper_length)
    return jnp.where(candidate_mask, jnp.where(action, kept, skipped), 0.0)
