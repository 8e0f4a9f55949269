"""T5, T5 v1.1, Flan-T5, CodeT5, mT5 and UMT5 behind the `Backbone` protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops.attention import Attend, attention
from jax_simcas.backbones.ops.caches import CrossCache, SelfCache
from jax_simcas.backbones.protocol import Tokens
from jax_simcas.backbones.t5 import decoder, layers
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.backbones.t5.encoder import encoder_layer
from jax_simcas.backbones.t5.init import init_params
from jax_simcas.backbones.t5.trees import layers_and_tables, stacked, unstacked
from jax_simcas.common.sharding import ShardingRule
from jax_simcas.common.trees import Params

SHARDING_RULES: tuple[ShardingRule, ...] = (
    (r"shared/embedding", ("vocabulary", "width")),
    (r"lm_head/kernel", ("width", "vocabulary")),
    (r"Attention/[qkv]/kernel", layers.TO_HEADS),
    (r"Attention/o/kernel", layers.FROM_HEADS),
    (r"relative_attention_bias/embedding", (None, "heads")),
    (r"wi(_[01])?/kernel", ("width", "inner")),
    (r"wo/kernel", ("inner", "width")),
    (r"layer_norm/weight", (None,)),
)


@dataclass(frozen=True)
class T5:
    """A T5-like encoder-decoder; parameters lie in the tree of the published Flax T5.

    attend: how target tokens attend to selected states where no attention weights are asked for; self-attention has a
      bias, which only the project's own attention takes.
    """

    config: T5Config
    attend: Attend = attention

    encoder_path = ("encoder",)
    sharding_rules = SHARDING_RULES

    @property
    def width(self) -> int:
        return self.config.d_model

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def positions(self) -> None:
        return None

    @property
    def init_std(self) -> float:
        return self.config.initializer_factor

    @property
    def encoder_depth(self) -> int:
        return self.config.num_layers

    @property
    def has_dropout(self) -> bool:
        return self.config.dropout_rate > 0 or self.config.attention_dropout > 0

    @property
    def tokens(self) -> Tokens:
        return self.config.tokens

    def init(self, key: Array) -> Params:
        return init_params(jax.random.split(key, 5)[:3], self.config)  # the method draws from the other two

    def stack(self, params: Params) -> Params:
        return params | {name: stacked(params[name], self.config) for name in ("encoder", "decoder")}

    def unstack(self, params: Params) -> Params:
        return params | {name: unstacked(params[name], self.config) for name in ("encoder", "decoder")}

    def embed(
        self, params: Params, ids: Int[Array, " S"], added: Float[Array, " D"] | None, dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        """In float32, whatever `dtype`, as are the states between layers."""
        return layers.embed(params, ids, self.config, key, added)

    def encoder_layers(self, params: Params) -> Params:
        return layers_and_tables(params["encoder"], self.config)

    def encoder_layer(
        self, layer: Params, x: Float[Array, "S D"], mask: Bool[Array, " S"], dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        block, table = layer
        return encoder_layer(block, table, x, mask, self.config, dtype, key)

    def encoder_end(self, params: Params, x: Float[Array, "K S D"], dtype: Any) -> Float[Array, "K S D"]:
        return layers.rms_norm(params["encoder"]["final_layer_norm"], x, self.config, dtype)

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
        return decoder.for_generation(params, self.config, dtype)

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
