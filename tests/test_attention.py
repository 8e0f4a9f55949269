"""Where the decoder looked, token by token: against plain attention, and against the mean that the reward reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, document, model_of, tiny_params

from examples.backbone_toy import Toy
from jax_simcas.method.attention import most_attended
from jax_simcas.method.document import Target
from jax_simcas.method.model import SimCAS, decode_selected, encode_and_select, init_params
from jax_simcas.method.select import Compacted

TOY = SimCAS(Toy(TINY))


def compacted_of(model, params, example, capacity=None):
    return encode_and_select(params, model.replace(capacity=capacity), example.document).compacted


def spread(attended, candidates):
    """[T, 1 + K * N]: the weights of g and of all candidates."""
    rows = np.arange(len(attended.weight))[:, None]
    out = np.zeros((len(attended.weight), candidates + 2))  # the last: no candidate
    out[:, 0] = attended.document_state
    np.add.at(out, (rows, 1 + np.asarray(attended.candidate)), np.asarray(attended.weight))
    return out[:, :-1]


@pytest.mark.parametrize("model", [model_of(), TOY], ids=["bart", "toy"])
def test_the_mean_over_tokens_is_what_the_reward_reads(model):
    example, params = document(0), init_params(jax.random.key(0), model)
    compacted = compacted_of(model, params, example)
    length = len(example.target.ids)
    attended = most_attended(params, model, compacted, example.target, len(compacted.index))
    steps = Target(example.target.ids, jnp.arange(length) < length - 1)
    _, mean = decode_selected(params, model, compacted, steps)
    expected = np.zeros(example.document.token_mask[:, 1:].size + 2)
    expected[0] = mean[0]
    np.add.at(expected, 1 + np.asarray(compacted.index), np.asarray(mean[1:]))
    got = spread(attended, len(expected) - 2)
    np.testing.assert_allclose(got.mean(axis=0), expected[:-1], atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    assert (np.diff(attended.weight, axis=1) <= 0).all()


def test_toy_attention_by_hand():
    params = init_params(jax.random.key(1), TOY)
    states = jax.random.normal(jax.random.key(2), (5, TOY.backbone.width))
    compacted = Compacted(states, jnp.array([True, True, True, True, False]), jnp.array([2, 5, 7, 9]), jnp.array(0))
    ids = jnp.array([2, 0, 17, 4])
    attended = most_attended(params, TOY, compacted, Target(ids, jnp.ones(4, bool)), 2)
    query = params["encoder"]["embedding"][ids[:3]]
    weights = np.asarray(jax.nn.softmax(query @ states[:4].T, axis=-1))
    np.testing.assert_allclose(attended.document_state, weights[:, 0], rtol=1e-5)
    best = np.argsort(-weights[:, 1:], axis=1)[:, :2]
    assert np.asarray(attended.candidate).tolist() == np.array([2, 5, 7])[best].tolist()
    np.testing.assert_allclose(attended.weight, np.take_along_axis(weights[:, 1:], best, axis=1), rtol=1e-5)


def test_later_tokens_change_nothing_and_missing_places_weigh_nothing():
    model, params = model_of(), tiny_params()
    example = document(3)
    compacted = compacted_of(model, params, example, capacity=3)
    few = compacted._replace(mask=compacted.mask.at[2].set(False), index=compacted.index.at[1].set(21))
    ids = example.target.ids
    whole = most_attended(params, model, few, example.target, 2)
    changed = most_attended(params, model, few, Target(ids.at[4:].set(9), example.target.mask), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:4], b[:4], atol=1e-6), whole, changed)
    assert (np.asarray(whole.candidate)[:, 1] == 21).all() and not np.asarray(whole.weight)[:, 1].any()
