"""As many layers as published models have: as names, the tenth comes before the second, and `jit` sorts names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.families import FAMILIES, backbone_for
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.backbones.t5gemma.config import StackConfig, T5GemmaConfig

DEPTH = 11
BART = BartConfig(
    vocab_size=20,
    d_model=8,
    encoder_layers=1,
    decoder_layers=DEPTH,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=8,
    decoder_ffn_dim=8,
    max_position_embeddings=16,
    dropout=0.0,
    init_std=0.3,
)
T5 = T5Config(
    vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=DEPTH, num_heads=2, dropout_rate=0.0
)
STACK = StackConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=DEPTH,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)
T5GEMMA = T5GemmaConfig(encoder=STACK, decoder=STACK, vocab_size=20, eoi_token_index=19, boi_token_index=18,
                        image_token_index=17)  # fmt: skip
SHAPES = {"bart": BART, "t5": T5, "t5gemma": T5GEMMA}


def test_every_family_is_here():
    assert SHAPES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", SHAPES)
def test_a_step_of_generation_and_a_whole_target_visit_layers_in_the_same_order(family):
    backbone = backbone_for(SHAPES[family])
    params = backbone.init(jax.random.key(0))
    states, mask = jax.random.normal(jax.random.key(1), (5, backbone.width)), jnp.ones(5, bool)
    start = jnp.array([backbone.tokens.decoder_start])

    @jax.jit
    def both(params, states):
        whole, _ = backbone.decode(params, states, mask, start, jnp.ones(1, bool))
        cross, cache = backbone.cross_cache(params, states, mask, jnp.float32), backbone.init_cache(1, 4)
        prepared = backbone.for_generation(params, jnp.float32)
        step, _ = backbone.decode_step(prepared, start, jnp.array(0), cache, cross)
        return whole, step

    whole, step = both(params, states)
    np.testing.assert_allclose(step, whole, atol=1e-5 * float(jnp.abs(whole).max()))
