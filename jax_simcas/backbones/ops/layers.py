"""Layers that families share: dense, layer norm, activations, dropout. Linen modules with float32 parameters."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Float, UInt8

from jax_simcas.backbones.ops.matmul import Dimensions, product
from jax_simcas.backbones.ops.memory import DROPOUT_MASK, PRODUCT, materialise, with_materialised_cotangent

TRANSPOSED = "kernel_transposed"  # what a dense layer has in place of `kernel` when its inputs have few rows
LAYER_NORM_EPSILON = 1e-5


class Dense(nn.Module):
    """y = x W + b: operands in `dtype`, products summed in float32, result in `dtype`.

    dimensions: what those of W mean on a mesh; see `product`.
    """

    features: int
    dtype: Any
    init_std: float
    dimensions: Dimensions
    learn_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        if self.has_variable("params", TRANSPOSED):
            kernel, bias = (self.get_variable("params", name) for name in (TRANSPOSED, "bias"))
            return (few_rows(x.astype(self.dtype), kernel) + bias).astype(self.dtype)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        bias = bias if self.learn_bias else lax.stop_gradient(bias)
        y = product(x.astype(self.dtype), kernel, self.dimensions) + bias
        return checkpoint_name(y.astype(self.dtype), PRODUCT)


class LayerNorm(nn.Module):
    """Layer normalisation in float32, result in `dtype`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return (centred * lax.rsqrt(variance + LAYER_NORM_EPSILON) * scale + bias).astype(self.dtype)


def few_rows(x: Float[Array, "T I"], transposed: Float[Array, "O I"]) -> Float[Array, "T O"]:
    """x W from W^T, summed in float32.

    For few rows the cost is streaming W. As the left operand, contracted over its last axis, XLA:CPU streams it without
    a relayout; as the right operand it is copied at every call (BART-base, 4 rows: 1.3 to 3 times as long).
    """
    product = jnp.einsum("oi,ti->ot", transposed, x, preferred_element_type=jnp.float32)
    return lax.optimization_barrier(product).T  # without a barrier the transpose is folded into the product again


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def activation(x: Float[Array, ...], name: str) -> Float[Array, ...]:
    """The named activation, computed in float32.

    The backward pass multiplies with a slope that the forward pass gives in the dtype of x: both come out of the
    product before, where x alone would be read, and the slope computed, once more.
    """
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


def _activation_and_slope(x: Array, name: str) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    value, slope = jax.jvp(ACTIVATIONS[name], (wide,), (jnp.ones_like(wide),))  # one number depends on one
    return materialise((value.astype(x.dtype), slope.astype(x.dtype)))


def _activation_backward(name: str, slope: Array, cotangent: Array) -> tuple[Array]:
    return ((cotangent.astype(jnp.float32) * slope.astype(jnp.float32)).astype(slope.dtype),)


activation.defvjp(_activation_and_slope, _activation_backward)


@jax.custom_jvp
def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    return 0.5 * x * (1.0 + lax.erf(x * 2.0**-0.5))


@gelu.defjvp
def _gelu_derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """exp as it is: the derivative that jax has of erf corrects its last digits, at some cost."""
    (x,), (move,) = primals, tangents
    below = 0.5 * (1.0 + lax.erf(x * 2.0**-0.5))
    density = jnp.exp(-0.5 * jnp.square(x)) * (2.0 * math.pi) ** -0.5
    return x * below, (below + x * density) * move


def gelu_tanh(x: Float[Array, ...]) -> Float[Array, ...]:
    return jax.nn.gelu(x, approximate=True)


# By transformers' names (ACT2FN); without those that have parameters.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10.0, 10.0),
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "laplace": lambda x: 0.5 * (1.0 + lax.erf((x - 0.707107) / (0.282095 * 2.0**0.5))),
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def dropout(module: nn.Module, x: Float[Array, ...], rate: float, deterministic: bool) -> Float[Array, ...]:
    """Inverted dropout with the module's own `dropout` key."""
    return x if deterministic or rate == 0.0 else drop(x, rate, module.make_rng("dropout"))


def drop(x: Float[Array, "... T D"], rate: float, key: Array) -> Float[Array, "... T D"]:
    """Inverted dropout with an explicit key; a value stays with probability 1 - rate, rounded to a multiple of 2^-16.

    The mask is kept in memory as bits: of x cut into four blocks of rows, row r of them shares a row of bytes.
    """
    limit = max(round((1.0 - rate) * 2**16), 1)
    masks = checkpoint_name(lax.optimization_barrier(_masks(key, x.shape, limit)), DROPOUT_MASK)
    block = lax.broadcasted_iota(jnp.uint8, (4, masks.shape[-2], 1), 0).reshape(-1, 1)
    bits = jnp.concatenate([masks] * 4, axis=-2) & (jnp.uint8(1) << block)
    keep = bits[..., : x.shape[-2], :] != 0
    return jnp.where(keep, with_materialised_cotangent(x) * (2**16 / limit), 0.0).astype(x.dtype)


def dropped(x: Float[Array, ...], rate: float, key: Array | None, place: int) -> Float[Array, ...]:
    """`drop` with a key for each place of a layer; None switches it off."""
    return x if key is None or rate == 0.0 else drop(x, rate, jax.random.fold_in(key, place))


def _masks(key: Array, shape: tuple[int, ...], limit: int) -> UInt8[Array, "... _ D"]:
    """Four masks of independent bits that are set with probability limit / 2^16, as bytes.

    One call of threefry gives four numbers of 16 bits; `jax.random.bernoulli` calls it for each value.
    """
    shape = (*shape[:-2], -(-shape[-2] // 4), shape[-1])
    place = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    seed = jax.random.bits(key, (2,))
    words = threefry2x32_p.bind(*seed, jnp.zeros_like(place), place)
    numbers = [number for word in words for number in (word & 0xFFFF, word >> 16)]
    bits = [(number < limit).astype(jnp.uint32) << bit for bit, number in enumerate(numbers)]
    return reduce(operator.or_, bits).astype(jnp.uint8)
