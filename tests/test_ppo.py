"""PPO: advantages by hand, masked equals subset, orders, and when it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_simcas.common.sharding import make_mesh
from jax_simcas.method.ppo import (
    Minibatch,
    Orders,
    PPOConfig,
    Rollout,
    advantages,
    draw_orders,
    normalise,
    ppo_losses,
    ppo_update,
)
from jax_simcas.method.select import action_logits, init_selector

K, N, D = 3, 5, 4


def rollout(seed=0, documents=2, mask=None):
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    rows = (documents, K, N)
    mask = jnp.ones(rows, bool) if mask is None else mask
    action = jax.random.bernoulli(next(keys), 0.5, rows)
    log_prob = jnp.full(rows, jnp.log(0.5))
    taken = (action, log_prob, *(normal(*rows) for _ in range(3)), mask)
    return Rollout(normal(documents, K, N + 1, D), normal(documents, K, D), *taken)


def test_advantages_by_hand():
    reward = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    value = jnp.array([[0.5, 1.0], [1.5, 2.5]])
    last = np.array([3 - 1.5, 4 - 2.5])
    first = np.array([1 + 0.9 * 2.0 - 0.5, 2 + 0.9 * 2.0 - 1.0]) + 0.9 * 0.8 * last
    advantage, returns = advantages(reward, value, jnp.ones((2, 2), bool), 0.9, 0.8)
    np.testing.assert_allclose(advantage, [first, last], rtol=1e-6)
    np.testing.assert_allclose(returns, advantage + value, rtol=1e-6)


def test_without_discount_the_advantage_is_reward_minus_value():
    reward, value = jax.random.normal(jax.random.key(0), (2, K, N))
    advantage, _ = advantages(reward, value, jnp.ones((K, N), bool), 0.0, 0.95)
    np.testing.assert_allclose(advantage, reward - value, rtol=1e-6)


def test_masked_chunks_after_the_end_change_nothing():
    reward, value = jax.random.normal(jax.random.key(0), (2, K, N))
    alone, _ = advantages(reward[:2], value[:2], jnp.ones((2, N), bool), 0.998, 0.95)
    padded, _ = advantages(reward, value, jnp.ones((K, N), bool).at[2].set(False), 0.998, 0.95)
    np.testing.assert_allclose(padded[:2], alone, rtol=1e-6)
    assert not padded[2].any()


def test_normalise_uses_the_unbiased_deviation():
    x = jnp.array([1.0, 2.0, 4.0, 9.0, 1e6])
    got = normalise(x, jnp.arange(5) < 4)[:4]
    np.testing.assert_allclose(got, (np.asarray(x[:4]) - 4) / np.std(x[:4], ddof=1), rtol=1e-5)
    assert normalise(jnp.array([3.0]), jnp.array([True])) == 0.0


def test_losses_of_a_masked_minibatch_equal_those_of_the_subset():
    selector, rows, config = init_selector(jax.random.key(0), D), rollout(), PPOConfig()
    keep = jnp.array([True, False, True, True, False])
    names = ("action", "log_prob", "value", "advantage", "returns")
    fields = {name: getattr(rows, name)[0, 1] for name in names}
    candidates, state = rows.hidden[0, 1, 1:], rows.state[0, 1]
    whole = ppo_losses(selector, Minibatch(candidates, state, **fields, mask=keep), config)
    subset = {name: x[keep] for name, x in fields.items()}
    part = ppo_losses(selector, Minibatch(candidates[keep], state, **subset, mask=jnp.ones(3, bool)), config)
    np.testing.assert_allclose(whole, part, rtol=1e-5, atol=1e-6)


def test_orders_visit_every_real_candidate_once_per_epoch():
    mask = jnp.ones((2, K, N), bool).at[1, 2].set(False).at[0, 2, 3:].set(False)
    config = PPOConfig(minibatch_size=2)
    orders = draw_orders(jax.random.key(0), mask, config)
    assert orders.token.shape == (2, 2, K, 6) and orders.chunk.shape == (2, 3, 2, K)
    np.testing.assert_array_equal(np.sort(orders.token[..., :N], axis=-1), np.broadcast_to(np.arange(N), (2, 2, K, N)))
    np.testing.assert_array_equal(np.sort(orders.chunk, axis=-1), np.broadcast_to(np.arange(K), (2, 3, 2, K)))
    assert (orders.chunk[:, :, 1, -1] == 2).all()  # the chunk of pure padding comes last
    assert set(np.asarray(orders.token[0, 0, 2, :3])) == {0, 1, 2}
    assert (orders.token[..., N:] == N).all()


def update(rows, config, seed=0, rate=1e-2):
    selector, optimizer = init_selector(jax.random.key(5), D), optax.adam(rate)
    orders = draw_orders(jax.random.key(seed), rows.mask, config)
    run = jax.jit(lambda s, r, o: ppo_update(s, optimizer, optimizer.init(s), r, o, config))
    return run(selector, rows, orders)


def test_a_document_of_pure_padding_changes_nothing():
    config = PPOConfig(minibatch_size=2)
    one = jax.tree.map(lambda x: x[:1], rollout())
    selector, optimizer = init_selector(jax.random.key(5), D), optax.adam(1e-2)
    orders = draw_orders(jax.random.key(1), one.mask, config)
    alone = ppo_update(selector, optimizer, optimizer.init(selector), one, orders, config)
    empty = rollout(3, 1, jnp.zeros((1, K, N), bool))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, empty)
    extra = draw_orders(jax.random.key(2), empty.mask, config)
    token = jnp.concatenate([orders.token, extra.token], axis=1)
    chunk = jnp.concatenate([orders.chunk, extra.chunk], axis=2)
    padded = ppo_update(selector, optimizer, optimizer.init(selector), both, Orders(token, chunk), config)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [N, 2])
def test_the_order_of_candidates_matters_between_minibatches_only(size):
    rows, config = rollout(), PPOConfig(minibatch_size=size)
    selector, optimizer = init_selector(jax.random.key(5), D), optax.adam(1e-2)
    orders = draw_orders(jax.random.key(0), rows.mask, config)
    fill = orders.token.shape[-1] - N
    turned = jnp.pad(orders.token[..., :N][..., ::-1], ((0, 0),) * 3 + ((0, fill),), constant_values=N)
    run = lambda token: ppo_update(
        selector, optimizer, optimizer.init(selector), rows, Orders(token, orders.chunk), config
    )
    one, other = (
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(run(token)[0])]) for token in (orders.token, turned)
    )
    gap = float(jnp.abs(one - other).max())
    assert gap < 1e-6 if size == N else gap > 1e-4


def test_visits_without_a_real_candidate_are_not_steps():
    rows = rollout(documents=1, mask=jnp.ones((1, K, N), bool).at[:, 1:, 2:].set(False))
    *_, taken = update(rows, PPOConfig(minibatch_size=2))
    # two real candidates in two chunks (one round), five in the other (three rounds), two epochs
    assert int(taken.sum()) == 2 * (2 * 1 + 3)


def test_stops_after_an_epoch_that_moved_too_far():
    rows = rollout()
    *_, taken = update(rows, PPOConfig(epochs=3, max_kl=0.0))
    assert int(taken.sum()) == K
    *_, taken = update(rows, PPOConfig(epochs=3, max_kl=1e9))
    assert int(taken.sum()) == 3 * K


def test_learns_to_keep_what_is_rewarded():
    rows = rollout(documents=1)
    good = rows.hidden[:, :, 1:, 0] > 0
    rows = rows._replace(advantage=jnp.where(rows.action == good, 1.0, -1.0), returns=rows.value)
    config = PPOConfig(epochs=40, max_kl=1e9, clip=0.9)
    selector, *_ = update(rows, config)
    logits = jax.vmap(lambda h, s: action_logits(selector, h, s))(rows.hidden[0, :, 1:], rows.state[0])
    before = jnp.mean(rows.action[0] == good[0])
    assert jnp.mean((logits[..., 1] > logits[..., 0]) == good[0]) >= 0.9 > before


@pytest.mark.parametrize("field", ["epochs", "minibatch_size"])
def test_bad_settings_are_named(field):
    with pytest.raises(ValueError, match=f"^{field}=0: expected at least 1"):
        PPOConfig(**{field: 0})


def test_devices_take_their_part_of_every_step():
    """Two documents on four devices each: the loops carry a quarter of each kernel and of its moments."""
    selector, rows, optimizer = init_selector(jax.random.key(0), D), rollout(), optax.adam(1e-2)
    config = PPOConfig(minibatch_size=3, max_kl=1e9)
    orders = draw_orders(jax.random.key(1), rows.mask, config)

    def update(selector, rows, orders):
        return ppo_update(selector, optimizer, optimizer.init(selector), rows, orders, config)

    mesh = make_mesh({"data": 2, "fsdp": 1, "chunk": 2, "tensor": 2}, jax.devices())
    documents = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(update).lower(selector, jax.device_put(rows, documents), orders).compile()
        shared = jax.device_get(compiled(selector, jax.device_put(rows, documents), orders))
    alone = jax.device_get(jax.jit(update)(selector, rows, orders))
    for got, expected in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    loops = [line for line in compiled.as_text().splitlines() if " while(" in line]
    assert any("f32[4,2]" in line and "f32[2,8]" in line for line in loops)
    assert not any("f32[4,8]" in line or "f32[8,8]" in line for line in loops)
