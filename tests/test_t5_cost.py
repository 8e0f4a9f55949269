"""What T5 costs: the memory of the bias of its attention, and FLOPs, counted in the programs themselves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from helpers import TINY_T5 as TINY

from jax_simcas.backbones.ops.attention import attention
from jax_simcas.backbones.t5 import layers
from jax_simcas.backbones.t5.backbone import T5
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.method.document import Document
from jax_simcas.method.model import SimCAS, encode


def test_the_bias_of_attention_takes_no_memory_to_speak_of():
    """T5-base's layer over eight chunks of 512 tokens: with the bias, and with none."""
    config = T5Config(vocab_size=8, num_layers=1, num_decoder_layers=1)
    backbone, chunks, length = T5(config), 8, 512
    layer = jax.eval_shape(
        lambda key: jax.tree.map(lambda x: x[0], backbone.encoder_layers(backbone.init(key))), jax.random.key(0)
    )
    x = jax.ShapeDtypeStruct((chunks, length, backbone.width), jnp.float32)
    mask = jax.ShapeDtypeStruct((chunks, length), jnp.bool_)

    def loss(layer, x, mask):
        run = lambda x, mask: backbone.encoder_layer(layer, x, mask, jnp.float32, None)
        return jnp.square(jax.vmap(run)(x, mask)).sum()

    def temporaries(attend, monkeypatch):
        monkeypatch.setattr(layers, "attention", attend)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(layer, x, mask).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def without(query, key, value, mask, within_chunk=False, bias=None, scale=None):
        return attention(query, key, value, mask, within_chunk, None, scale)

    with pytest.MonkeyPatch.context() as patch:
        plain, biased = temporaries(without, patch), temporaries(attention, patch)
    assert biased <= 1.02 * plain
    assert plain > length**2 * config.num_heads * 4  # the scores of a chunk are among them


def test_flops_are_those_of_the_products():
    for config in (TINY, dataclasses.replace(TINY, feed_forward_proj="relu", num_layers=3)):
        backbone = T5(config)
        params = jax.eval_shape(backbone.init, jax.random.key(0))
        chunks, length, states, targets = 1, 11, 9, 7
        s = jax.ShapeDtypeStruct

        def encoded(params, ids, backbone=backbone):
            return encode(params, SimCAS(backbone), Document(ids, jnp.ones((1, 11), bool), jnp.ones(1, bool)))[0]

        def decoded(params, states, ids, backbone=backbone):
            return backbone.decode(params, states, jnp.ones(9, bool), ids, jnp.ones(7, bool))[0]

        flops = config.flops
        # One number more a pair: the column of ones in the values of attention without weights.
        ones = 2 * config.num_heads * length**2 * config.num_layers
        encoder = length * flops.encoder_token + length**2 * flops.encoder_pair + ones
        assert products(encoded, params, s((chunks, length), jnp.int32)) == encoder
        decoder = targets * (flops.decoder_token + flops.logit) + targets**2 * flops.decoder_pair
        decoder += states * (flops.selected_state + targets * flops.cross_pair)
        decoder += 2 * config.num_decoder_layers * targets * states  # the mean of the weights
        shapes = s((states, config.d_model), jnp.float32), s((targets,), jnp.int32)
        ones = 2 * config.num_heads * targets**2 * config.num_decoder_layers
        assert products(decoded, params, *shapes) == decoder + ones


def products(function, *shapes):
    """FLOPs of all products of a program, those of a loop as often as it runs."""

    def of_jaxpr(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "product"):
                total += _product(equation)
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            inner = [x for x in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
            if equation.primitive.name == "cond":  # branches: one of them runs
                inner = inner[-1:]
            total += times * sum(of_jaxpr(getattr(x, "jaxpr", x)) for x in inner)
        return total

    return of_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr)


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def _product(equation):
    left, right = (x.aval.shape for x in equation.invars[:2])
    if equation.primitive.name == "product":
        return 2 * math.prod(left) * right[1]
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
