"""The shape of a T5-like encoder-decoder, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jax_simcas.backbones.hf_config import GENERATED, fields_of, generation_tokens
from jax_simcas.backbones.ops.layers import ACTIVATIONS
from jax_simcas.backbones.protocol import Flops, Tokens
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError

CLASSES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}  # of transformers, by `model_type`
MODEL_TYPES = tuple(CLASSES)
# What transformers takes for granted where a config.json of that type is silent.
_T5 = {"d_model": 512, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu", "eos_token_id": 1}
_MT5 = {"d_model": 512, "num_layers": 8, "num_heads": 6, "d_ff": 1024, "vocab_size": 250112}
_MT5 |= {"eos_token_id": 1, "decoder_start_token_id": 0}
UNSAID: dict[str, dict[str, Any]] = {"t5": _T5, "mt5": _MT5, "umt5": _MT5}


@dataclass(frozen=True)
class T5Config:
    """Sizes, rates and special tokens of a T5, T5 v1.1, Flan-T5, CodeT5, mT5 or UMT5; the defaults are T5 v1.1 base.

    Raises:
      ValueError: a value out of range, by the name of its field.
    """

    sizes: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"),
        *("relative_attention_num_buckets", "tie_word_embeddings"),
    )
    rates: ClassVar[tuple[str, ...]] = ("dropout_rate", "attention_dropout")

    vocab_size: int = 32128  # tokens; a model from scratch has those of its tokenizer
    d_model: int = 768  # width of the states, D
    d_kv: int = 64  # width of each head of attention
    d_ff: int = 2048  # inner width of feed-forward layers
    num_layers: int = 12  # number of layers of the encoder
    num_decoder_layers: int = 12  # number of layers of the decoder
    num_heads: int = 12  # heads of attention
    relative_attention_num_buckets: int = 32  # classes of distances, each of which has a learned bias per head
    relative_attention_max_distance: int = 128  # tokens from which on all distances are of one class
    feed_forward_proj: str = "gated-gelu"  # an activation of transformers, "gated-" before it where it gates
    dropout_rate: float = 0.1  # share of the states set to zero while training
    attention_dropout: float = 0.0  # the same of attention weights: dropout_rate in transformers; slower
    layer_norm_epsilon: float = 1e-6  # added to the mean square of the states
    initializer_factor: float = 1.0  # scale of fresh weights
    tie_word_embeddings: bool = False  # whether the output head is the table of embeddings
    scale_decoder_outputs: bool = False  # whether the head's input is divided by sqrt(d_model); mT5 never does
    pad_token_id: int = 0  # fills the last chunk and short targets
    bos_token_id: int | None = None  # begin of a text; None: the vocabulary has none
    eos_token_id: int = 1  # last of every chunk and target
    decoder_start_token_id: int = 0  # first of every target
    forced_bos_token_id: int | None = None  # token that every summary must begin with; None: any
    forced_eos_token_id: int | None = None  # token that a summary of max_length must end with; None: any
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a summary; (): eos_token_id alone; (-1,): none
    model_type: str = "t5"  # "t5", "mt5" or "umt5", each layer of which has a bias of its own

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "d_model", "d_kv", "d_ff", "num_heads")
        checks.at_least(self, 1, "num_layers", "num_decoder_layers", most=checks.MOST_LAYERS)
        checks.at_least(self, 3, "vocab_size")
        checks.at_least(self, 4, "relative_attention_num_buckets")
        checks.above(self, self.relative_attention_num_buckets // 2, "relative_attention_max_distance")
        checks.at_least(self, 0, "layer_norm_epsilon", "initializer_factor")
        checks.below_one(self, *self.rates)
        checks.one_of(self, "model_type", MODEL_TYPES)
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(
                f"feed_forward_proj={self.feed_forward_proj!r}: expected an activation, or 'gated-' and one, of {known}"
            )
        required, forced = ("pad_token_id", "eos_token_id", "decoder_start_token_id"), ("forced_bos", "forced_eos")
        for name in (*required, "bos_token_id", *(f"{token}_token_id" for token in forced)):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} lies outside the vocabulary of {self.vocab_size} tokens")

    @property
    def family(self) -> str:
        """The `model_type` of transformers."""
        return self.model_type

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def positions(self) -> None:
        return None

    @property
    def encoder_heads(self) -> tuple[int, int]:
        return self.num_heads, self.d_kv

    @property
    def wraps_targets(self) -> bool:
        return False

    @property
    def gated(self) -> bool:
        """Whether feed-forward layers multiply the activation by a second product."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """The activation by its name in transformers, where "gated-gelu" has always been the one by tanh."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name

    @property
    def shares_bias(self) -> bool:
        """Whether all layers of a stack have the bias of its first."""
        return self.model_type != "umt5"

    @property
    def scales_logits(self) -> bool:
        """Whether the head's input is divided by sqrt(d_model)."""
        return self.scale_decoder_outputs and self.model_type != "mt5"

    @property
    def tokens(self) -> Tokens:
        """The special tokens; EOS stands for a begin of text that the vocabulary has not."""
        return Tokens(
            self.pad_token_id,
            self.eos_token_id if self.bos_token_id is None else self.bos_token_id,
            self.eos_token_id,
            self.decoder_start_token_id,
            self.forced_bos_token_id,
            self.forced_eos_token_id,
            self.eos_token_ids,
        )

    @property
    def flops(self) -> Flops:
        d, inner, encoder, decoder = self.d_model, self.num_heads * self.d_kv, self.num_layers, self.num_decoder_layers
        feed_forward = (6 if self.gated else 4) * d * self.d_ff
        return Flops(
            encoder_token=encoder * (8 * d * inner + feed_forward),
            encoder_pair=encoder * 4 * inner,
            decoder_token=decoder * (12 * d * inner + feed_forward),
            decoder_pair=decoder * 4 * inner,
            cross_pair=decoder * 4 * inner,
            selected_state=decoder * 4 * d * inner,
            logit=2 * d * self.vocab_size,
        )

    @classmethod
    def from_hf(
        cls, config: dict[str, Any], where: str = "config.json", generation: Mapping[str, Any] | None = None
    ) -> T5Config:
        """Reads the fields of a Hugging Face `config.json`.

        transformers 5 ties every head whose weights are those of the embeddings, whatever `tie_word_embeddings` says,
        and writes true; `weights.fitted` decides by the weights. Without `scale_decoder_outputs`, which it writes, that
        field tells whether logits are scaled.

        Args:
          generation: the content of `generation_config.json`, whose tokens are those of generation; None: there is
            none, and they are in `config`.

        Raises:
          UserError: a `model_type` that is none of `MODEL_TYPES`, a field of the wrong type or an unsupported value.
        """
        model_type = config.get("model_type", "t5")
        if model_type not in MODEL_TYPES:
            raise UserError(f"{where}: model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
        config = config | {name: value for name, value in UNSAID[model_type].items() if config.get(name) is None}
        tied = config.get("tie_word_embeddings") is not False
        given: dict[str, Any] = {"tie_word_embeddings": tied, "scale_decoder_outputs": tied}
        given |= fields_of(cls, config, where, unread=(*GENERATED, "model_type"))
        given.setdefault("num_decoder_layers", given["num_layers"])
        given |= _feed_forward(config, given.get("feed_forward_proj", cls.feed_forward_proj), where)
        if model_type == "mt5":
            given["scale_decoder_outputs"] = False
        eos = given.get("eos_token_id", cls.eos_token_id)
        if "pad_token_id" in config and config["pad_token_id"] is None:  # transformers then pads with EOS
            given["pad_token_id"] = eos
        start = given.get("pad_token_id", cls.pad_token_id)
        given |= generation_tokens(config, generation, where, eos=eos, start=start)
        try:
            return cls(**given, model_type=model_type)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields as `config.json` has them, readable by transformers and by `from_hf`."""
        fields = dataclasses.asdict(self)
        del fields["eos_token_ids"]  # which is of generation_config.json alone
        return fields | {
            "architectures": [f"{CLASSES[self.model_type]}ForConditionalGeneration"],
            "is_encoder_decoder": True,
        }


def _feed_forward(config: dict[str, Any], projection: str, where: str) -> dict[str, Any]:
    """`feed_forward_proj` where the two fields that transformers makes of it say something else: they count.

    Raises:
      UserError: one of the wrong type.
    """
    gated, activation = config.get("is_gated_act"), config.get("dense_act_fn")
    if not isinstance(gated, bool | None) or not isinstance(activation, str | None):
        raise UserError(f"{where}: dense_act_fn={activation!r}, is_gated_act={gated!r}: expected str and bool")
    said = projection.startswith("gated-"), projection.removeprefix("gated-")
    if projection == "gated-gelu":
        said = True, "gelu_new"
    meant = said[0] if gated is None else gated, said[1] if activation is None else activation
    if meant == said:
        return {}
    # A gated "gelu" means the one by tanh, so that the other needs its other name.
    name = "gelu_python" if meant == (True, "gelu") else meant[1]
    return {"feed_forward_proj": f"gated-{name}" if meant[0] else name}
