"""PPO for the selector: time is the chunk index, candidate positions are parallel environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.common import checks
from jax_simcas.common.sharding import ShardingRule, constrain, constrain_tree, over_documents
from jax_simcas.common.trees import Params
from jax_simcas.method.select import action_logits, state_values

# How the selector and its optimizer's state lie on a mesh while minibatches are visited: devices that share a document,
# and so a minibatch, each compute and update a part of the inner layer, and add up what it makes of the candidates.
IN_PIECES: tuple[ShardingRule, ...] = (
    (r"dense_[12]/kernel", (None, "selector inner")),
    (r"dense_3/kernel", ("selector inner", None)),
)


@dataclass(frozen=True)
class PPOConfig:
    """Constants of the selector's update; the defaults are the released code's."""

    discount: float = 0.998  # gamma: per chunk
    trace: float = 0.95  # lambda of generalised advantage estimation
    epochs: int = 2  # passes over the candidates per batch
    minibatch_size: int = 512  # candidates of one chunk
    clip: float = 0.2  # the probability ratio stays within 1 +- clip
    value_clip: float = 0.2  # a value moves at most this far from that of the rollout
    entropy_weight: float = 0.1  # of the entropy in the loss
    max_kl: float = 0.1  # nats per candidate: no further epoch after one that ends above it

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "epochs", "minibatch_size")
        checks.at_least(self, 0, "discount", "trace", most=1)
        checks.at_least(self, 0, "entropy_weight", "max_kl")
        checks.above(self, 0, "clip", "value_clip")


class Rollout(NamedTuple):
    """What the policy did on a batch of B documents, and what it earned."""

    hidden: Float[Array, "B K S D"]
    state: Float[Array, "B K D"]
    action: Bool[Array, "B K N"]
    log_prob: Float[Array, "B K N"]
    value: Float[Array, "B K N"]
    advantage: Float[Array, "B K N"]
    returns: Float[Array, "B K N"]
    mask: Bool[Array, "B K N"]


class Orders(NamedTuple):
    """The order of visits: E epochs, R rounds per epoch, M candidates per minibatch, P = R M."""

    token: Int[Array, "E B K P"]  # candidates of every chunk, shuffled; N or more: none
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
    Source: docs/method.md, "Dual update" (released code). Masked candidates take no part and get 0.
    """

    def step(carry: tuple, inputs: tuple) -> tuple:
        next_value, next_advantage = carry
        reward, value, mask = inputs
        delta = reward + discount * next_value - value
        advantage = jnp.where(mask, delta + discount * trace * next_advantage, 0.0)
        return (masked_mean(value, mask), advantage), advantage

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


class Minibatch(NamedTuple):
    """M candidates of one chunk."""

    candidates: Float[Array, "M D"]
    state: Float[Array, " D"]
    action: Bool[Array, " M"]
    log_prob: Float[Array, " M"]
    value: Float[Array, " M"]
    advantage: Float[Array, " M"]
    returns: Float[Array, " M"]
    mask: Bool[Array, " M"]


def ppo_losses(selector: Params, batch: Minibatch, config: PPOConfig) -> Losses:
    """Clipped policy loss, clipped value loss and entropy of one minibatch.

    policy = -mean min(ratio A, clip(ratio, 1 +- c) A);  value = 0.5 mean max((V - G)^2, (V_clipped - G)^2)
    total = policy - w * entropy + value;  approx_kl = mean(ratio - 1 - log ratio)
    """
    mask = batch.mask
    log_probs = jax.nn.log_softmax(action_logits(selector, batch.candidates, batch.state), axis=-1)
    log_ratio = jnp.where(batch.action, log_probs[:, 1], log_probs[:, 0]) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = normalise(batch.advantage, mask)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    policy = -masked_mean(jnp.minimum(ratio * advantage, clipped * advantage), mask)
    new_value = state_values(selector, batch.candidates, batch.state)
    value_clipped = batch.value + jnp.clip(new_value - batch.value, -config.value_clip, config.value_clip)
    errors = jnp.maximum(jnp.square(new_value - batch.returns), jnp.square(value_clipped - batch.returns))
    value_loss = 0.5 * masked_mean(errors, mask)
    entropy = masked_mean(-(jnp.exp(log_probs) * log_probs).sum(axis=-1), mask)
    total = policy - config.entropy_weight * entropy + value_loss
    return Losses(policy, value_loss, entropy, total, masked_mean(ratio - 1.0 - log_ratio, mask))


def draw_orders(key: Array, mask: Bool[Array, "B K N"], config: PPOConfig) -> Orders:
    """Shuffles the candidates of each chunk and, for every round of minibatches, the chunks; padding comes last.

    The draws depend on the number of chunks, padding included.
    """
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


def gather_minibatch(rollout: Rollout, tokens: Int[Array, " M"], chunk: Int[Array, ""]) -> Minibatch:
    """The candidates `tokens` of chunk `chunk` of one document; its arrays have all S positions (see `ppo_update`)."""
    per_chunk = rollout.mask.shape[1] - 1
    if tokens.shape[0] == per_chunk:  # all of them, in whatever order
        pick = lambda x: x[chunk]
    else:
        position = jnp.where(tokens < per_chunk, tokens + 1, 0)
        pick = lambda x: x[chunk, position]
    mask = pick(rollout.mask)
    candidates = constrain(pick(rollout.hidden), None, None)
    per_candidate = (rollout.action, rollout.log_prob, rollout.value, rollout.advantage, rollout.returns)
    action, log_prob, value, advantage, returns = map(pick, per_candidate)
    return Minibatch(candidates, rollout.state[chunk], action, log_prob, value, advantage, returns, mask)


class PPOState(NamedTuple):
    """What a visit changes. `active` is False after an epoch that ended above the largest KL."""

    selector: Params
    optimizer_state: optax.OptState
    kl: Float[Array, ""]  # of the last minibatch, nats
    active: Bool[Array, ""]


def visit_minibatch(
    state: PPOState,
    tokens: Int[Array, "B M"],
    chunk: Int[Array, " B"],
    rollout: Rollout,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
) -> tuple[PPOState, tuple[Losses, Bool[Array, ""]]]:
    """One optimizer step on one minibatch per document, unless `state` is no longer active or all are padding."""

    def batch_loss(selector: Params) -> tuple[Array, tuple[Losses, Array]]:
        def one(selector: Params, rollout: Rollout, tokens: Array, chunk: Array) -> tuple[Losses, Array]:
            minibatch = gather_minibatch(rollout, tokens, chunk)
            return ppo_losses(selector, minibatch, config), minibatch.mask.any()

        losses, real = over_documents(one, (None, 0, 0, 0))(selector, rollout, tokens, chunk)
        losses = Losses(*(masked_mean(x, real) for x in losses))
        return losses.total, (losses, real.any())

    def visit(_: None) -> tuple:
        grads, (losses, any_real) = jax.grad(batch_loss, has_aux=True)(state.selector)
        updates, new_state = optimizer.update(grads, state.optimizer_state, state.selector)
        new = (optax.apply_updates(state.selector, updates), new_state)
        new = jax.tree.map(lambda a, b: jnp.where(any_real, a, b), new, (state.selector, state.optimizer_state))
        return *new, losses, any_real

    def skip(_: None) -> tuple:
        nothing = Losses(*(jnp.zeros(()) for _ in Losses._fields))
        return state.selector, state.optimizer_state, nothing, jnp.array(False)

    selector, optimizer_state, losses, taken = lax.cond(state.active, visit, skip, None)
    kl = jnp.where(taken, losses.approx_kl, state.kl)
    return PPOState(selector, optimizer_state, kl, state.active), (losses, taken)


@jax.named_scope("ppo")
def ppo_update(
    selector: Params,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    rollout: Rollout,
    orders: Orders,
    config: PPOConfig,
) -> tuple[Params, optax.OptState, Losses, Bool[Array, " steps"]]:
    """Visits every minibatch of every epoch: M = min(config.minibatch_size, N) candidates of one chunk per document.

    The loss of a step is the mean over the documents that still have a chunk to visit. After an epoch whose last
    approximate KL exceeds `config.max_kl`, the remaining epochs are skipped.
    Source: docs/method.md, "Dual update" (released code, there with one document per batch).

    On a mesh, devices that share a document share the work; see IN_PIECES. Those with documents of their own exchange
    gradients, and each take the whole step of the optimizer.

    Returns:
      new parameters and optimizer state; the losses of every step, [E * R * K] each; and which steps were taken.
    """
    size = min(config.minibatch_size, rollout.mask.shape[2])
    # All S positions, of which BOS is masked out: slicing it off would force a relayout of the states.
    with_bos = lambda x: constrain(jnp.pad(x, ((0, 0), (0, 0), (1, 0))), "documents", None, None)
    names = ("action", "log_prob", "value", "advantage", "returns", "mask")
    rollout = rollout._replace(**{name: with_bos(getattr(rollout, name)) for name in names})

    def visit(state: PPOState, inputs: tuple) -> tuple:
        token_order, chunk = inputs  # [B, K, M], [B]
        tokens = jax.vmap(lambda order, k: order[k])(token_order, chunk)
        return visit_minibatch(state, tokens, chunk, rollout, optimizer, config)

    def one_round(state: PPOState, inputs: tuple) -> tuple:
        tokens, chunk_order = inputs  # [B, K, M], [B, K]
        return lax.scan(lambda state, chunk: visit(state, (tokens, chunk)), state, chunk_order.T)

    def epoch(state: PPOState, inputs: tuple) -> tuple:
        token_order, chunk_order = inputs  # [B, K, R * M], [R, B, K]
        rounds = token_order.reshape(*token_order.shape[:2], -1, size).transpose(2, 0, 1, 3)
        out: tuple
        state, out = lax.scan(one_round, state, (rounds, chunk_order))
        return state._replace(active=state.active & (state.kl <= config.max_kl)), out

    selector, optimizer_state = constrain_tree((selector, optimizer_state), IN_PIECES)
    state = PPOState(selector, optimizer_state, jnp.zeros(()), jnp.array(True))
    losses: Losses
    taken: Array
    state, (losses, taken) = lax.scan(epoch, state, (orders.token, orders.chunk))
    return state.selector, state.optimizer_state, Losses(*(x.ravel() for x in losses)), taken.ravel()
