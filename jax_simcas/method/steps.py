"""The two updates, as pure steps over a batch: the transformer's by cross-entropy, the selector's by PPO."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from jax_simcas.common.sharding import constrain, over_documents
from jax_simcas.common.trees import Params
from jax_simcas.method import select as select_lib
from jax_simcas.method.document import Example, Target
from jax_simcas.method.model import SimCAS, forward
from jax_simcas.method.ppo import PPOConfig, Rollout, advantages, draw_orders, masked_mean, ppo_update
from jax_simcas.method.reward import Encoded, target_log_prob
from jax_simcas.method.select import SAMPLE, Policy

Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. `step` counts batches, `skipped` those with a non-finite loss.

    Leaves are arrays, or whatever jax.eval_shape and shardings put in their place; hence `Any`.
    """

    step: Any  # int32
    skipped: Any  # int32
    skipped_in_row: Any  # int32
    params: Params
    transformer_optimizer: optax.OptState
    selector_optimizer: optax.OptState
    key: Any

    def replace(self, **changes: Any) -> TrainState:
        return dataclasses.replace(self, **changes)


def split_params(params: Params) -> tuple[Params, Params]:
    """(transformer, selector): the two sides that are trained separately."""
    return {k: v for k, v in params.items() if k != "selector"}, params["selector"]


def init_state(
    params: Params,
    transformer_optimizer: optax.GradientTransformation,
    selector_optimizer: optax.GradientTransformation,
    key: Array,
) -> TrainState:
    """Fresh optimizer states around `params`; `key` drives every later draw."""
    transformer, selector = split_params(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
        params=params,
        transformer_optimizer=transformer_optimizer.init(transformer),
        selector_optimizer=selector_optimizer.init(selector),
        key=key,
    )


@jax.named_scope("loss")
def smoothed_cross_entropy(
    logits: Float[Array, "T V"],
    target: Target,
    epsilon: float,
) -> Float[Array, ""]:
    """Mean over real t >= 1 of (1 - e) * -log p(y_t) + e * mean_v -log p(v), in nats.

    Source: the released code, which spreads e over all V classes, the gold one included.
    """
    ids, mask = target.predicted()
    gold = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - (1.0 - epsilon) * gold - epsilon * logits.mean(axis=-1)
    return masked_mean(loss, mask)


def _total(x: Array) -> Array:
    return x.astype(jnp.float32).sum()


def selection_metrics(batch: Example, encoded: Encoded) -> Metrics:
    """Share of the candidates that the policy selected, and share of those beyond the capacity."""
    selected, candidates = _total(encoded.selection.action), _total(encoded.selection.candidate_mask)
    return {
        "selection/kept": (selected, candidates),  # an old name: before the capacity
        "selection/states": (selected, _total(batch.document.chunk_mask.any(axis=-1))),
        "selection/overflow": (_total(encoded.compacted.overflow), selected),
    }


def batch_loss(
    params: Params,
    batch: Example,
    model: SimCAS,
    label_smoothing: float,
    *,
    policy: Policy | None = None,
    key: Array | None = None,
    action: Bool[Array, "B K N"] | None = None,
    train: bool = False,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over documents of the smoothed cross-entropy, in nats per token, and metrics.

    Args:
      policy: None: the model's of inference, whatever `train` is; training draws by `model.train_policy`.
      key: for drawing and, when `train`, for dropout; document b uses the b-th of its split.
      action: given actions, in place of the policy's.

    Returns:
      The loss, and metrics as (sum, count): `loss` per document, `nll` per target token (nats), `tokens` of the
      documents per batch, `selection/kept` (what is selected, before the capacity) per candidate, `selection/states`
      per document, `selection/overflow` per selected candidate.

    Raises:
      ValueError: a policy without the key, budget or tokens that it needs; a mesh that does not divide the chunks.
    """
    rows = batch.document.input_ids.shape[0]
    keys = jax.random.split(jax.random.key(0) if key is None else key, (rows, 2))

    def one(example: Example, keys: Array, action: Array | None) -> tuple[Array, tuple[Array, Array], Encoded]:
        out = forward(
            params,
            model,
            example,
            policy=policy,
            select_key=keys[0],
            dropout_key=keys[1] if train else None,
            action=action,
            with_weights=False,
        )
        loss = smoothed_cross_entropy(out.logits, example.target, label_smoothing)
        return loss, target_log_prob(out.logits, example.target), out.encoded

    losses, (log_prob, tokens), encoded = over_documents(one)(batch, keys, action)
    real = batch.document.chunk_mask.any(axis=-1)
    loss = masked_mean(losses, real)
    metrics = {
        "loss": (jnp.where(real, losses, 0.0).sum(), _total(real)),
        "nll": (-_total(log_prob), _total(tokens)),
        "tokens": (_total(batch.document.token_mask), jnp.ones(())),
        **selection_metrics(batch, encoded),
    }
    return loss, metrics


def transformer_step(
    state: TrainState,
    batch: Example,
    *,
    model: SimCAS,
    optimizer: optax.GradientTransformation,
    label_smoothing: float = 0.1,
    action: Bool[Array, "B K N"] | None = None,
) -> tuple[TrainState, Metrics]:
    """One batch of the transformer's update; the selector draws (`train_policy`) but does not learn.

    A batch whose loss or gradient is not finite changes nothing but the counts `step`, `skipped` and `skipped_in_row`;
    with gradient accumulation, it is not counted among the accumulated batches. The metrics are those of `batch_loss`,
    `grad_norm` and `skipped`, both per batch.
    """
    transformer, selector = split_params(state.params)
    key = jax.random.fold_in(state.key, 2 * state.step)

    def loss_of(transformer: Params) -> tuple[Array, Metrics]:
        return batch_loss(
            {**transformer, "selector": selector},
            batch,
            model,
            label_smoothing,
            policy=model.train_policy,
            key=key,
            action=action,
            train=model.backbone.has_dropout,
        )

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(transformer)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    transformer, optimizer_state = updated_if(finite, optimizer, grads, transformer, state.transformer_optimizer)
    metrics |= {"grad_norm": (norm, jnp.ones(())), "skipped": (_total(~finite), jnp.ones(()))}
    state = state.replace(
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        params={**transformer, "selector": selector},
        transformer_optimizer=optimizer_state,
    )
    return state, metrics


@jax.named_scope("update")
def updated_if(
    finite: Bool[Array, ""],
    optimizer: optax.GradientTransformation,
    grads: Params,
    params: Params,
    optimizer_state: optax.OptState,
) -> tuple[Params, optax.OptState]:
    """Parameters and optimizer state after an update; those given unless `finite`.

    A CPU that is the only device branches: to choose between old and new takes it three times as long as the update
    itself. Several must not: the compiler may move collectives into a branch, in which XLA:CPU can wait forever.
    """

    def update(grads: Params, params: Params, optimizer_state: optax.OptState) -> tuple[Params, optax.OptState]:
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    def branch(grads: Params, *old: Any) -> tuple[Params, optax.OptState]:
        return lax.cond(finite, update, lambda _, *old: old, grads, *old)

    def choice(grads: Params, *old: Any) -> tuple[Params, optax.OptState]:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(grads, *old), old)

    given = (grads, params, optimizer_state)
    if jax.device_count() > 1:
        return choice(*given)
    return lax.platform_dependent(*given, cpu=branch, default=choice)


def rollout(
    params: Params,
    batch: Example,
    model: SimCAS,
    config: PPOConfig,
    keys: Array,
    action: Bool[Array, "B K N"] | None = None,
) -> tuple[Rollout, Float[Array, " B"], Encoded]:
    """Draws actions for every document and rewards them: (rollout, R, encoded)."""

    def one(example: Example, key: Array, action: Array | None) -> tuple[Rollout, Array, Encoded]:
        out = forward(params, model, example, policy=SAMPLE, select_key=key, action=action)
        hidden, selection, _ = out.encoded
        hidden = constrain(hidden, None, "tokens", None)  # the layout that the policy scanned and PPO visits
        mask = selection.candidate_mask
        with jax.named_scope("values"):
            value = jax.vmap(select_lib.state_values, (None, 0, 0))(params["selector"], hidden, selection.state)[:, 1:]
        with jax.named_scope("reward"):
            reward = model.reward(params, model, example, out)
            rewards = model.credit(reward, out)
            # `advantages` scans over the chunks; sharded, each of its steps would gather them.
            rewards, value, mask = (constrain(x, None, None) for x in (rewards, value, mask))
            advantage, returns = advantages(rewards, value, mask, config.discount, config.trace)
        done = (selection.action, selection.log_prob, value, advantage, returns, mask)
        return Rollout(hidden, selection.state, *done), reward, out.encoded

    return lax.stop_gradient(over_documents(one)(batch, keys, action))


def selector_step(
    state: TrainState,
    batch: Example,
    *,
    model: SimCAS,
    optimizer: optax.GradientTransformation,
    ppo: PPOConfig,
) -> tuple[TrainState, Metrics]:
    """PPO on one batch, without dropout; the transformer stays as it is, and so does `step`.

    Draws follow `state.key` and `step`: to update the selector twice between two steps of the transformer, give the
    second one another `key`. With several documents, each minibatch holds the same number of candidates from each, and
    the loss is averaged over documents. The metrics are `reward` per document (at most xi), those of PPO per minibatch,
    `selector_skipped` per batch, and the selection's as in `batch_loss`.
    """
    transformer, selector = split_params(state.params)
    key, order_key = jax.random.split(jax.random.fold_in(state.key, 2 * state.step + 1))
    keys = jax.random.split(key, batch.document.input_ids.shape[0])
    experience, reward, encoded = rollout(state.params, batch, model, ppo, keys)
    new_selector, optimizer_state, losses, taken = ppo_update(
        selector,
        optimizer,
        state.selector_optimizer,
        experience,
        draw_orders(order_key, experience.mask, ppo),
        ppo,
    )
    finite = jnp.isfinite(optax.tree.norm(new_selector)) & jnp.isfinite(reward).all()
    keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    state = state.replace(
        params={**transformer, "selector": keep(new_selector, selector)},
        selector_optimizer=keep(optimizer_state, state.selector_optimizer),
    )
    count = _total(taken)
    means = {f"ppo/{name}": (jnp.where(taken, x, 0.0).sum(), count) for name, x in losses._asdict().items()}
    real = batch.document.chunk_mask.any(axis=-1)
    metrics = {"reward": (jnp.where(real, reward, 0.0).sum(), _total(real)), **means}
    metrics["selector_skipped"] = (_total(~finite), jnp.ones(()))
    return state, metrics | selection_metrics(batch, encoded)
