"""Alignment: the same numbers under vmap, sharded jit and shard_map; padding chunks take no part."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import several_devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_simcas.method.align import ALIGNMENTS, align, chunk_mean, chunk_shift

HIDDEN = jax.random.normal(jax.random.key(0), (8, 5, 3))
REAL = jnp.array([True] * 6 + [False] * 2)


every_alignment = pytest.mark.parametrize("exchange", ALIGNMENTS.values(), ids=ALIGNMENTS)


def over_vmap(hidden, real, exchange):
    return jax.vmap(partial(align, exchange=exchange, axis_name="chunk"), axis_name="chunk")(hidden, real)


def test_mean_by_hand():
    hidden = jnp.array([[[1.0], [5.0], [2.0]], [[3.0], [6.0], [4.0]], [[100.0], [7.0], [100.0]]])
    out = over_vmap(hidden, jnp.array([True, True, False]), chunk_mean)
    np.testing.assert_allclose(out[:, :, 0], [[2, 5, 3], [2, 6, 3], [100, 7, 100]])


def test_shift_by_hand():
    hidden = jnp.array([[[1.0], [5.0], [10.0]], [[2.0], [6.0], [20.0]], [[3.0], [7.0], [30.0]], [[9.0], [9.0], [9.0]]])
    out = over_vmap(hidden, jnp.array([True, True, True, False]), chunk_shift)
    np.testing.assert_allclose(out[:, :, 0], [[3, 5, 20], [1, 6, 30], [2, 7, 10], [9, 9, 9]])


@every_alignment
def test_one_chunk_is_left_alone(exchange):
    real = jnp.arange(8) == 0
    np.testing.assert_allclose(over_vmap(HIDDEN, real, exchange)[0], HIDDEN[0], rtol=1e-6)


def test_none_and_disabled_change_nothing():
    np.testing.assert_array_equal(over_vmap(HIDDEN, REAL, None), HIDDEN)
    off = jax.vmap(partial(align, exchange=chunk_mean, axis_name="c", enabled=False), axis_name="c")(HIDDEN, REAL)
    np.testing.assert_array_equal(off, HIDDEN)


def test_an_exchange_of_ones_own():
    """Chunks swap in pairs: what a researcher would write."""
    swapped = lambda boundary, real, axis: jax.lax.pshuffle(boundary, axis, [1, 0, 3, 2, 5, 4, 7, 6])
    out = over_vmap(HIDDEN, jnp.ones(8, bool), swapped)
    np.testing.assert_array_equal(out[0, [0, -1]], HIDDEN[1, [0, -1]])
    np.testing.assert_array_equal(out[:, 1:-1], HIDDEN[:, 1:-1])


@pytest.mark.parametrize("on", ["cpu", "tpu"])
@every_alignment
def test_wide_states_are_aligned_alike(monkeypatch, exchange, on):
    """In value and gradient, with what a TPU runs as well."""
    if on == "tpu":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, tpu, default: tpu(*x))

    def both(wide):
        run = partial(align, exchange=exchange, axis_name="chunk", wide=wide)
        out, pull = jax.vjp(lambda x: jax.vmap(run, axis_name="chunk")(x, REAL), HIDDEN)
        return out, pull(jnp.cos(out))[0]

    for ours, theirs in zip(both(True), both(False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@every_alignment
def test_sharded_over_devices(exchange):
    mesh = Mesh(several_devices(4), ("devices",))
    sharding = NamedSharding(mesh, PartitionSpec("devices"))
    value = lambda hidden: (over_vmap(hidden, REAL, exchange) ** 3).sum()
    expected, expected_grad = jax.value_and_grad(value)(HIDDEN)
    sharded = jax.device_put(HIDDEN, sharding)
    got, grad = jax.jit(jax.value_and_grad(value), in_shardings=sharding)(sharded)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_shard_map_with_several_chunks_per_device():
    mesh = Mesh(several_devices(4), ("chunk",))
    spec = PartitionSpec("chunk")

    @partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    def sharded(hidden, real):
        inner = partial(align, exchange=chunk_mean, axis_name=("chunk_local", "chunk"))
        return jax.vmap(inner, axis_name="chunk_local")(hidden, real)

    np.testing.assert_allclose(jax.jit(sharded)(HIDDEN, REAL), over_vmap(HIDDEN, REAL, chunk_mean), rtol=1e-6)


def test_pmap_one_chunk_per_device():
    out = jax.pmap(partial(align, exchange=chunk_mean, axis_name="chunk"), axis_name="chunk")(HIDDEN, REAL)
    np.testing.assert_allclose(out, over_vmap(HIDDEN, REAL, chunk_mean), rtol=1e-6)
