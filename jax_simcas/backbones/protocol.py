"""What the method and the programs may know of a backbone: a pretrained encoder-decoder, one family per folder.

A backbone is a frozen, hashable value (a static argument of `jit`) whose methods are pure functions of its parameters.
Everything is for ONE chunk or ONE document; `vmap` makes the rest. docs/extending.md has a backbone of 40 lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jax_simcas.common.sharding import ShardingRule
from jax_simcas.common.trees import Params

Cache = Any  # tree of arrays


class Tokens(NamedTuple):
    """Special tokens of the decoder; `ends`: all that end a summary, () for `eos` alone."""

    pad: int
    bos: int
    eos: int
    decoder_start: int
    forced_bos: int | None = None
    forced_eos: int | None = None
    ends: tuple[int, ...] = ()

    @property
    def all_ends(self) -> tuple[int, ...]:
        """Every token that ends a summary."""
        return self.ends or (self.eos,)


class Flops(NamedTuple):
    """FLOPs of all layers, 2 per multiply-add of the matrix products that a forward pass requires.

    encoder_token, decoder_token: per token, without attention scores. encoder_pair, decoder_pair, cross_pair: per
    (query, key) pair. selected_state: per selected state, its keys and values in cross-attention. logit: per target
    token.
    """

    encoder_token: int
    encoder_pair: int
    decoder_token: int
    decoder_pair: int
    cross_pair: int
    selected_state: int
    logit: int


@runtime_checkable
class BackboneConfig(Protocol):
    """The config of a family, as programs know it: a frozen dataclass with Hugging Face's field names.

    sizes: the fields that the weights fix, some by names such as "encoder.hidden_size". rates: those that are dropout
    rates, which a run chooses for itself.
    """

    sizes: ClassVar[tuple[str, ...]]
    rates: ClassVar[tuple[str, ...]]

    def __hash__(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_token_id(self) -> int: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int: ...

    @property
    def decoder_start_token_id(self) -> int: ...

    @property
    def forced_bos_token_id(self) -> int | None: ...

    @property
    def forced_eos_token_id(self) -> int | None: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a summary; (): `eos_token_id` alone; (-1,): none."""

    @property
    def family(self) -> str:
        """The `model_type` of transformers."""

    @property
    def width(self) -> int:
        """D: the width of encoder states."""

    @property
    def positions(self) -> int | None:
        """The most tokens of a target, and of a chunk where no `chunk_positions` is there; None without a limit."""

    @property
    def encoder_heads(self) -> tuple[int, int]:
        """The number of heads of the encoder's attention, and the width of each."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def wraps_targets(self) -> bool:
        """Whether a target's last token is what the decoder starts with in training."""

    @property
    def flops(self) -> Flops: ...

    @classmethod
    def from_hf(
        cls, config: dict[str, Any], where: str = "config.json", generation: Mapping[str, Any] | None = None
    ) -> BackboneConfig:
        """Reads a config.json, and the tokens of a generation_config.json where there is one.

        Raises:
          UserError: a value of the wrong type, or one that is not supported.
        """

    def to_hf(self) -> dict[str, Any]:
        """What config.json holds, for transformers and for `from_hf`."""


@runtime_checkable  # tells what is none, by the names of its members
class Backbone(Protocol):
    """An encoder-decoder. Letters: S tokens of a chunk, D width, C selected states, T target tokens, V vocabulary.

    Methods that take `key` apply dropout; None switches it off. `dtype` is the compute type of products and states.
    """

    @property
    def width(self) -> int:
        """D: the width of encoder states, which the selector and the decoder's cross-attention read."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def positions(self) -> int | None:
        """The most tokens that a target may have, and a chunk of most families; None without a position table."""

    @property
    def init_std(self) -> float:
        """The scale of fresh token embeddings, which chunk positions match."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def encoder_depth(self) -> int:
        """The number of encoder layers."""

    @property
    def has_dropout(self) -> bool:
        """Whether training draws dropout masks."""

    @property
    def encoder_path(self) -> tuple[str, ...]:
        """Where the encoder's dict lies in the tree; learned chunk positions are kept in it."""

    @property
    def sharding_rules(self) -> tuple[ShardingRule, ...]:
        """A rule for every parameter."""

    # Parameters

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh float32 parameters, a dict with no entry `selector`.

        Args:
          key: draw only from the first three of `jax.random.split(key, 5)`: `init_params` makes the selector and the
            chunk positions from the other two.
        """

    def stack(self, params: Params) -> Params:
        """The tree with a leading axis over layers, as training scans it; other methods take either form."""

    def unstack(self, params: Params) -> Params:
        """The published layout of a tree that `stack` may have changed."""

    # Encoder, one chunk

    def embed(
        self, params: Params, ids: Int[Array, " S"], added: Float[Array, " D"] | None, dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        """Embeds one chunk at positions 0..S-1; `added` (the position of the chunk) is added to all its tokens."""

    def encoder_layers(self, params: Params) -> Params:
        """The parameters of the encoder layers with a leading layer axis."""

    def encoder_layer(
        self, layer: Params, x: Float[Array, "S D"], mask: Bool[Array, " S"], dtype: Any, key: Array | None
    ) -> Float[Array, "S D"]:
        """One layer over one chunk; `mask` is False where nothing may attend to."""

    def encoder_end(self, params: Params, x: Float[Array, "K S D"], dtype: Any) -> Float[Array, "K S D"]:
        """What follows the last layer, such as a final norm."""

    # Decoder, one document

    def decode(
        self,
        params: Params,
        states: Float[Array, "C D"],
        mask: Bool[Array, " C"],
        target_ids: Int[Array, " T"],
        target_mask: Bool[Array, " T"],
        *,
        key: Array | None,
        dtype: Any,
        remat: str,
        with_weights: bool,
    ) -> tuple[Float[Array, "T V"], Float[Array, " C"] | None]:
        """Teacher-forced float32 logits (those at t predict target t + 1) and, if asked for, cross-attention weights.

        The weights are averaged over layers, heads and the target positions of `target_mask`: one per selected state.
        The mask is of no other use. A position reads itself and earlier ones, whatever it says of them.
        """

    # Generation: one token per beam and step

    def for_generation(self, params: Params, dtype: Any) -> Params:
        """The tree as `decode_step` reads it fastest."""

    def cross_cache(self, params: Params, states: Float[Array, "C D"], mask: Bool[Array, " C"], dtype: Any) -> Cache:
        """What all steps and beams share: keys and values of the selected states. Takes the original tree."""

    def init_cache(self, beams: int, length: int) -> Cache:
        """An empty cache for `length` tokens of each beam."""

    def decode_step(
        self,
        params: Params,
        token: Int[Array, " beams"],
        position: Int[Array, ""],
        cache: Cache,
        cross: Cache,
        ancestors: Int[Array, "beams T"] | None,
        dtype: Any,
    ) -> tuple[Float[Array, "beams V"], Cache]:
        """Logits after one more token per beam; `ancestors[b, t]` is the slot that holds step t of beam b's history."""
