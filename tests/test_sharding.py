"""The mesh: the table from dimensions to axes, and one device against eight for every axis."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from helpers import TINY, document, stack

from jax_simcas.bart.layers import stack_layers
from jax_simcas.model import SimcasConfig, init_params
from jax_simcas.ppo import PPOConfig
from jax_simcas.sharding import (
    MeshConfig,
    batch_shardings,
    make_mesh,
    state_shardings,
)
from jax_simcas.update import UpdateConfig, batch_loss, init_state, selector_step, transformer_step

BART = dataclasses.replace(TINY, d_model=32, encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.1)
SIMCAS = SimcasConfig(capacity=40, max_input_len=64)
CONFIG = UpdateConfig(max_lr=1e-3, warmup=1, accumulate_step=2, ppo=PPOConfig(minibatch_size=4))
BATCH = jax.tree.map(
    np.asarray,
    stack(*(document(seed, chunks=8 - seed % 3, padding_chunks=seed % 3, chunk_length=8) for seed in range(8))),
)
MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, chunk=8),
    MeshConfig(data=1, tensor=2, fsdp=4),
    MeshConfig(data=2, chunk=4),
    MeshConfig(data=1, fsdp=2, chunk=2, tensor=2),
]
named = partial(
    pytest.mark.parametrize, "config", ids=lambda c: ",".join(f"{n}{s}" for n, s in dataclasses.asdict(c).items())
)


def start():
    params = init_params(jax.random.key(0), BART, SIMCAS)
    return init_state(stack_layers(params), CONFIG, jax.random.key(1))


def both_steps(state, batch):
    for step in (transformer_step, transformer_step, selector_step):
        state, metrics = step(state, batch, bart=BART, simcas=SIMCAS, config=CONFIG)
    return state, metrics


def gradients(params, batch):
    loss = lambda params: batch_loss(params, batch, BART, SIMCAS, 0.1, policy="sample", key=jax.random.key(3))[0]
    return jax.value_and_grad(loss)(params)


def on_mesh(config, function, *trees):
    """`function` of trees that lie on a mesh of eight devices."""
    mesh = make_mesh(config)
    state, batch = trees
    with jax.set_mesh(mesh):
        state = jax.device_put(state, state_shardings(mesh, state))
        batch = jax.device_put(batch, batch_shardings(mesh, batch))
        return jax.device_get(jax.jit(function)(state, batch))


def close(a, b, rtol=2e-4, atol=2e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol, atol, err_msg=jax.tree_util.keystr(path))


def readable(state):
    return state.replace(key=jax.random.key_data(state.key))


@pytest.fixture(scope="module")
def alone():
    """Gradients, and the states after both updates, on one device."""
    state = start()
    return jax.device_get(
        (jax.jit(gradients)(state.params, BATCH), jax.jit(lambda s, b: readable(both_steps(s, b)[0]))(state, BATCH))
    )


@named(MESHES)
def test_eight_devices_give_the_gradients_of_one(config, alone):
    close(on_mesh(config, gradients, start().params, BATCH), alone[0])


@named(MESHES)
def test_eight_devices_give_the_updates_of_one(config, alone):
    close(on_mesh(config, lambda s, b: readable(both_steps(s, b)[0]), start(), BATCH), alone[1], 2e-3, 2e-4)
