"""The two updates: who moves, when nothing moves, accumulation, and that they learn."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import TINY, document, model_of, stack, tiny_params

from jax_simcas.backbones.ops.stacks import stack_layers
from jax_simcas.method.document import Target
from jax_simcas.method.optimizers import inverse_sqrt
from jax_simcas.method.ppo import PPOConfig
from jax_simcas.method.reward import target_log_prob
from jax_simcas.method.steps import (
    batch_loss,
    init_state,
    selector_step,
    smoothed_cross_entropy,
    split_params,
    transformer_step,
    updated_if,
)
from jax_simcas.run.method_config import UpdateConfig
from jax_simcas.run.parity_cases import largest_gap

MODEL = model_of()
CONFIG = UpdateConfig(max_lr=0.02, warmup=4, accumulate_step=1, ppo=PPOConfig(minibatch_size=4))
BATCH = stack(*(document(i, chunks=c, padding_chunks=3 - c) for i, c in enumerate((3, 2))))


@cache
def stacked_params():
    """As training has them, which compiles one layer of each stack."""
    return stack_layers(tiny_params())


def fresh(config=CONFIG, params=None):
    params = stacked_params() if params is None else params
    return init_state(params, config.transformer(steps=100), config.selector(), jax.random.key(1))


@cache  # one compilation for all tests
def update_transformer(config=CONFIG):
    optimizer = config.transformer(steps=100)
    return jax.jit(partial(transformer_step, model=MODEL, optimizer=optimizer, label_smoothing=config.label_smoothing))


@cache
def update_selector():
    return jax.jit(partial(selector_step, model=MODEL, optimizer=CONFIG.selector(), ppo=CONFIG.ppo))


def test_each_update_moves_its_own_side_only():
    start = fresh()
    state, metrics = update_transformer()(start, BATCH)
    before, after = split_params(start.params), split_params(state.params)
    assert largest_gap(before[0], after[0]) > 0 and largest_gap(before[1], after[1]) == 0
    assert float(metrics["skipped"][0]) == 0 and state.step == 1
    state, metrics = update_selector()(start, BATCH)
    after = split_params(state.params)
    assert largest_gap(before[0], after[0]) == 0 and largest_gap(before[1], after[1]) > 0
    assert float(metrics["reward"][0]) > 0 and metrics["reward"][1] == 2


def test_the_output_bias_is_not_trained():
    state, _ = update_transformer()(fresh(), BATCH)
    assert not state.params["final_logits_bias"].any()


def test_smoothed_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    loss = smoothed_cross_entropy(logits, Target(jnp.array([2, 0, 1]), jnp.ones(3, bool)), 0.1)
    spread = [-np.log([0.5, 0.25, 0.25]).mean(), -np.log([0.1, 0.8, 0.1]).mean()]
    expected = np.mean([0.9 * -np.log(0.5) + 0.1 * spread[0], 0.9 * -np.log(0.8) + 0.1 * spread[1]])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_loss_reads_no_logits_behind_the_target():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]))
    target = Target(jnp.array([2, 0, 1, 1]), jnp.array([True, True, True, False]))
    gradient = jax.grad(lambda logits: smoothed_cross_entropy(logits, target, 0.1))(logits)
    assert gradient[:2].all() and not gradient[2:].any()
    total, count = target_log_prob(logits, target)
    np.testing.assert_allclose([total, count], [np.log(0.5 * 0.8), 2], rtol=1e-5)


def test_learning_rate_peaks_at_the_end_of_the_warmup():
    rate = inverse_sqrt(max_lr=1e-2, warmup=100)
    values = [float(rate(s)) for s in range(300)]
    assert np.argmax(values) == 99 and values[99] == pytest.approx(1e-3)
    assert values[0] == pytest.approx(1e-2 * 100**-1.5)


def test_accumulation_equals_the_larger_batch():
    config = UpdateConfig(max_lr=0.02, warmup=4, accumulate_step=2)
    action = jnp.ones((2, 3, 7), bool)
    run = update_transformer(config)
    whole, _ = update_transformer()(fresh(), BATCH, action=action)
    state = fresh(config)
    for i in range(2):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], BATCH)
        state, _ = run(state, part, action=action[:1])
        if i == 0:
            assert largest_gap(state.params, fresh().params) == 0
    # Adam turns the sign of a near-zero gradient into a whole step, so compare all but a few.
    gaps = [
        np.abs(np.asarray(a - b)).ravel()
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True)
    ]
    assert np.quantile(np.concatenate(gaps), 0.99) < 1e-5


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    params = stacked_params()
    params = params | {"final_logits_bias": params["final_logits_bias"].at[0, 5].set(jnp.nan)}
    start = fresh(params=params)
    state, metrics = update_transformer()(start, BATCH)
    assert state.skipped == 1 and state.skipped_in_row == 1 and metrics["skipped"][0] == 1
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    good = state.replace(params=stacked_params())
    state, _ = update_transformer()(good, BATCH)
    assert state.skipped == 1 and state.skipped_in_row == 0
    state, metrics = update_selector()(start, BATCH)
    assert metrics["selector_skipped"][0] == 1
    assert largest_gap(split_params(state.params)[1], split_params(start.params)[1]) == 0


@pytest.mark.parametrize("devices", [1, 8])
def test_an_update_is_made_or_left_out_whole(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)  # a single one branches
    params, grads, optimizer = {"w": jnp.arange(4.0)}, {"w": jnp.full(4, 0.5)}, optax.adam(0.1)
    state = optimizer.init(params)
    run = jax.jit(lambda finite: updated_if(finite, optimizer, grads, params, state))
    jax.tree.map(np.testing.assert_array_equal, run(jnp.array(False)), (params, state))
    updates, state_after = optimizer.update(grads, state, params)
    expected = (optax.apply_updates(params, updates), state_after)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), run(jnp.array(True)), expected)
    assert ("cond" in str(jax.make_jaxpr(run)(jnp.array(True)))) == (devices == 1)


def test_the_same_key_gives_the_same_step_and_another_step_another_draw():
    run = update_transformer()
    (a, first), (b, again) = run(fresh(), BATCH), run(fresh(), BATCH)
    assert largest_gap(a.params, b.params) == 0 and first["loss"][0] == again["loss"][0]
    _, later = run(fresh().replace(step=jnp.array(5, jnp.int32)), BATCH)
    assert later["selection/kept"][0] != first["selection/kept"][0]


def test_dropout_is_on_in_training_only():
    wet = dataclasses.replace(TINY, dropout=0.3, attention_dropout=0.1, activation_dropout=0.1)
    params = stacked_params()

    def whole(bart, train):
        return batch_loss(params, BATCH, model_of(bart, policy="all"), 0.0, key=jax.random.key(0), train=train)

    loss = lambda bart, train: float(jax.jit(lambda: whole(bart, train)[0])())
    wet_loss = loss(wet, True)
    assert loss(wet, False) == pytest.approx(loss(TINY, False)) != wet_loss and np.isfinite(wet_loss)


@pytest.mark.slow
def test_transformer_learns_one_batch():
    run, state = update_transformer(), fresh()
    losses = []
    for _ in range(60):
        state, metrics = run(state, BATCH)
        losses.append(float(metrics["nll"][0] / metrics["nll"][1]))
    assert losses[-1] < 0.5 * losses[0]
