"""PPO for the selector: time is the chunk index, candidate positions are parallel environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.common.sharding import constrain, over_documents
from jax_simcas.method.select import action_logits, state_values

Params = Any


@dataclass(frozen=True)
class PPOConfig:
    """Constants of the selector's update; the defaults are the released code's."""

    discount: float = 0.998
    trace: float = 0.95  # lambda of the generalised advantage
    epochs: int = 2
    minibatch_size: int = 512  # candidates of one chunk
    clip: float = 0.2
    value_clip: float = 0.2
    entropy_weight: float = 0.1
    max_kl: float = 0.1  # no further epoch after one that ends above it

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name}={getattr(self, name)}: expected at least 1")


class Rollout(NamedTuple):
    """What the policy did and got on a batch of B documents."""

    hidden: Float[Array, "B K S D"]
    state: Float[Array, "B K D"]
    action: Bool[Array, "B K N"]
    log_prob: Float[Array, "B K N"]
    value: Float[Array, "B K N"]
    advantage: Float[Array, "B K N"]
    returns: Float[Array, "B K N"]
    mask: Bool[Array, "B K N"]


class Orders(NamedTuple):
    """The order of visits: E epochs, R minibatch rounds an epoch, M candidates a minibatch, P = R M."""

    token: Int[Array, "E B K P"]  # candidates of every chunk, shuffled; N or more: nothing
    chunk: Int[Array, "E R B K"]


def advantages(
    reward: Float[Array, "K N"],
    value: Float[Array, "K N"],
    mask: Bool[Array, "K N"],
    discount: float,
    trace: float,
) -> tuple[Float[Array, "K N"], Float[Array, "K N"]]:
    """Generalised advantages and returns of one document.

    delta_k[j] = r_k[j] + gamma * mean_j V_{k+1} - V_k[j] (0 after the last chunk)
    A_k[j] = delta_k[j] + gamma * lambda * A_{k+1}[j];  return = A + V
    Source: method.md "Dual update" (released code). Masked candidates take no part and get 0.
    """

    def step(carry: tuple, inputs: tuple) -> tuple:
        next_value, next_advantage = carry
        reward, value, mask = inputs
        delta = reward + discount * next_value - value
        advantage = jnp.where(mask, delta + discount * trace * next_advantage, 0.0)
        mean_value = jnp.where(mask, value, 0.0).sum() / jnp.maximum(mask.sum(), 1)
        return (mean_value, advantage), advantage

    carry = (jnp.zeros(()), jnp.zeros(reward.shape[1]))
    advantage: Array
    _, advantage = lax.scan(step, carry, (reward, value, mask), reverse=True)
    return advantage, jnp.where(mask, advantage + value, 0.0)


def masked_mean(x: Float[Array, " M"], mask: Bool[Array, " M"]) -> Float[Array, ""]:
    """Mean over True; 0 if there is none."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def normalise(x: Float[Array, " M"], mask: Bool[Array, " M"]) -> Float[Array, " M"]:
    """(x - mean) / (unbiased standard deviation + 1e-8) over True."""
    centred = x - masked_mean(x, mask)
    variance = jnp.where(mask, jnp.square(centred), 0.0).sum() / jnp.maximum(mask.sum() - 1, 1)
    return centred / (jnp.sqrt(variance) + 1e-8)


class Losses(NamedTuple):
    """A minibatch's losses; `total` is what is minimised."""

    policy: Float[Array, ""]
    value: Float[Array, ""]
    entropy: Float[Array, ""]  # nats
    total: Float[Array, ""]
    approx_kl: Float[Array, ""]  # nats


def ppo_losses(
    selector: Params,
    candidates: Float[Array, "M D"],
    state: Float[Array, " D"],
    action: Bool[Array, " M"],
    log_prob: Float[Array, " M"],
    value: Float[Array, " M"],
    advantage: Float[Array, " M"],
    returns: Float[Array, " M"],
    mask: Bool[Array, " M"],
    config: PPOConfig,
) -> Losses:
    """Clipped policy loss, clipped value loss and entropy of one minibatch: M candidates of one chunk.

    policy = -mean min(ratio A, clip(ratio, 1 +- c) A);  value = 0.5 mean max((V - G)^2, (V_clipped - G)^2)
    total = policy - w * entropy + value;  approx_kl = mean(ratio - 1 - log ratio)
    """
    log_probs = jax.nn.log_softmax(action_logits(selector, candidates, state), axis=-1)
    log_ratio = jnp.where(action, log_probs[:, 1], log_probs[:, 0]) - log_prob
    ratio = jnp.exp(log_ratio)
    advantage = normalise(advantage, mask)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    policy = -masked_mean(jnp.minimum(ratio * advantage, clipped * advantage), mask)
    new_value = state_values(selector, candidates, state)
    value_clipped = value + jnp.clip(new_value - value, -config.value_clip, config.value_clip)
    errors = jnp.maximum(jnp.square(new_value - returns), jnp.square(value_clipped - returns))
    value_loss = 0.5 * masked_mean(errors, mask)
    entropy = masked_mean(-(jnp.exp(log_probs) * log_probs).sum(axis=-1), mask)
    total = policy - config.entropy_weight * entropy + value_loss
    return Losses(policy, value_loss, entropy, total, masked_mean(ratio - 1.0 - log_ratio, mask))


def draw_orders(key: Array, mask: Bool[Array, "B K N"], config: PPOConfig) -> Orders:
    """Shuffles each chunk's candidates and, for every round of minibatches, the chunks. Padding comes last."""
    documents, chunks, per_chunk = mask.shape
    size = min(config.minibatch_size, per_chunk)
    rounds = -(-per_chunk // size)
    token_key, chunk_key = jax.random.split(key)
    noise = jax.random.uniform(token_key, (config.epochs, *mask.shape))
    token = jnp.argsort(jnp.where(mask, noise, 2.0), axis=-1)
    fill = rounds * size - per_chunk
    token = jnp.pad(token, ((0, 0), (0, 0), (0, 0), (0, fill)), constant_values=per_chunk)
    noise = jax.random.uniform(chunk_key, (config.epochs, rounds, documents, chunks))
    return Orders(token, jnp.argsort(jnp.where(mask.any(axis=-1), noise, 2.0), axis=-1))


def ppo_update(
    selector: Params,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    rollout: Rollout,
    orders: Orders,
    config: PPOConfig,
) -> tuple[Params, optax.OptState, Losses, Bool[Array, " steps"]]:
    """Visits every minibatch of every epoch: M = min(config.minibatch_size, N) candidates of one chunk a document.

    A step's loss is the mean over the documents that still have a chunk to visit. After an epoch whose
    last approximate KL exceeds `config.max_kl` nothing more is done.
    Source: method.md "Dual update" (released code, there with one document a batch).

    On a mesh a document's devices all do its whole minibatch: its states are a small part (1/64 for BART-large) of the
    gradient that would go round if each did a part. What goes round between documents is that gradient.

    Returns:
      new parameters and optimizer state; the losses of every step, [E * R * K] each; and which were taken.
    """
    per_chunk = rollout.mask.shape[2]
    size = min(config.minibatch_size, per_chunk)
    # All S positions, of which the first is no candidate: cut off, it would lay out all states anew.
    from_first = lambda x: constrain(jnp.pad(x, ((0, 0), (0, 0), (1, 0))), "documents", None, None)
    rollout = Rollout(rollout.hidden, rollout.state, *map(from_first, rollout[2:]))

    def document_losses(selector: Params, row: Rollout, token: Array, chunk: Array) -> tuple[Losses, Array]:
        if size == per_chunk:  # in whatever order
            pick = lambda x: x[chunk]
        else:
            position = jnp.where(token < per_chunk, token + 1, 0)
            pick = lambda x: x[chunk, position]
        mask = pick(row.mask)
        candidates = constrain(pick(row.hidden), None, None)
        action, log_prob, value, advantage, returns = map(pick, row[2:7])
        taken = (action, log_prob, value, advantage, returns, mask)
        return ppo_losses(selector, candidates, row.state[chunk], *taken, config), mask.any()

    def batch_loss(selector: Params, tokens: Array, chunk: Array) -> tuple[Array, tuple[Losses, Array]]:
        losses, real = over_documents(document_losses, (None, 0, 0, 0))(selector, rollout, tokens, chunk)
        losses = Losses(*(masked_mean(x, real) for x in losses))
        return losses.total, (losses, real.any())

    def step(carry: tuple, inputs: tuple) -> tuple:
        selector, optimizer_state, kl, active = carry
        token_order, chunk = inputs  # [B, K, M], [B]
        tokens = jax.vmap(lambda order, k: order[k])(token_order, chunk)

        def visit(_: None) -> tuple:
            grads, (losses, any_real) = jax.grad(batch_loss, has_aux=True)(selector, tokens, chunk)
            updates, new_state = optimizer.update(grads, optimizer_state, selector)
            new = (optax.apply_updates(selector, updates), new_state)
            new = jax.tree.map(lambda a, b: jnp.where(any_real, a, b), new, (selector, optimizer_state))
            return *new, losses, any_real

        def skip(_: None) -> tuple:
            return (
                selector,
                optimizer_state,
                Losses(*(jnp.zeros(()) for _ in Losses._fields)),
                jnp.array(False),
            )

        selector, optimizer_state, losses, taken = lax.cond(active, visit, skip, None)
        kl = jnp.where(taken, losses.approx_kl, kl)
        return (selector, optimizer_state, kl, active), (losses, taken)

    def round_(carry: tuple, inputs: tuple) -> tuple:
        tokens, chunk_order = inputs  # [B, K, M], [B, K]
        each = lambda carry, chunk: step(carry, (tokens, chunk))
        return lax.scan(each, carry, chunk_order.T)

    def epoch(carry: tuple, inputs: tuple) -> tuple:
        token_order, chunk_order = inputs  # [B, K, R * M], [R, B, K]
        rounds = token_order.reshape(*token_order.shape[:2], -1, size).transpose(2, 0, 1, 3)
        out: tuple
        (selector, optimizer_state, kl, active), out = lax.scan(round_, carry, (rounds, chunk_order))
        return (selector, optimizer_state, kl, active & (kl <= config.max_kl)), out

    carry = (selector, optimizer_state, jnp.zeros(()), jnp.array(True))
    losses: Losses
    taken: Array
    (selector, optimizer_state, _, _), (losses, taken) = lax.scan(epoch, carry, (orders.token, orders.chunk))
    return selector, optimizer_state, Losses(*(x.ravel() for x in losses)), taken.ravel()
