"""The products and the attention that carry their own gradients, and the two layouts of the layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import document, model_of, stack, tiny_params
from jax import lax
from jax.test_util import check_grads

from jax_simcas.backbones.ops.attention import attend_with_weights, attention
from jax_simcas.backbones.ops.layers import ACTIVATIONS, activation, drop, gelu
from jax_simcas.backbones.ops.matmul import product
from jax_simcas.backbones.ops.memory import with_materialised_cotangent
from jax_simcas.backbones.ops.stacks import stack_layers, unstack_layers
from jax_simcas.method import steps

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2}


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def close(a, b, dtype):
    scale = float(jnp.abs(b.astype(jnp.float32)).max())
    np.testing.assert_allclose(a.astype(jnp.float32) / scale, b.astype(jnp.float32) / scale, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [(6,), (7,), (3, 5), (2, 3, 4)])
def test_product_and_its_gradients(rows, dtype):
    """Odd and even numbers of rows, since bfloat16 gradients on a CPU take the rows in two blocks."""
    x, kernel, g = normal(0, *rows, 8, dtype=dtype), normal(1, 8, 12), normal(2, *rows, 12, dtype=dtype)
    plain = lambda x, kernel: jnp.einsum("...i,io->...o", x.astype(jnp.float32), kernel)
    value, pull = jax.vjp(product, x, kernel)
    expected, expected_pull = jax.vjp(plain, x, kernel)
    close(value, expected, dtype)
    assert value.dtype == jnp.float32
    gradients = jax.jit(pull)(g.astype(jnp.float32))
    for a, b, operand in zip(gradients, expected_pull(g.astype(jnp.float32)), (x, kernel), strict=True):
        assert a.dtype == operand.dtype
        close(a, b, dtype)


def test_the_backward_products_of_bfloat16_take_bfloat16_and_give_the_kernel_float32():
    loss = lambda x, kernel: product(x, kernel).sum()
    operands = normal(0, 6, 8, dtype=jnp.bfloat16), normal(1, 8, 12)
    dots = [eqn for eqn in all_equations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*operands).jaxpr) if is_dot(eqn)]
    assert dots and all(v.aval.dtype == jnp.bfloat16 for eqn in dots for v in eqn.invars)


def is_dot(equation):
    return equation.primitive is lax.dot_general_p


def all_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from all_equations(inner)


def test_vmap_makes_one_product_of_all_rows():
    x, kernel = normal(0, 4, 6, 8), normal(1, 8, 12)
    loss = lambda kernel: jnp.square(jax.vmap(product, (0, None))(x, kernel)).sum()
    gradient = jax.make_jaxpr(jax.grad(loss))(kernel)
    dots = [e for e in all_equations(gradient.jaxpr) if is_dot(e)]
    assert len(dots) == 2  # one per platform
    assert all(dot.outvars[0].aval.shape == kernel.shape for dot in dots)
    np.testing.assert_allclose(jax.vmap(product, (1, None), 1)(x, kernel), x @ kernel, rtol=1e-5)
    each = normal(2, 4, 8, 12)
    np.testing.assert_allclose(jax.vmap(product)(x, each), x @ each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batched", [False, True])
def test_attention_has_the_value_and_gradient_of_attend(batched, dtype):
    lead = (3,) if batched else ()
    query, g = (normal(i, *lead, 2, 5, 4, dtype=dtype) for i in (0, 1))
    key, value = (normal(i, *lead, 2, 7, 4, dtype=dtype) for i in (2, 3))
    mask = jnp.broadcast_to((jnp.arange(7) < 5)[None], (*lead, 1, 7))
    plain = lambda q, k, v, m: attend_with_weights(q, k, v, m)[0]
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    over = (lambda f: jax.vmap(f)) if batched else (lambda f: f)
    out, pull = jax.vjp(lambda *x: over(attention)(*x, mask), query, key, value)
    expected, expected_pull = jax.vjp(lambda *x: over(plain)(*x, mask), *wide)
    close(out, expected, dtype)
    for a, b in zip(pull(g), expected_pull(g.astype(jnp.float32)), strict=True):
        assert a.dtype == dtype
        close(a, b, dtype)


def test_causal_attention_has_the_gradient_of_attend():
    query, key, value = (normal(i, 2, 6, 4) for i in range(3))
    mask = jnp.tril(jnp.ones((6, 6), bool))
    loss = lambda function: jax.grad(lambda *x: jnp.square(function(*x, mask)).sum(), argnums=(0, 1, 2))
    for a, b in zip(
        loss(attention)(query, key, value), loss(lambda *x: attend_with_weights(*x)[0])(query, key, value), strict=True
    ):
        close(a, b, jnp.float32)


CAUSAL = jnp.tril(jnp.ones((6, 6), bool))
TWO_PADDED = jnp.arange(6)[None] < 4


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        pytest.param(product, [(5, 4), (4, 3)], id="product"),
        pytest.param(jax.vmap(product, (0, None)), [(2, 5, 4), (4, 3)], id="product of a batch"),
        pytest.param(lambda q, k, v: attention(q, k, v, CAUSAL), [(2, 6, 4)] * 3, id="causal attention"),
        pytest.param(lambda q, k, v: attention(q, k, v, TWO_PADDED), [(2, 6, 4)] * 3, id="attention past padding"),
        pytest.param(
            jax.vmap(lambda q, k, v: attention(q, k, v, TWO_PADDED, True)), [(3, 2, 6, 4)] * 3, id="attention in chunks"
        ),
        pytest.param(lambda x: jnp.sin(with_materialised_cotangent(x)), [(7,)], id="materialised cotangent"),
    ],
)
def test_every_derivative_of_our_own_agrees_with_finite_differences(function, shapes):
    operands = [normal(seed, *shape) for seed, shape in enumerate(shapes)]
    check_grads(jax.jit(function), operands, order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_stacked_layers_hold_the_same_model():
    params, model = tiny_params(), model_of(policy="all")
    stacked = stack_layers(params)
    assert "0" not in stacked["model"]["encoder"]["layers"]
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(stacked), stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(params), params)
    batch = stack(document(0), document(1))
    gradient = jax.jit(jax.value_and_grad(lambda p: steps.batch_loss(p, batch, model, 0.1)[0]))
    (loss, plain), (same, grads) = gradient(params), gradient(stacked)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), unstack_layers(grads), plain)


@pytest.mark.parametrize("shape", [(512, 96), (3, 130, 65), (1, 4096)])
def test_dropout_keeps_its_share_and_the_mean(shape):
    x = jnp.ones(shape)
    y = np.asarray(drop(x, 0.3, jax.random.key(1)))
    share, error = (y != 0).mean(), 5 * (0.21 / x.size) ** 0.5
    assert abs(share - 0.7) < error
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-4)
    gradient = jax.grad(lambda x: drop(x, 0.3, jax.random.key(1)).sum())(x)
    np.testing.assert_array_equal(gradient, y)


def test_dropout_draws_each_value_by_itself():
    """The four that share a byte, neighbours, and chunks with keys of their own agree as often as chance has it."""
    keys = jax.random.split(jax.random.key(2), 3)
    kept = np.asarray(jax.vmap(lambda key: drop(jnp.ones((256, 128)), 0.5, key))(keys)) != 0
    blocks = kept[0].reshape(4, 64, 128)
    pairs = [(kept[0], kept[1]), (kept[0], kept[2]), (kept[0, :, 1:], kept[0, :, :-1]), (kept[0, 1:], kept[0, :-1])]
    pairs += [(a, b) for i, a in enumerate(blocks) for b in blocks[:i]]
    for a, b in pairs:
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / a.size**0.5
    again = drop(jnp.ones((256, 128)), 0.5, keys[0]) != 0
    np.testing.assert_array_equal(again, kept[0])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gradients_of_activations_are_those_of_their_formulas(name):
    x = jnp.concatenate([jnp.linspace(-12.0, 12.0, 97), jnp.array([0.0, 1e-30, -40.0, 40.0])])
    expected = jax.vmap(jax.grad(ACTIVATIONS[name]))(x)
    np.testing.assert_allclose(jax.grad(lambda x: activation(x, name).sum())(x), expected, rtol=1e-5, atol=5e-6)
    rounded = x.astype(jnp.bfloat16)
    gradient = jax.grad(lambda x: activation(x, name).astype(jnp.float32).sum())(rounded)
    assert gradient.dtype == jnp.bfloat16
    expected = jax.vmap(jax.grad(ACTIVATIONS[name]))(rounded.astype(jnp.float32))
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=2**-8, atol=5e-6)


def test_the_slope_of_gelu_is_exact_in_its_tails():
    x = np.linspace(-9.0, 9.0, 201)
    slope = [0.5 * math.erfc(-v * 0.5**0.5) + v * math.exp(-0.5 * v * v) / math.sqrt(2.0 * math.pi) for v in x]
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32)), slope, rtol=0, atol=3e-7)
