"""Rewards by hand."""

import jax.numpy as jnp
import numpy as np

from jax_simcas.method.document import Example, Target
from jax_simcas.method.reward import CrossAttention, Forward, Likelihood, skip_reward

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1.0, 1.0, 1.0]]))


def reward(targets, mask):
    return Likelihood()(None, None, Example(None, Target(targets, mask)), Forward(None, LOGITS, None))


def test_document_reward_is_the_geometric_mean_of_the_gold_probabilities():
    targets, mask = jnp.array([2, 0, 1, 2]), jnp.ones(4, bool)
    expected = 10_000 * (0.5 * 0.8 * 0.6) ** (1 / 3)
    np.testing.assert_allclose(reward(targets, mask), expected, rtol=1e-5)


def test_padding_takes_no_part():
    targets = jnp.array([2, 0, 1, 1])
    mask = jnp.array([True, True, True, False])
    np.testing.assert_allclose(reward(targets, mask), 10_000 * 0.4**0.5, rtol=1e-5)


def test_skip_reward_on_both_sides_of_the_hyper_length():
    count = jnp.array
    assert float(skip_reward(count(6.0), count(3), count(12), 2)) == 2.0  # R / n_sel
    assert float(skip_reward(count(6.0), count(2), count(12), 2)) == 0.5  # R / n_all
    assert float(skip_reward(count(6.0), count(2), count(12), 24)) == 0.25  # R / L_hyper


def test_candidates():
    action = jnp.array([[True, False], [True, True]])
    mask = jnp.array([[True, True], [True, True]])
    attention = jnp.array([0.5, 0.3, 0.2, 0.0])
    index = jnp.array([0, 2, 4])  # the fourth candidate was kept, but lies beyond the capacity
    got = CrossAttention(hyper_length=16).candidates(jnp.array(8.0), attention, index, action, mask)
    np.testing.assert_allclose(got, [[8 * 0.3 / 0.5, 8 / 16], [8 * 0.2 / 0.5, 0.0]], rtol=1e-6)


def test_a_skipped_candidate_is_paid_by_how_many_were_selected_not_by_how_many_had_room():
    action, mask = jnp.array([[True, False, True], [True, True, False]]), jnp.array([[True, True, True]] * 2)
    attention, index = jnp.array([0.5, 0.3, 0.2]), jnp.array([0, 2])  # room for two of the four
    got = CrossAttention(hyper_length=2).candidates(jnp.array(8.0), attention, index, action, mask)
    np.testing.assert_allclose(got[0, 1], 8 / 4)  # R / n_sel, as n_sel = 4 > L_hyper = 2
    np.testing.assert_allclose(got[1, 2], 8 / 4)


def test_masked_candidates_get_nothing():
    mask = jnp.array([[True, False]])
    got = CrossAttention().candidates(
        jnp.array(8.0), jnp.array([0.5, 0.5]), jnp.array([0]), jnp.array([[True, False]]), mask
    )
    np.testing.assert_allclose(got, [[8.0, 0.0]])
