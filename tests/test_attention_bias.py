"""Attention with a scale, a cap of the scores and a bias by distance, against the plain formula and its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jax_simcas.backbones.ops.attention import (
    attend_few_rows,
    attend_to_rows,
    attend_with_weights,
    attention,
)
from jax_simcas.backbones.ops.distance import sum_by_distance, to_pairs, to_pairs_by_doubling

CHUNKS, HEADS, WIDTH = 9, 2, 4  # chunks that no group of them divides


def plain(query, key, value, mask, bias=None, scale=None, cap=None):
    scores = jnp.einsum("htd,hcd->htc", query, key) * (WIDTH**-0.5 if scale is None else scale)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    if bias is not None:
        queries, keys = np.arange(query.shape[1])[:, None], np.arange(key.shape[1])
        scores = scores + bias[:, keys - queries + query.shape[1] - 1]
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("htc,hcd->htd", weights, value)


def inputs(queries, keys, chunks=CHUNKS):
    names = jax.random.split(jax.random.key(queries), 6)
    query, key, value = (
        jax.random.normal(name, (chunks, HEADS, length, WIDTH))
        for name, length in zip(names, (queries, keys, keys), strict=False)
    )
    bias = jax.random.normal(names[3], (HEADS, queries + keys - 1))
    mask = (jax.random.uniform(names[4], (chunks, 1, keys)) < 0.7).at[:, :, 0].set(True)
    return query, key, value, mask, bias, jax.random.normal(names[5], query.shape)


def over_chunks(function, query, key, value, mask, bias):
    return jax.vmap(lambda q, k, v, m: function(q, k, v, m, bias))(query, key, value, mask)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (7, 5), (1, 4), (4, 1), (6, 6)])
def test_bias_by_distance_is_that_of_every_pair(queries, keys):
    bias = jax.random.normal(jax.random.key(0), (HEADS, queries + keys - 1))
    pairs = to_pairs(bias, queries)
    np.testing.assert_array_equal(pairs, to_pairs_by_doubling(bias, queries))
    for t in range(queries):
        for c in range(keys):
            np.testing.assert_array_equal(pairs[:, t, c], bias[:, c - t + queries - 1])
    expected = np.zeros_like(bias)
    for t in range(queries):
        for c in range(keys):
            expected[:, c - t + queries - 1] += pairs[:, t, c]
    np.testing.assert_allclose(sum_by_distance(pairs), expected, rtol=1e-6)


@pytest.mark.parametrize(("scale", "cap"), [(None, None), (1.0, None), (None, 1.5), (1.0, 1.5)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_over_chunks_are_those_of_plain_autodiff(has_bias, scale, cap):
    query, key, value, mask, bias, cotangent = inputs(5, 7)
    ours = lambda q, k, v, m, b: attention(q, k, v, m, True, b, scale, cap)
    weighted = lambda q, k, v, m, b: attend_with_weights(q, k, v, m, b, scale=scale, cap=cap)[0]
    arrays = (query, key, value, bias if has_bias else None)

    def both(function):
        out, pull = jax.vjp(lambda q, k, v, b: over_chunks(function, q, k, v, mask, b), *arrays)
        return out, pull(cotangent)

    expected = jax.jit(both, static_argnums=0)(partial(plain, scale=scale, cap=cap))
    for function in (ours, weighted):
        assert_close(jax.jit(both, static_argnums=0)(function), expected)


def test_causal_attention_with_a_bias_has_the_gradients_of_plain_autodiff():
    query, key, value, _, bias, cotangent = (x[0] if x.ndim > 2 else x for x in inputs(6, 6))
    causal = jnp.tril(jnp.ones((6, 6), bool))
    pulls = [
        jax.vjp(lambda q, k, v, b, run=run: run(q, k, v, b), query, key, value, bias)
        for run in (
            lambda q, k, v, b: attention(q, k, v, causal, False, b, 1.0),
            lambda q, k, v, b: plain(q, k, v, causal, b, 1.0),
        )
    ]
    (ours, pull), (theirs, plain_pull) = pulls
    assert_close((ours, pull(cotangent)), (theirs, plain_pull(cotangent)))


def as_on_a_tpu(monkeypatch):
    """Programs that are traced now take the branches of a TPU."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *x, default, tpu=None, **_: (tpu or default)(*x))


@pytest.mark.parametrize("chunks", [3, 8, 9])
@pytest.mark.parametrize("documents", [None, 2])
def test_a_tpu_sums_the_same_gradients_over_groups_of_chunks(monkeypatch, chunks, documents):
    query, key, value, mask, bias, cotangent = inputs(5, 7, chunks * (documents or 1))
    if documents:
        query, key, value, mask, cotangent = (
            x.reshape(documents, chunks, *x.shape[1:]) for x in (query, key, value, mask, cotangent)
        )

    def both(function):
        run = partial(over_chunks, function)
        run = jax.vmap(run, (0, 0, 0, 0, None)) if documents else run
        out, pull = jax.vjp(lambda q, k, v, b: run(q, k, v, mask, b), query, key, value, bias)
        return out, pull(cotangent)

    as_on_a_tpu(monkeypatch)
    ours = lambda q, k, v, m, b: attention(q, k, v, m, True, b, 1.0)
    assert_close(jax.jit(both, static_argnums=0)(ours), both(partial(plain, scale=1.0)))


@pytest.mark.parametrize("on", ["cpu", "tpu"])
def test_each_chunk_has_a_gradient_of_its_own_where_it_is_asked_for(monkeypatch, on):
    """`vmap` of a gradient, with a bias that chunks share or their own, under masks that they share."""
    query, key, value, mask, bias, cotangent = inputs(5, 7, 8)
    own = bias * jnp.arange(1.0, 9.0)[:, None, None]
    if on == "tpu":
        as_on_a_tpu(monkeypatch)

    def gradients(function, bias, axis):
        one = lambda q, k, v, b, g: (function(q, k, v, mask[0], b) * g).sum()
        return jax.vmap(jax.grad(one, (0, 1, 2, 3)), (0, 0, 0, axis, 0))(query, key, value, bias, cotangent)

    ours = lambda q, k, v, m, b: attention(q, k, v, m, True, b, 1.0)
    for given, axis in ((bias, None), (own, 0)):
        theirs = gradients(partial(plain, scale=1.0), given, axis)
        assert theirs[3].shape == own.shape
        assert_close(jax.jit(gradients, static_argnums=(0, 2))(ours, given, axis), theirs)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_gradients_with_a_bias_are_those_of_finite_differences(cap):
    query, key, value, mask, bias, _ = inputs(5, 7, 2)
    run = lambda q, k, v, b: over_chunks(lambda *x: attention(*x[:4], True, x[4], 1.0, cap), q, k, v, mask, b)
    check_grads(jax.jit(run), (query, key, value, bias), 1, ["fwd", "rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_a_mask_of_some_rows_repeats():
    """As in grouped heads, where the rows of several queries of a token follow one another."""
    query, key, value, _, bias, cotangent = (x[0] if x.ndim > 2 else x for x in inputs(6, 6))
    some = jnp.tril(jnp.ones((3, 6), bool), 2)
    for given in (None, bias):
        pulls = [
            jax.vjp(lambda q, k, v, m=m, b=given: attention(q, k, v, m, False, b, 1.0), query, key, value)
            for m in (some, jnp.concatenate([some, some]))
        ]
        assert_close(*((out, pull(cotangent)) for out, pull in pulls))


@pytest.mark.parametrize("cap", [None, 1.5])
def test_few_rows_take_a_bias_per_pair(cap):
    query, key, value, mask, bias, _ = inputs(3, 7)
    query, key, value, mask = query[0], key[0], value[0], mask[0]
    pairs = to_pairs(bias, 3)
    expected = plain(query, key, value, mask, bias, 1.0, cap)
    rows = attend_to_rows(query, key, value, mask, pairs, scale=1.0, cap=cap)
    few = attend_few_rows(query, key.swapaxes(1, 2), value, mask, pairs, scale=1.0, cap=cap)
    assert_close((rows, few), (expected, expected))
