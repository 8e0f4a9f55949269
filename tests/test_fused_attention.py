"""Attention in one fused kernel: the numbers of the plain one, and where it is chosen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY

from jax_simcas.backbones.ops import attention as ops
from jax_simcas.backbones.ops.attention import attend_with_weights, attention, fused_attention
from jax_simcas.common.errors import UserError
from jax_simcas.run.method_config import SimcasConfig, backbone_of, check_machine

on_gpu = pytest.mark.skipif(not ops.has_cudnn(), reason="needs an NVIDIA GPU with cuDNN")
slow_here = () if ops.has_cudnn() else pytest.mark.slow  # the check of a GPU leaves slow tests out
# cuDNN's kernel runs on a GPU; that what surrounds it is right, XLA's can show anywhere.
KERNELS = [
    pytest.param("xla", jnp.float32, 2e-5, id="xla, float32"),
    pytest.param("cudnn", jnp.bfloat16, 2e-2, id="cudnn, bfloat16", marks=on_gpu),
]


def operands(dtype, chunks, queries, keys, width=16, heads=3):
    make = lambda seed, count: jax.random.normal(jax.random.key(seed), (chunks, heads, count, width)).astype(dtype)
    return make(0, queries), make(1, keys), make(2, keys), make(3, queries)


def close(a, b, tolerance):
    scale = np.abs(np.asarray(b, np.float32)).max()
    np.testing.assert_allclose(np.asarray(a, np.float32) / scale, np.asarray(b, np.float32) / scale, atol=tolerance)


def lengths(counts, keys):
    return jnp.arange(keys) < jnp.array(counts)[:, None, None]


def causal(count):
    return jnp.broadcast_to(jnp.tril(jnp.ones((count, count), bool)), (2, count, count))


@pytest.mark.parametrize(("kernel", "dtype", "tolerance"), KERNELS)
@pytest.mark.parametrize(
    ("queries", "keys", "mask"),
    [
        pytest.param(32, 32, lengths([32, 19], 32), id="a whole chunk and a padded one"),
        pytest.param(
            32,
            32,
            lengths([20, 9], 32).at[:, :, -1].set(True),
            id="PAD between content and EOS",
            marks=slow_here,
        ),
        pytest.param(8, 37, lengths([37, 1], 37), id="cross-attention, of an odd number of states"),
        pytest.param(24, 24, causal(24), id="causal", marks=slow_here),
    ],
)
def test_the_fused_kernel_has_the_values_and_gradients_of_the_plain_one(kernel, dtype, tolerance, queries, keys, mask):
    query, key, value, cotangent = operands(dtype, len(mask), queries, keys)
    fused = jax.vmap(partial(fused_attention, implementation=kernel))
    plain = jax.vmap(lambda q, k, v, m: attend_with_weights(q, k, v, m)[0])
    out, pull = jax.vjp(lambda *x: fused(*x, mask), query, key, value)
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    expected, expected_pull = jax.vjp(lambda *x: plain(*x, mask), *wide)
    assert out.dtype == dtype
    close(out, expected, tolerance)
    for a, b in zip(pull(cotangent), expected_pull(cotangent.astype(jnp.float32)), strict=True):
        assert a.dtype == dtype
        close(a, b, tolerance)


@pytest.mark.parametrize(("kernel", "dtype", "tolerance"), KERNELS)
def test_where_nothing_counts_values_and_gradients_are_finite(kernel, dtype, tolerance):
    query, key, value, cotangent = operands(dtype, 1, 8, 8)
    run = lambda q, k, v: fused_attention(q[0], k[0], v[0], jnp.zeros((1, 8), bool), implementation=kernel)
    out, pull = jax.vjp(run, query, key, value)
    assert all(jnp.isfinite(x).all() for x in (out, *pull(cotangent[0])))


@on_gpu
def test_on_a_gpu_it_is_one_kernel():
    query, key, value, _ = operands(jnp.bfloat16, 1, 64, 64)
    run = jax.jit(lambda *x: fused_attention(*x, jnp.ones((1, 64), bool), True))
    assert "__cudnn$fmha" in run.lower(query[0], key[0], value[0]).as_text()


@pytest.mark.parametrize(
    ("dtype", "width", "queries", "rows", "fits"),
    [
        (jnp.bfloat16, 64, 512, 1, True),
        (jnp.float16, 128, 7, 1, True),
        (jnp.float32, 64, 512, 1, False),
        (jnp.bfloat16, 60, 512, 1, False),
        (jnp.bfloat16, 256, 512, 1, False),
        (jnp.bfloat16, 64, 7, 7, False),
        (jnp.bfloat16, 64, 8, 8, True),
    ],
)
def test_what_fits_cudnn(dtype, width, queries, rows, fits):
    assert ops.fits_cudnn(jnp.zeros((2, queries, width), dtype), jnp.ones((rows, queries), bool)) is fits


def test_an_attention_that_cannot_be_had_is_named():
    with pytest.raises(ValueError, match="attention='cudnn' needs dtype='bfloat16'"):
        SimcasConfig(attention="cudnn")
    with pytest.raises(ValueError, match=r"given float32, 64 and \[1, 8\]"):
        fused_attention(*(jnp.zeros((2, 8, 64)),) * 3, jnp.ones((1, 8), bool))
    assert backbone_of("bart", TINY, "xla").attend is attention
    if not ops.has_cudnn():
        with pytest.raises(UserError, match="'cudnn' needs an NVIDIA GPU"):
            check_machine(SimcasConfig(attention="cudnn", dtype="bfloat16"))
