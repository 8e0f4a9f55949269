"""The shape of a T5Gemma or T5Gemma 2, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jax_simcas.backbones.hf_config import checked, generation_tokens
from jax_simcas.backbones.ops.layers import ACTIVATIONS
from jax_simcas.backbones.protocol import Flops, Tokens
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError

T5GEMMA, T5GEMMA2 = MODEL_TYPES = ("t5gemma", "t5gemma2")
SLIDING, FULL = LAYER_TYPES = ("sliding_attention", "full_attention")
# What transformers takes for fields of a stack that a T5Gemma 2 does not give; of a T5Gemma, the defaults below.
DEFAULTS_OF_2: dict[str, Any] = {
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


# What the weights of a stack fix.
SIZES: tuple[str, ...] = ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "attention_bias")
SIZES += ("num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class StackConfig:
    """The layers of an encoder or a decoder; the defaults are Gemma 2 2B's.

    Raises:
      ValueError: a value out of range, by the name of its field.
    """

    hidden_size: int = 2304  # width of the states, D
    intermediate_size: int = 9216  # inner width of the feed-forward layers
    num_hidden_layers: int = 26  # number of layers
    num_attention_heads: int = 8  # heads of queries
    num_key_value_heads: int = 4  # heads of keys and values, each for as many heads of queries
    head_dim: int = 256  # width of a head
    hidden_activation: str = "gelu_pytorch_tanh"  # of the feed-forward layers, by transformers' name
    query_pre_attn_scalar: int = 256  # scores are divided by its square root
    attn_logit_softcapping: float | None = 50.0  # bound of scores, T5Gemma alone; None: none
    final_logit_softcapping: float | None = 30.0  # bound of logits, in a decoder; None: none
    sliding_window: int | None = 4096  # tokens that a sliding layer looks back, and in an encoder ahead; None: all
    sliding_window_pattern: int = 2  # one layer in this many is full, the others slide, where layer_types is ()
    layer_types: tuple[str, ...] = ()  # "sliding_attention" or "full_attention" for each layer
    rope_theta: float = 10_000.0  # base of rotary angles; in a T5Gemma 2, of its full layers
    rope_factor: float = 1.0  # what those angles are divided by
    rope_local_base_freq: float = 10_000.0  # base of the rotary angles of sliding layers, T5Gemma 2 alone
    rope_local_factor: float = 1.0  # what those are divided by
    max_position_embeddings: int = 8192  # tokens that the checkpoint was made for; nothing depends on it
    rms_norm_eps: float = 1e-6  # added to mean squares
    attention_bias: bool = False  # whether the projections of attention add a bias
    initializer_range: float = 0.02  # standard deviation of fresh weights

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "intermediate_size", "head_dim", "max_position_embeddings")
        heads = ("num_attention_heads", "num_key_value_heads")
        checks.at_least(self, 1, *sizes, *heads, "query_pre_attn_scalar", "sliding_window", "sliding_window_pattern")
        checks.at_least(self, 1, "num_hidden_layers", most=checks.MOST_LAYERS)
        checks.at_least(self, 0, "initializer_range", "rms_norm_eps")
        rope = ("rope_theta", "rope_factor", "rope_local_base_freq", "rope_local_factor")
        checks.above(self, 0, "attn_logit_softcapping", "final_logit_softcapping", *rope)
        checks.one_of(self, "hidden_activation", ACTIVATIONS)
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary angles need an even width")
        for name, whole in (("num_key_value_heads", "num_attention_heads"), ("num_attention_heads", "hidden_size")):
            if getattr(self, whole) % getattr(self, name):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} is not a multiple of {name}={getattr(self, name)}, "
                    "as transformers requires"
                )
        unknown = set(self.layer_types) - set(LAYER_TYPES)
        if unknown or len(self.layer_types) not in (0, self.num_hidden_layers):
            raise ValueError(
                f"layer_types={self.layer_types!r}: expected {self.num_hidden_layers} of {' and '.join(LAYER_TYPES)}"
            )

    @property
    def sliding(self) -> tuple[bool, ...]:
        """Whether each layer slides."""
        if self.layer_types:
            return tuple(kind == SLIDING for kind in self.layer_types)
        return tuple(i % self.sliding_window_pattern != 0 for i in range(1, self.num_hidden_layers + 1))

    @property
    def queries(self) -> int:
        """The width of all queries of a token."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of all keys of a token."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class T5GemmaConfig:
    """Sizes, rates and special tokens of a T5Gemma, or of the text part of a T5Gemma 2.

    Raises:
      ValueError: a value out of range, by the name of its field.
    """

    sizes: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "encoder_vocab_size", "tie_word_embeddings", "model_type"),
        *(f"{side}.{size}" for side in ("encoder", "decoder") for size in SIZES),
    )
    rates: ClassVar[tuple[str, ...]] = ("dropout_rate", "attention_dropout")

    encoder: StackConfig = field(default_factory=StackConfig)  # the layers of the encoder
    decoder: StackConfig = field(default_factory=StackConfig)  # those of the decoder
    vocab_size: int = 256_000  # tokens; a model from scratch has those of its tokenizer
    encoder_vocab_size: int | None = None  # tokens that the encoder of a T5Gemma knows; None: the same
    dropout_rate: float = 0.0  # share of the states set to zero while training
    attention_dropout: float = 0.0  # the same of attention weights
    tie_word_embeddings: bool = True  # whether logits come from the decoder's embeddings; in a T5Gemma 2, one for all
    pad_token_id: int = 0  # fills the last chunk and short targets
    bos_token_id: int = 2  # first of every chunk
    eos_token_id: int = 1  # last of every chunk and target
    decoder_start_token_id: int = 2  # first of every target
    forced_bos_token_id: int | None = None  # token that every summary must begin with; None: any
    forced_eos_token_id: int | None = None  # token that a summary of max_length must end with; None: any
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a summary; (): eos_token_id alone; (-1,): none
    model_type: str = T5GEMMA  # "t5gemma" or "t5gemma2"
    eoi_token_index: int = 256_000  # the token of a T5Gemma 2 that has an embedding of its own: the end of an image
    boi_token_index: int = 255_999  # the begin of an image: kept for transformers, as the next three
    image_token_index: int = 256_001  # an image
    mm_tokens_per_image: int = 256  # tokens that stand for it
    vision_config: str = ""  # the JSON of the tower that sees images; "": transformers' default

    def __post_init__(self) -> None:
        checks.one_of(self, "model_type", MODEL_TYPES)
        checks.at_least(self, 3, "vocab_size", "encoder_vocab_size")
        checks.below_one(self, *self.rates)
        if self.model_type == T5GEMMA2 and self.encoder.hidden_size != self.decoder.hidden_size:
            sizes = f"{self.encoder.hidden_size}: expected decoder.hidden_size={self.decoder.hidden_size}"
            raise ValueError(f"encoder.hidden_size={sizes}, as a t5gemma2 has one width")
        if self.model_type == T5GEMMA2 and self.encoder_vocab_size is not None:
            raise ValueError(f"encoder_vocab_size={self.encoder_vocab_size}: a t5gemma2 has one vocabulary")
        required = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        for name in (*required, "forced_bos_token_id", "forced_eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} lies outside the vocabulary of {self.vocab_size} tokens")

    @property
    def merged(self) -> bool:
        """Whether it is a T5Gemma 2, whose decoder attends to target and selected states in one softmax."""
        return self.model_type == T5GEMMA2

    @property
    def family(self) -> str:
        """The `model_type` of transformers."""
        return self.model_type

    @property
    def width(self) -> int:
        return self.encoder.hidden_size

    @property
    def positions(self) -> None:
        """Rotary angles have no last position."""

    @property
    def encoder_heads(self) -> tuple[int, int]:
        return self.encoder.num_attention_heads, self.encoder.head_dim

    @property
    def wraps_targets(self) -> bool:
        return False

    @property
    def tokens(self) -> Tokens:
        """The special tokens."""
        return Tokens(
            self.pad_token_id,
            self.bos_token_id,
            self.eos_token_id,
            self.decoder_start_token_id,
            self.forced_bos_token_id,
            self.forced_eos_token_id,
            self.eos_token_ids,
        )

    @property
    def flops(self) -> Flops:
        """Sliding layers count as full ones: within a chunk they compute as much."""
        encoder, decoder = self.encoder, self.decoder
        cross = 0 if self.merged else 4 * decoder.hidden_size * decoder.queries  # queries and output of its own
        return Flops(
            encoder_token=encoder.num_hidden_layers * _token(encoder),
            encoder_pair=encoder.num_hidden_layers * 4 * encoder.queries,
            decoder_token=decoder.num_hidden_layers * (_token(decoder) + cross),
            decoder_pair=decoder.num_hidden_layers * 4 * decoder.queries,
            cross_pair=decoder.num_hidden_layers * 4 * decoder.queries,
            selected_state=decoder.num_hidden_layers * 4 * self.width * decoder.keys,
            logit=2 * decoder.hidden_size * self.vocab_size,
        )

    @classmethod
    def from_hf(
        cls, config: dict[str, Any], where: str = "config.json", generation: Mapping[str, Any] | None = None
    ) -> T5GemmaConfig:
        """Reads the fields of a Hugging Face `config.json`.

        Args:
          generation: the content of `generation_config.json`, whose tokens are those of generation; None: there is
            none, and they are in `config`.

        Raises:
          UserError: another `model_type`, a field of the wrong type or an unsupported value.
        """
        model_type = config.get("model_type", T5GEMMA)
        if model_type not in MODEL_TYPES:
            raise UserError(f"{where}: model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
        stacks = {name: _section(config, name, where) for name in ("encoder", "decoder")}
        whole, decoder = stacks["encoder"], stacks["decoder"]
        if model_type == T5GEMMA2:
            stacks["encoder"] = _section(whole, "text_config", f"{where}: encoder")
        given: dict[str, Any] = {"model_type": model_type}
        read = lambda stack, name: _stack(stack, model_type, f"{where}: {name}")
        tokens = ("pad_token_id", "bos_token_id", "eos_token_id")
        for item in dataclasses.fields(cls):
            if item.name not in SIMPLE:
                continue
            # Those of the decoder count where the model itself has none; what concerns images is the encoder's.
            places = (config, decoder) if item.name in tokens else (whole,) if item.name in IMAGE[1:] else (config,)
            value = next((place[item.name] for place in places if place.get(item.name) is not None), None)
            if value is not None:
                first = item.name == "eos_token_id" and isinstance(value, list) and value
                given[item.name] = checked(value[0] if first else value, item, where)
        given |= {name: read(stack, name) for name, stack in stacks.items()}
        given |= _vocabularies(stacks, 262_208 if model_type == T5GEMMA2 else cls.vocab_size, where)
        if model_type == T5GEMMA2 and whole.get("vision_config"):
            given["vision_config"] = json.dumps(whole["vision_config"], sort_keys=True)
        bos, eos = (given.get(name, getattr(cls, name)) for name in ("bos_token_id", "eos_token_id"))
        given |= generation_tokens(config, generation, where, eos=eos, start=bos)
        try:
            return cls(**given)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields as `config.json` has them, readable by transformers and by `from_hf`."""
        named = {name: getattr(self, name) for name in SIMPLE}
        image = {name: named.pop(name) for name in IMAGE}
        encoder, decoder = self._stack_to_hf("encoder"), self._stack_to_hf("decoder")
        if self.merged:
            vision = {"vision_config": json.loads(self.vision_config)} if self.vision_config else {}
            encoder = {"model_type": "t5gemma2_encoder", "text_config": encoder, **image, **vision}
            named |= {name: image[name] for name in ("image_token_index", "eoi_token_index")}
        name = "T5Gemma2" if self.merged else "T5Gemma"
        return {
            "architectures": [f"{name}ForConditionalGeneration"],
            "model_type": self.model_type,
            "is_encoder_decoder": True,
            "vocab_size": self.vocab_size,
            **named,
            "forced_bos_token_id": self.forced_bos_token_id,
            "forced_eos_token_id": self.forced_eos_token_id,
            "decoder_start_token_id": self.decoder_start_token_id,
            "encoder": encoder,
            "decoder": decoder,
        }

    def _stack_to_hf(self, which: str) -> dict[str, Any]:
        stack: StackConfig = getattr(self, which)
        out = dataclasses.asdict(stack)
        rope = [_rope_to_hf(out.pop("rope_theta"), out.pop("rope_factor"))]
        rope.append(_rope_to_hf(out.pop("rope_local_base_freq"), out.pop("rope_local_factor")))
        del out["sliding_window_pattern"]
        out |= {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id", *self.rates)}
        out |= {"layer_types": [SLIDING if sliding else FULL for sliding in stack.sliding]}
        vocabulary = self.encoder_vocab_size if which == "encoder" else None
        out |= {"vocab_size": vocabulary or self.vocab_size, "tie_word_embeddings": self.tie_word_embeddings}
        if self.merged:
            kind = "t5gemma2_text" if which == "encoder" else "t5gemma2_decoder"
            return out | {"model_type": kind, "rope_parameters": {FULL: rope[0], SLIDING: rope[1]}}
        out |= {"model_type": "t5_gemma_module", "rope_parameters": rope[0], "is_decoder": which == "decoder"}
        return out | ({"cross_attention_hidden_size": self.width} if which == "decoder" else {})


IMAGE = ("image_token_index", "eoi_token_index", "boi_token_index", "mm_tokens_per_image")
SIMPLE: tuple[str, ...] = (
    "dropout_rate",
    "attention_dropout",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
SIMPLE += IMAGE


def _token(stack: StackConfig) -> int:
    """FLOPs of a token in one layer: queries and output, keys and values, the three products of a gated layer."""
    return 2 * stack.hidden_size * (2 * stack.queries + 2 * stack.keys + 3 * stack.intermediate_size)


def _section(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: {name} is {value!r}, expected an object")
    return value or {}


def _vocabularies(stacks: Mapping[str, Mapping[str, Any]], default: int, where: str) -> dict[str, Any]:
    fields = {item.name: item for item in dataclasses.fields(T5GemmaConfig)}
    sizes = {}
    for name, stack in stacks.items():
        size = stack.get("vocab_size")
        sizes[name] = default if size is None else size
        checked(sizes[name], fields["vocab_size"], f"{where}: {name}")
    both = sizes["encoder"] == sizes["decoder"]
    return {"vocab_size": sizes["decoder"], "encoder_vocab_size": None if both else sizes["encoder"]}


def _stack(config: Mapping[str, Any], model_type: str, where: str) -> StackConfig:
    """The stack that transformers makes of one section of a config.json."""
    given: dict[str, Any] = dict(DEFAULTS_OF_2) if model_type == T5GEMMA2 else {}
    for item in dataclasses.fields(StackConfig):
        if item.name in config and not item.name.startswith(("rope_", "layer_types")):
            value = config[item.name]
            if value is None and not str(item.type).endswith("None"):
                continue
            given[item.name] = None if value is None else checked(value, item, where)
    given |= _ropes(config, model_type, where)
    kinds = config.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise UserError(f"{where}: layer_types is {kinds!r}, expected a list of texts")
    try:
        regular = StackConfig(**given)
        every = tuple(SLIDING if sliding else FULL for sliding in regular.sliding)
        return regular if kinds is None or tuple(kinds) == every else StackConfig(**given, layer_types=tuple(kinds))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _ropes(config: Mapping[str, Any], model_type: str, where: str) -> dict[str, float]:
    """The bases and factors of rotary angles, in today's spelling or in that of transformers 4."""
    given = _section(config, "rope_parameters", where)
    scaling = _section(config, "rope_scaling", where)
    if model_type == T5GEMMA:
        return dict(
            zip(("rope_theta", "rope_factor"), _rope(scaling or given, config, "rope_theta", where), strict=True)
        )
    full = {**_section(given, FULL, where), **scaling}
    local = _section(given, SLIDING, where)
    default = {"rope_theta": 1_000_000.0, **config}
    theta, factor = _rope(full, default, "rope_theta", where)
    local_theta, local_factor = _rope(local, default, "rope_local_base_freq", where)
    return {
        "rope_theta": theta,
        "rope_factor": factor,
        "rope_local_base_freq": local_theta,
        "rope_local_factor": local_factor,
    }


def _rope(rope: Mapping[str, Any], config: Mapping[str, Any], name: str, where: str) -> tuple[float, float]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear"):
        raise UserError(f"{where}: rope_type is {kind!r}, expected default or linear")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"{where}: partial_rotary_factor={rope['partial_rotary_factor']!r} is not supported")
    theta = next((x for x in (rope.get("rope_theta"), config.get(name)) if x is not None), StackConfig.rope_theta)
    factor = rope.get("factor") if kind == "linear" else 1.0
    fields = {item.name: item for item in dataclasses.fields(StackConfig)}
    return checked(theta, fields["rope_theta"], where), checked(factor, fields["rope_factor"], where)


def _rope_to_hf(theta: float, factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    return {"rope_theta": theta, **scaling}


def _gemma3(**sizes: Any) -> T5GemmaConfig:
    """A T5Gemma 2 of two stacks of a Gemma 3."""
    stack = StackConfig(**{**DEFAULTS_OF_2, "sliding_window": 512, "rope_theta": 1_000_000.0, **sizes})
    return T5GemmaConfig(stack, stack, vocab_size=262_144, model_type=T5GEMMA2)


T5GEMMA2_270M = _gemma3(
    hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1
)
T5GEMMA2_1B = _gemma3(
    hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4, num_key_value_heads=1
)
