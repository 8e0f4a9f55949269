"""BART and its relatives behind the `Backbone` protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart import decoder, encoder, layers
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops import stacks
from jax_simcas.backbones.ops.attention import Attend, attention
from jax_simcas.backbones.ops.caches import CrossCache, SelfCache
from jax_simcas.backbones.protocol import Tokens
from jax_simcas.common.sharding import ShardingRule
from jax_simcas.common.trees import Params

SHARDING_RULES: tuple[ShardingRule, ...] = (
    (r"(shared|embed_tokens)/embedding", ("vocabulary", "width")),
    (r"embed_positions/embedding", (None, "width")),
    (r"([qkv]_proj|(query|key|value)_global)/kernel", ("width", "heads")),
    (r"([qkv]_proj|(query|key|value)_global)/bias", ("heads",)),
    (r"(encoder|self)_attn/out_proj/kernel", ("heads", "width")),
    (r"fc1/kernel", ("width", "inner")),
    (r"fc1/bias", ("inner",)),
    (r"fc2/kernel", ("inner", "width")),
    (r"(_attn/out_proj|fc2)/bias", (None,)),
    (r"layer_?norm(_embedding)?/(scale|bias)", (None,)),
    (r"final_logits_bias", (None, "vocabulary")),
)


@dataclass(frozen=True)
class Bart:
    """A BART-like encoder-decoder; parameters lie in the tree of the published Flax BART.

    attend: how states attend to states where no attention weights are asked for.
    """

    config: BartConfig
    attend: Attend = attention

    encoder_path = ("model", "encoder")
    sharding_rules = SHARDING_RULES

    @property
    def width(self) -> int:
        return self.config.d_model

    @property
    def vocab_size(self) -> int:
        return self.config.target_vocabulary

    @property
    def positions(self) -> int:
        return self.config.positions

    @property
    def init_std(self) -> float:
        return self.config.init_std

    @property
    def encoder_depth(self) -> int:
        return self.config.encoder_layers

    @property
    def has_dropout(self) -> bool:
        config = self.config
        return config.dropout > 0 or config.attention_dropout > 0 or config.activation_dropout > 0

    @property
    def tokens(self) -> Tokens:
        return self.config.tokens

    def init(self, key: Array) -> Params:
        config = self.config
        keys = jax.random.split(key, 5)[:3]  # the method draws from the other two
        encoder_params, decoder_params = encoder.init_encoder(keys[1], config), decoder.init_decoder(keys[2], config)
        model = {"encoder": encoder_params, "decoder": decoder_params}
        if config.share_encoder_decoder_embeddings:
            model["shared"] = layers.init_tokens(keys[0], config, config.vocab_size)
        else:
            sizes = (config.vocab_size, config.target_vocabulary)
            for stack, own, size in zip(model.values(), jax.random.split(keys[0]), sizes, strict=True):
                stack["embed_tokens"] = layers.init_tokens(own, config, size)
        if not config.dialect.logits_bias:
            return {"model": model}
        return {"model": model, "final_logits_bias": jnp.zeros((1, config.target_vocabulary))}

    def stack(self, params: Params) -> Params:
        return stacks.stack_layers(params)

    def unstack(self, params: Params) -> Params:
        return stacks.unstack_layers(params)

    def embed(
        self, params: Params, ids: Int[Array, " S"], added: Float[Array, " D"] | None, dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        config, model = self.config, params["model"]
        positions, combine = layers.positions_of(ids, config), config.dialect.encoder_input
        x = layers.embed(model, model["encoder"], combine, config, ids, positions, dtype, added)
        return layers.dropout_embedding(x, config, key)

    def encoder_layers(self, params: Params) -> Params:
        return stacks.stacked_layers(params["model"]["encoder"])

    def encoder_layer(
        self, layer: Params, x: Float[Array, "S D"], mask: Bool[Array, " S"], dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        rngs = None if key is None else {"dropout": key}
        module = encoder.EncoderLayer(self.config, dtype, self.attend)
        return module.apply({"params": layer}, x, mask, key is None, rngs=rngs)

    def encoder_end(self, params: Params, x: Float[Array, "K S D"], dtype: Any) -> Float[Array, "K S D"]:
        return layers.final_norm(params["model"]["encoder"], self.config, x, dtype)

    def decode(
        self,
        params: Params,
        states: Float[Array, "C D"],
        mask: Bool[Array, " C"],
        target_ids: Int[Array, " T"],
        target_mask: Bool[Array, " T"],
        *,
        key: Array | None = None,
        dtype: Any = jnp.float32,
        remat: str = "none",
        with_weights: bool = True,
    ) -> tuple[Float[Array, "T V"], Float[Array, " C"] | None]:
        return decoder.decode(
            params,
            self.config,
            states,
            mask,
            target_ids,
            target_mask,
            key=key,
            dtype=dtype,
            remat=remat,
            with_weights=with_weights,
            attend=self.attend,
        )

    def for_generation(self, params: Params, dtype: Any) -> Params:
        return decoder.for_generation(params, dtype)

    def cross_cache(
        self, params: Params, states: Float[Array, "C D"], mask: Bool[Array, " C"], dtype: Any
    ) -> CrossCache:
        return decoder.cross_cache(params, self.config, states, mask, dtype)

    def init_cache(self, beams: int, length: int) -> tuple[SelfCache, ...]:
        return decoder.init_self_cache(self.config, beams, length)

    def decode_step(
        self,
        params: Params,
        token: Int[Array, " beams"],
        position: Int[Array, ""],
        cache: tuple[SelfCache, ...],
        cross: CrossCache,
        ancestors: Int[Array, "beams T"] | None = None,
        dtype: Any = jnp.float32,
    ) -> tuple[Float[Array, "beams V"], tuple[SelfCache, ...]]:
        return decoder.decode_step(params, self.config, token, position, cache, cross, ancestors, dtype)
