"""Groups of chunks that take turns on a TPU: the values of a `vmap`, and memory that nobody fills first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_simcas.backbones.ops import groups


def softmax_and_sum(x, y, shared):
    return jax.nn.softmax(x @ y.T + shared, axis=-1), x.sum(axis=-1).astype(jnp.bfloat16)


@pytest.mark.parametrize("chunks", [4, 6, 12])  # one group; chunks that groups do not divide; three groups
def test_groups_give_what_vmap_gives(chunks):
    x, y = jax.random.normal(jax.random.key(0), (2, chunks, 3, 5))
    shared = jax.random.normal(jax.random.key(1), (3, 3))
    axes = (0, 0, None)
    expected = jax.vmap(softmax_and_sum, axes)(x, y, shared)
    jax.tree.map(
        np.testing.assert_array_equal, jax.vmap(groups._grouped(softmax_and_sum), axes)(x, y, shared), expected
    )


def test_groups_of_several_documents_give_what_vmap_gives():
    x, y = jax.random.normal(jax.random.key(0), (2, 3, 8, 4, 5))
    shared = jnp.zeros((4, 4))
    documents = lambda f: jax.jit(jax.vmap(jax.vmap(f, (0, 0, None)), (0, 0, None)))(x, y, shared)
    jax.tree.map(np.testing.assert_array_equal, documents(groups._grouped(softmax_and_sum)), documents(softmax_and_sum))


def test_no_zeros_are_written_for_what_groups_give():
    x = jnp.ones((8, 3, 5))
    doubled = jax.jit(jax.vmap(groups._grouped(lambda x: x * 2.0)))
    text = doubled.trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.while" in text and "AllocateBuffer" in text
