"""A backbone of your own, as small as can be: the `Backbone` protocol (jax_simcas/backbones/protocol.py) in 40 lines.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/toy --config.backbone=examples.backbone_toy:Toy

Encoder layers mix each token with the mean of its chunk; the decoder attends from the last token only.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jax_simcas.backbones.bart.config import BartConfig


@dataclass(frozen=True)
class Toy:
    config: BartConfig  # sizes and special tokens
    attend: Any = None  # unused

    encoder_path, sharding_rules, positions, has_dropout = ("encoder",), ((r".+", ()),), None, False
    width = property(lambda self: self.config.d_model)
    vocab_size = property(lambda self: self.config.vocab_size)
    encoder_depth = property(lambda self: self.config.encoder_layers)
    init_std = property(lambda self: self.config.init_std)
    tokens = property(lambda self: self.config.tokens)

    def init(self, key):
        normal = lambda key, *shape: jax.random.normal(key, shape) / self.width**0.5
        keys = jax.random.split(key, 5)[:2]  # the method draws from the others
        mix = normal(keys[1], self.encoder_depth, self.width, self.width)
        return {"encoder": {"embedding": normal(keys[0], self.vocab_size, self.width), "layers": {"mix": mix}}}

    def stack(self, params):
        return params

    unstack = stack

    def embed(self, params, ids, added, dtype, key):
        x = params["encoder"]["embedding"][ids]
        return (x if added is None else x + added).astype(dtype)

    def encoder_layers(self, params):
        return params["encoder"]["layers"]

    def encoder_layer(self, layer, x, mask, dtype, key):
        mean = jnp.where(mask[:, None], x, 0).sum(axis=0) / jnp.maximum(mask.sum(), 1)
        return x + jnp.tanh((x + mean) @ layer["mix"].astype(dtype))

    def encoder_end(self, params, x, dtype):
        return x

    def decode(self, params, states, mask, target_ids, target_mask, *, key, dtype, remat, with_weights):
        embedding, states = params["encoder"]["embedding"], states.astype(jnp.float32)
        query = embedding[target_ids]
        weights = jax.nn.softmax(jnp.where(mask, query @ states.T, -1e9), axis=-1)
        logits = (query + weights @ states) @ embedding.T
        return logits, target_mask @ weights / jnp.maximum(target_mask.sum(), 1) if with_weights else None

    def for_generation(self, params, dtype):
        return params

    def cross_cache(self, params, states, mask, dtype):
        return states, mask

    def init_cache(self, beams, length):
        return ()  # nothing but the last token counts

    def decode_step(self, params, token, position, cache, cross, ancestors, dtype):
        rest = {"key": None, "dtype": dtype, "remat": "none", "with_weights": False}
        return self.decode(params, *cross, token, jnp.ones_like(token, bool), **rest)[0], cache
