"""A seed draws the same in the programs for every platform; those for TPU and GPU are run here on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jax_simcas.backbones.ops.layers import drop
from jax_simcas.method.ppo import PPOConfig, draw_orders
from jax_simcas.method.select import random_priority

KEY = jax.random.key(7)
MASK = jnp.arange(40).reshape(2, 4, 5) % 3 > 0
DRAWS = {
    "keys": lambda: jax.random.key_data(jax.random.split(jax.random.fold_in(KEY, 2**31), 5)),
    "noise of the selection": lambda: jax.random.uniform(KEY, (6, 33)),
    "the policy random": lambda: random_priority(MASK[0], KEY),
    "dropout": lambda: drop(jnp.ones((6, 33)), 0.1, KEY),
    "order of PPO's minibatches": lambda: draw_orders(KEY, MASK, PPOConfig(minibatch_size=4)),
}


def on_the_cpu(draw, platform):
    """What the program for another platform gives."""
    made = export.export(jax.jit(draw), platforms=[platform], disabled_checks=[export.DisabledSafetyCheck.platform()])()
    return made.call(), made.mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same_to_the_last_bit(name, platform):
    expected, ours = on_the_cpu(DRAWS[name], "cpu")
    given, theirs = on_the_cpu(DRAWS[name], platform)
    jax.tree.map(np.testing.assert_array_equal, given, expected)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(DRAWS[name])(), expected)
    assert name == "dropout" or ours != theirs, "one program for both shows nothing"


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_parameters_are_the_same_to_rounding(platform):
    given, _ = on_the_cpu(lambda: jax.random.normal(KEY, (6, 33)), platform)
    np.testing.assert_allclose(given, jax.random.normal(KEY, (6, 33)), rtol=1e-6)
