"""Fresh parameters of a T5, as its authors scale them: no product begins with a variance of its own.

Source: `_init_weights` of transformers' T5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.common.trees import Params


def init_params(keys: Key[Array, 3], config: T5Config) -> Params:
    """The whole tree, from keys for the embeddings, the encoder and the decoder."""
    table, head = jax.random.split(keys[0])
    factor, shape = config.initializer_factor, (config.vocab_size, config.d_model)
    params = {
        "shared": {"embedding": factor * jax.random.normal(table, shape)},
        "encoder": _stack(keys[1], config, config.num_layers, ("SelfAttention",)),
        "decoder": _stack(keys[2], config, config.num_decoder_layers, ("SelfAttention", "EncDecAttention")),
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = {"kernel": factor * jax.random.normal(head, shape[::-1])}
    return params


def _stack(key: Array, config: T5Config, depth: int, attentions: tuple[str, ...]) -> Params:
    keys = jax.random.split(key, depth)
    block = lambda number: _block(keys[number], config, attentions, number == 0 or not config.shares_bias)
    return {"block": {str(number): block(number) for number in range(depth)}, "final_layer_norm": _norm(config)}


def _block(key: Array, config: T5Config, attentions: tuple[str, ...], has_bias: bool) -> Params:
    d, inner = config.d_model, config.num_heads * config.d_kv
    keys = iter(jax.random.split(key, 4 * len(attentions) + 4))

    def kernel(rows: int, columns: int, std: float) -> Params:
        return {"kernel": config.initializer_factor * std * jax.random.normal(next(keys), (rows, columns))}

    def attention() -> Params:
        return {
            "q": kernel(d, inner, (d * config.d_kv) ** -0.5),
            "k": kernel(d, inner, d**-0.5),
            "v": kernel(d, inner, d**-0.5),
            "o": kernel(inner, d, inner**-0.5),
        }

    layers: list[Params] = [{name: attention(), "layer_norm": _norm(config)} for name in attentions]
    first = ("wi_0", "wi_1") if config.gated else ("wi",)
    feed_forward = {name: kernel(d, config.d_ff, d**-0.5) for name in first}
    feed_forward["wo"] = kernel(config.d_ff, d, config.d_ff**-0.5)
    layers.append({"DenseReluDense": feed_forward, "layer_norm": _norm(config)})
    if has_bias:
        table = kernel(config.relative_attention_num_buckets, config.num_heads, d**-0.5)["kernel"]
        layers[0]["SelfAttention"]["relative_attention_bias"] = {"embedding": table}
    return {"layer": {str(number): layer for number, layer in enumerate(layers)}}


def _norm(config: T5Config) -> Params:
    return {"weight": jnp.full(config.d_model, config.initializer_factor, jnp.float32)}
