"""The two updates, as pure steps over a batch: the transformer's by cross-entropy, the selector's by PPO."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.common.sharding import constrain, over_documents
from jax_simcas.method import select as select_lib
from jax_simcas.method.model import Encoded, SimcasConfig, decode_selected, encode_and_select
from jax_simcas.method.ppo import Losses, PPOConfig, Rollout, advantages, draw_orders, masked_mean, ppo_update
from jax_simcas.method.reward import candidate_rewards, document_reward, target_log_prob

Params = Any
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count)


class Batch(TypedDict):
    """B documents, padded to common K and T."""

    input_ids: Int[Array, "B K S"]
    token_mask: Bool[Array, "B K S"]
    chunk_mask: Bool[Array, "B K"]
    target_ids: Int[Array, "B T"]
    target_mask: Bool[Array, "B T"]


@dataclass(frozen=True)
class UpdateConfig:
    """Both optimizers. Source of the defaults: method.md "Dual update" and the arXiv row of its table."""

    max_lr: float = 1e-2
    warmup: int = 10_000  # optimizer steps
    accumulate_step: int = 8  # batches an optimizer step
    label_smoothing: float = 0.1
    clip_norm: float | None = None
    selector_lr: float = 1e-4
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        for name in ("warmup", "accumulate_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={self.label_smoothing}: expected 0 <= label_smoothing < 1")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. `step` counts batches, `skipped` those with a non-finite loss.

    A tree of arrays or, as jax.eval_shape and shardings need it, of anything else; so nothing is annotated.
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


def learning_rate(config: UpdateConfig) -> optax.Schedule:
    """max_lr * min(s^-0.5, s * warmup^-1.5) at optimizer step s = 1, 2, ..."""

    def schedule(count: Array | int) -> Array:
        s = jnp.asarray(count, jnp.float32) + 1.0
        return config.max_lr * jnp.minimum(s**-0.5, s * config.warmup**-1.5)

    return schedule


def transformer_optimizer(config: UpdateConfig) -> optax.GradientTransformation:
    """Adam on the schedule, with optional clipping and accumulation over batches."""
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    optimizer = optax.chain(*steps, optax.adam(learning_rate(config)))
    if config.accumulate_step == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulate_step).gradient_transformation()


def selector_optimizer(config: UpdateConfig) -> optax.GradientTransformation:
    """Adam at a constant rate."""
    return optax.adam(config.selector_lr)


def split_params(params: Params) -> tuple[Params, Params]:
    """(transformer, selector): the two sides that are trained apart."""
    return {k: v for k, v in params.items() if k != "selector"}, params["selector"]


def init_state(params: Params, config: UpdateConfig, key: Array) -> TrainState:
    """Fresh optimizers around `params`; `key` drives every later draw."""
    transformer, selector = split_params(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
        params=params,
        transformer_optimizer=transformer_optimizer(config).init(transformer),
        selector_optimizer=selector_optimizer(config).init(selector),
        key=key,
    )


def smoothed_cross_entropy(
    logits: Float[Array, "T V"],
    target_ids: Int[Array, " T"],
    target_mask: Bool[Array, " T"],
    epsilon: float,
) -> Float[Array, ""]:
    """Mean over real t >= 1 of (1 - e) * -log p(y_t) + e * mean_v -log p(v), in nats.

    Source: the released code, which spreads e over all V classes, the gold one included.
    """
    log_z = jax.nn.logsumexp(logits[:-1], axis=-1)
    gold = jnp.take_along_axis(logits[:-1], target_ids[1:, None], axis=-1)[:, 0]
    loss = log_z - (1.0 - epsilon) * gold - epsilon * logits[:-1].mean(axis=-1)
    return masked_mean(loss, target_mask[1:])


class Forward(NamedTuple):
    """One document through encoder, selector and decoder."""

    encoded: Encoded
    logits: Float[Array, "T V"]
    cross_attention: Float[Array, " C"] | None


def forward(
    params: Params,
    bart: BartConfig,
    simcas: SimcasConfig,
    document: Batch,
    *,
    policy: str | None = None,
    select_key: Array | None = None,
    dropout_key: Array | None = None,
    action: Bool[Array, "K N"] | None = None,
    with_weights: bool = True,
) -> Forward:
    """Encode, select and decode ONE document (a `Batch` without its leading axis) with teacher forcing."""
    encoder_key, decoder_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    encoded = encode_and_select(
        params,
        bart,
        simcas,
        document["input_ids"],
        document["token_mask"],
        document["chunk_mask"],
        policy=policy,
        select_key=select_key,
        dropout_key=encoder_key,
        action=action,
    )
    logits, attention = decode_selected(
        params,
        bart,
        simcas,
        encoded.compacted,
        document["target_ids"],
        document["target_mask"],
        decoder_key,
        with_weights,
    )
    return Forward(encoded, logits, attention)


def _total(x: Array) -> Array:
    return x.astype(jnp.float32).sum()


def selection_metrics(batch: Batch, encoded: Encoded) -> Metrics:
    """Share of the candidates kept, and share of the kept that found no place in the capacity."""
    kept, candidates = _total(encoded.selection.action), _total(encoded.selection.candidate_mask)
    return {
        "selection/kept": (kept, candidates),
        "selection/states": (kept, _total(batch["chunk_mask"].any(axis=-1))),
        "selection/overflow": (_total(encoded.compacted.overflow), kept),
    }


def batch_loss(
    params: Params,
    batch: Batch,
    bart: BartConfig,
    simcas: SimcasConfig,
    label_smoothing: float,
    *,
    policy: str | None = None,
    key: Array | None = None,
    action: Bool[Array, "B K N"] | None = None,
    train: bool = False,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over documents of the smoothed cross-entropy, in nats a token, and what to report.

    Args:
      policy: in place of the configured one.
      key: for drawing and, when `train`, for dropout; document b uses the b-th of its split.
      action: given actions, in place of the policy's.
    """
    rows = batch["input_ids"].shape[0]
    keys = jax.random.split(jax.random.key(0) if key is None else key, (rows, 2))

    def one(document: Batch, keys: Array, action: Array | None) -> tuple[Array, tuple[Array, Array], Encoded]:
        out = forward(
            params,
            bart,
            simcas,
            document,
            policy=policy,
            select_key=keys[0],
            dropout_key=keys[1] if train else None,
            action=action,
            with_weights=False,
        )
        target = (document["target_ids"], document["target_mask"])
        loss = smoothed_cross_entropy(out.logits, *target, label_smoothing)
        return loss, target_log_prob(out.logits, *target), out.encoded

    in_axes = (0, 0, None if action is None else 0)
    losses, (log_prob, tokens), encoded = over_documents(one, in_axes)(batch, keys, action)
    real = batch["chunk_mask"].any(axis=-1)
    loss = masked_mean(losses, real)
    metrics = {
        "loss": (jnp.where(real, losses, 0.0).sum(), _total(real)),
        "nll": (-_total(log_prob), _total(tokens)),
        "tokens": (_total(batch["token_mask"]), jnp.ones(())),
        **selection_metrics(batch, encoded),
    }
    return loss, metrics


def transformer_step(
    state: TrainState,
    batch: Batch,
    bart: BartConfig,
    simcas: SimcasConfig,
    config: UpdateConfig,
    action: Bool[Array, "B K N"] | None = None,
) -> tuple[TrainState, Metrics]:
    """One batch of the transformer's update; the selector draws (`train_policy`) but does not learn.

    A batch whose loss or gradient is not finite changes nothing but `skipped`.
    """
    transformer, selector = split_params(state.params)
    key = jax.random.fold_in(state.key, 2 * state.step)

    def loss_of(transformer: Params) -> tuple[Array, Metrics]:
        # The output bias is a buffer in BART, not a parameter.
        bias = jax.lax.stop_gradient(transformer["final_logits_bias"])
        params = {**transformer, "final_logits_bias": bias, "selector": selector}
        return batch_loss(
            params,
            batch,
            bart,
            simcas,
            config.label_smoothing,
            policy=simcas.train_policy,
            key=key,
            action=action,
            train=bart.dropout > 0 or bart.attention_dropout > 0 or bart.activation_dropout > 0,
        )

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(transformer)
    norm = optax.tree.norm(grads)
    updates, optimizer_state = transformer_optimizer(config).update(grads, state.transformer_optimizer, transformer)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    transformer = keep(optax.apply_updates(transformer, updates), transformer)
    metrics |= {"grad_norm": (norm, jnp.ones(())), "skipped": (_total(~finite), jnp.ones(()))}
    state = state.replace(
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        params={**transformer, "selector": selector},
        transformer_optimizer=keep(optimizer_state, state.transformer_optimizer),
    )
    return state, metrics


def rollout(
    params: Params,
    batch: Batch,
    bart: BartConfig,
    simcas: SimcasConfig,
    config: PPOConfig,
    keys: Array,
    action: Bool[Array, "B K N"] | None = None,
) -> tuple[Rollout, Float[Array, " B"], Encoded]:
    """Draws actions for every document and lets the decoder reward them: (rollout, R, encoded)."""

    def one(document: Batch, key: Array, action: Array | None) -> tuple[Rollout, Array, Encoded]:
        out = forward(params, bart, simcas, document, policy="sample", select_key=key, action=action)
        hidden, selection, compacted = out.encoded
        hidden = constrain(hidden, None, "tokens", None)  # as the policy had it, and PPO's visits want it
        mask = selection.candidate_mask
        value = jax.vmap(select_lib.state_values, (None, 0, 0))(params["selector"], hidden, selection.state)[:, 1:]
        reward = document_reward(out.logits, document["target_ids"], document["target_mask"], simcas.reward_scale)
        assert out.cross_attention is not None
        rewards = candidate_rewards(
            reward, out.cross_attention, compacted.index, selection.action, mask, simcas.hyper_length
        )
        # They go back over the chunks one by one; left in pieces, all of them would go round at each.
        rewards, value, mask = (constrain(x, None, None) for x in (rewards, value, mask))
        advantage, returns = advantages(rewards, value, mask, config.discount, config.trace)
        taken = (selection.action, selection.log_prob, value, advantage, returns, mask)
        return Rollout(hidden, selection.state, *taken), reward, out.encoded

    in_axes = (0, 0, None if action is None else 0)
    return jax.lax.stop_gradient(over_documents(one, in_axes)(batch, keys, action))


def selector_step(
    state: TrainState, batch: Batch, bart: BartConfig, simcas: SimcasConfig, config: UpdateConfig
) -> tuple[TrainState, Metrics]:
    """PPO on one batch, without dropout; the transformer is only asked. `step` does not move."""
    transformer, selector = split_params(state.params)
    key, order_key = jax.random.split(jax.random.fold_in(state.key, 2 * state.step + 1))
    keys = jax.random.split(key, batch["input_ids"].shape[0])
    experience, reward, encoded = rollout(state.params, batch, bart, simcas, config.ppo, keys)
    new_selector, optimizer_state, losses, taken = ppo_update(
        selector,
        selector_optimizer(config),
        state.selector_optimizer,
        experience,
        draw_orders(order_key, experience.mask, config.ppo),
        config.ppo,
    )
    finite = jnp.isfinite(optax.tree.norm(new_selector)) & jnp.isfinite(reward).all()
    keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    state = state.replace(
        params={**transformer, "selector": keep(new_selector, selector)},
        selector_optimizer=keep(optimizer_state, state.selector_optimizer),
    )
    count = _total(taken)
    means = {f"ppo/{name}": (jnp.where(taken, x, 0.0).sum(), count) for name, x in losses._asdict().items()}
    real = batch["chunk_mask"].any(axis=-1)
    metrics = {"reward": (jnp.where(real, reward, 0.0).sum(), _total(real)), **means}
    metrics["selector_skipped"] = (_total(~finite), jnp.ones(()))
    return state, metrics | selection_metrics(batch, encoded)


__all__ = [
    "Batch",
    "Forward",
    "Losses",
    "Metrics",
    "TrainState",
    "UpdateConfig",
    "batch_loss",
    "forward",
    "init_state",
    "learning_rate",
    "rollout",
    "selector_step",
    "smoothed_cross_entropy",
    "transformer_step",
]
