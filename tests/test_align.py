"""Alignment: the same numbers under vmap, sharded jit and shard_map; padding chunks take no part."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_simcas.method.align import align

HIDDEN = jax.random.normal(jax.random.key(0), (8, 5, 3))
MODES = ["mean", "shift", "none"]
REAL = jnp.array([True] * 6 + [False] * 2)


def over_vmap(hidden, real, mode):
    return jax.vmap(partial(align, mode=mode, axis_name="chunk"), axis_name="chunk")(hidden, real)


def test_mean_by_hand():
    hidden = jnp.array([[[1.0], [5.0], [2.0]], [[3.0], [6.0], [4.0]], [[100.0], [7.0], [100.0]]])
    out = over_vmap(hidden, jnp.array([True, True, False]), "mean")
    np.testing.assert_allclose(out[:, :, 0], [[2, 5, 3], [2, 6, 3], [100, 7, 100]])


def test_shift_by_hand():
    hidden = jnp.array([[[1.0], [5.0], [10.0]], [[2.0], [6.0], [20.0]], [[3.0], [7.0], [30.0]], [[9.0], [9.0], [9.0]]])
    out = over_vmap(hidden, jnp.array([True, True, True, False]), "shift")
    np.testing.assert_allclose(out[:, :, 0], [[3, 5, 20], [1, 6, 30], [2, 7, 10], [9, 9, 9]])


@pytest.mark.parametrize("mode", MODES)
def test_one_chunk_is_left_alone(mode):
    real = jnp.arange(8) == 0
    np.testing.assert_allclose(over_vmap(HIDDEN, real, mode)[0], HIDDEN[0], rtol=1e-6)


def test_none_and_disabled_change_nothing():
    np.testing.assert_array_equal(over_vmap(HIDDEN, REAL, "none"), HIDDEN)
    off = jax.vmap(partial(align, mode="mean", axis_name="c", enabled=False), axis_name="c")(HIDDEN, REAL)
    np.testing.assert_array_equal(off, HIDDEN)


def test_unknown_mode():
    with pytest.raises(ValueError, match="align='middle'"):
        over_vmap(HIDDEN, REAL, "middle")


@pytest.mark.parametrize("mode", MODES)
def test_sharded_over_devices(mode):
    mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
    sharding = NamedSharding(mesh, PartitionSpec("devices"))
    value = lambda hidden: (over_vmap(hidden, REAL, mode) ** 3).sum()
    expected, expected_grad = jax.value_and_grad(value)(HIDDEN)
    sharded = jax.device_put(HIDDEN, sharding)
    got, grad = jax.jit(jax.value_and_grad(value), in_shardings=sharding)(sharded)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_shard_map_with_several_chunks_a_device():
    mesh = Mesh(np.array(jax.devices()[:4]), ("chunk",))
    spec = PartitionSpec("chunk")

    @partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    def sharded(hidden, real):
        inner = partial(align, mode="mean", axis_name=("chunk_local", "chunk"))
        return jax.vmap(inner, axis_name="chunk_local")(hidden, real)

    np.testing.assert_allclose(jax.jit(sharded)(HIDDEN, REAL), over_vmap(HIDDEN, REAL, "mean"), rtol=1e-6)


def test_pmap_one_chunk_a_device():
    out = jax.pmap(partial(align, mode="mean", axis_name="chunk"), axis_name="chunk")(HIDDEN, REAL)
    np.testing.assert_allclose(out, over_vmap(HIDDEN, REAL, "mean"), rtol=1e-6)
