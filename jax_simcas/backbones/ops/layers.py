"""Layers that families share: dense, layer norm, activations, dropout. Linen modules with float32 parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

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


def activation(x: Float[Array, ...], name: str) -> Float[Array, ...]:
    """The named activation, computed in float32."""
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    return 0.5 * x * (1.0 + lax.erf(x * 2.0**-0.5))


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


def drop(x: Float[Array, ...], rate: float, key: Array) -> Float[Array, ...]:
    """Inverted dropout with an explicit key."""
    keep = checkpoint_name(materialise(jax.random.bernoulli(key, 1.0 - rate, x.shape)), DROPOUT_MASK)
    return jnp.where(keep, with_materialised_cotangent(x) / (1.0 - rate), 0.0).astype(x.dtype)
