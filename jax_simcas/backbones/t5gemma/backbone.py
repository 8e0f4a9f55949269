"""T5Gemma and T5Gemma 2 (text) behind the `Backbone` protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops import stacks
from jax_simcas.backbones.ops.attention import Attend, attention
from jax_simcas.backbones.ops.caches import CrossCache, SelfCache
from jax_simcas.backbones.ops.layers import dropped
from jax_simcas.backbones.protocol import Tokens
from jax_simcas.backbones.t5gemma import decoder, encoder, layers
from jax_simcas.backbones.t5gemma.config import T5GemmaConfig
from jax_simcas.common.sharding import ShardingRule
from jax_simcas.common.trees import Params


@dataclass(frozen=True)
class T5Gemma:
    """A T5Gemma or the text part of a T5Gemma 2; parameters lie in a tree of transformers' names.

    attend: how states attend to states where no attention weights are asked for, and scores have no cap.
    """

    config: T5GemmaConfig
    attend: Attend = attention

    encoder_path = ("model", "encoder")

    @property
    def sharding_rules(self) -> tuple[ShardingRule, ...]:
        """Kernels of heads are cut between heads, of which keys and values have few."""
        rules: list[ShardingRule] = []
        for name, stack in (("encoder", self.config.encoder), ("decoder", self.config.decoder)):
            kinds = (("q", stack.num_attention_heads), ("[kv]", stack.num_key_value_heads))
            for kind, heads in kinds:
                dimensions = layers.heads_of(heads)
                rules += [(f"{name}/.*attn/{kind}_proj/kernel", dimensions)]
                rules += [(f"{name}/.*attn/{kind}_proj/bias", dimensions[1:])]
            dimensions = layers.heads_of(stack.num_attention_heads)
            rules += [(f"{name}/.*attn/o_proj/kernel", dimensions[::-1])]
        return (
            *rules,
            (r"o_proj/bias", (None,)),
            (r"(gate|up)_proj/kernel", ("width", "inner")),
            (r"down_proj/kernel", ("inner", "width")),
            (r"norm/scale", (None,)),
            (r"(embed_tokens|out_proj)/embedding", ("vocabulary", "width")),
            (r"eoi_embedding", (None,)),
        )

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def positions(self) -> None:
        return None

    @property
    def init_std(self) -> float:
        return self.config.encoder.initializer_range * math.sqrt(self.width)  # embeddings are multiplied by sqrt(D)

    @property
    def encoder_depth(self) -> int:
        return self.config.encoder.num_hidden_layers

    @property
    def has_dropout(self) -> bool:
        return self.config.dropout_rate > 0 or self.config.attention_dropout > 0

    @property
    def tokens(self) -> Tokens:
        return self.config.tokens

    def init(self, key: Array) -> Params:
        config = self.config
        table_key, encoder_key, decoder_key = jax.random.split(key, 5)[:3]  # the method draws from the other two
        table_key, target_key, head_key = jax.random.split(table_key, 3)
        cross = None if config.merged else config.width
        model = {
            "encoder": layers.init_stack(encoder_key, config.encoder, None, config.merged),
            "decoder": layers.init_stack(decoder_key, config.decoder, cross, config.merged),
        }
        rows, std = config.encoder_vocab_size or config.vocab_size, config.encoder.initializer_range
        model["encoder"]["embed_tokens"] = layers.init_table(table_key, config, rows, config.width, std)
        rows, width, std = config.vocab_size, config.decoder.hidden_size, config.decoder.initializer_range
        if not (config.merged and config.tie_word_embeddings):
            model["decoder"]["embed_tokens"] = layers.init_table(target_key, config, rows, width, std)
        if config.tie_word_embeddings:
            return {"model": model}
        head = std * rows**-0.5 * jax.random.normal(head_key, (rows, width))
        return {"model": model, "lm_head": {"out_proj": {"embedding": head}}}

    def stack(self, params: Params) -> Params:
        return stacks.stack_layers(params)

    def unstack(self, params: Params) -> Params:
        return stacks.unstack_layers(params)

    def embed(
        self, params: Params, ids: Int[Array, " S"], added: Float[Array, " D"] | None, dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        x = layers.embed(params["model"]["encoder"]["embed_tokens"], self.config, ids, added).astype(dtype)
        return dropped(x, self.config.dropout_rate, key, 0)

    def encoder_layers(self, params: Params) -> Params:
        """Beside their parameters, whether each layer slides."""
        sliding = jnp.array(self.config.encoder.sliding)
        return {"layer": stacks.stacked_layers(params["model"]["encoder"]), "sliding": sliding}

    def encoder_layer(
        self, layer: Params, x: Float[Array, "S D"], mask: Bool[Array, " S"], dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        config = self.config
        one = layers.Layer(layer["layer"], config, config.encoder, layer["sliding"], dtype, self.attend, key)
        return encoder.encoder_layer(one, x, mask)

    def encoder_end(self, params: Params, x: Float[Array, "K S D"], dtype: Any) -> Float[Array, "K S D"]:
        return layers.rms_norm(params["model"]["encoder"]["norm"], x, self.config.encoder, dtype)

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
