"""The shape of a BART-like encoder-decoder, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jax_simcas.backbones.hf_config import fields_of, generation_tokens
from jax_simcas.backbones.protocol import Flops, Tokens
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError

ACTIVATIONS = ("gelu", "gelu_new", "relu")
MODEL_TYPES = ("bart", "mbart", "plbart")  # by `model_type` of config.json


@dataclass(frozen=True)
class BartConfig:
    """Sizes, rates and special tokens of a BART, mBART or PLBart checkpoint; the defaults are BART-base.

    Raises:
      ValueError: a value out of range, by the name of its field.
    """

    sizes: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "d_model", "max_position_embeddings"),
        *(f"{side}_{size}" for side in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")),
    )
    rates: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout", "activation_dropout")

    vocab_size: int = 50265  # tokens; a model from scratch has those of its tokenizer
    d_model: int = 768  # width of the states, D
    encoder_layers: int = 6  # number of layers of the encoder
    decoder_layers: int = 6  # number of layers of the decoder
    encoder_attention_heads: int = 12  # heads of the encoder's attention
    decoder_attention_heads: int = 12  # heads of the decoder's attention
    encoder_ffn_dim: int = 3072  # inner width of the encoder's feed-forward layers
    decoder_ffn_dim: int = 3072  # the same of the decoder
    max_position_embeddings: int = 1024  # most tokens of a chunk and of a target
    activation_function: str = "gelu"  # "gelu", "gelu_new" or "relu"
    dropout: float = 0.1  # share of the states set to zero while training
    attention_dropout: float = 0.0  # the same of attention weights
    activation_dropout: float = 0.0  # the same within feed-forward layers
    init_std: float = 0.02  # standard deviation of fresh weights
    scale_embedding: bool = False  # whether embeddings are multiplied by sqrt(d_model)
    normalize_before: bool = False  # whether layers normalise their input, as in mBART
    final_layer_norm: bool = False  # whether each stack ends in one more layer norm, as in mBART
    pad_token_id: int = 1  # fills the last chunk and short targets
    bos_token_id: int = 0  # first of every chunk
    eos_token_id: int = 2  # last of every chunk and target
    decoder_start_token_id: int = 2  # first of every target
    forced_bos_token_id: int | None = None  # token that every summary must begin with; None: any
    forced_eos_token_id: int | None = 2  # token that a summary of max_length must end with; None: any
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a summary; (): eos_token_id alone; (-1,): none
    model_type: str = ""  # "bart", "mbart" or "plbart"; "": "mbart" where normalize_before is set, else "bart"

    def __post_init__(self) -> None:
        sizes = ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
        heads = ("encoder_attention_heads", "decoder_attention_heads")
        checks.at_least(self, 1, *sizes, *heads)
        checks.at_least(self, 3, "vocab_size", "max_position_embeddings")
        checks.at_least(self, 0, "init_std")
        checks.below_one(self, "dropout", "attention_dropout", "activation_dropout")
        checks.one_of(self, "activation_function", ACTIVATIONS)
        checks.one_of(self, "model_type", ("", *MODEL_TYPES))
        for name in heads:
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model={self.d_model} is not a multiple of {name}={getattr(self, name)}")
        required = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        for name in (*required, "forced_bos_token_id", "forced_eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} lies outside the vocabulary of {self.vocab_size} tokens")

    @property
    def family(self) -> str:
        """The `model_type` of transformers."""
        return self.model_type or ("mbart" if self.normalize_before else "bart")

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def positions(self) -> int:
        return self.max_position_embeddings

    @property
    def encoder_heads(self) -> tuple[int, int]:
        return self.encoder_attention_heads, self.d_model // self.encoder_attention_heads

    @property
    def flops(self) -> Flops:
        d, encoder, decoder = self.d_model, self.encoder_layers, self.decoder_layers
        return Flops(
            encoder_token=encoder * (8 * d**2 + 4 * d * self.encoder_ffn_dim),
            encoder_pair=encoder * 4 * d,
            decoder_token=decoder * (12 * d**2 + 4 * d * self.decoder_ffn_dim),
            decoder_pair=decoder * 4 * d,
            cross_pair=decoder * 4 * d,
            selected_state=decoder * 4 * d**2,
            logit=2 * d * self.vocab_size,
        )

    @property
    def wraps_targets(self) -> bool:
        """Whether a target's last token is what the decoder starts with in training: a language code.

        Source: `shift_tokens_right` of transformers' mBART and PLBart.
        """
        return self.family != "bart"

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

    @classmethod
    def from_hf(
        cls, config: dict[str, Any], where: str = "config.json", generation: Mapping[str, Any] | None = None
    ) -> BartConfig:
        """Reads the fields of a Hugging Face `config.json`.

        Args:
          generation: the content of `generation_config.json`, whose tokens are those of generation; None: there is
            none, and they are in `config`.

        Raises:
          UserError: a `model_type` that is none of `MODEL_TYPES`, a field of the wrong type or an unsupported value.
        """
        model_type = config.get("model_type", "bart")
        if model_type not in MODEL_TYPES:
            raise UserError(f"{where}: model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
        mbart = model_type == "mbart"
        ours = "final_layer_norm" in config  # which only `to_hf` writes; transformers goes by the model_type alone
        unread = {"eos_token_ids", "model_type", *(() if ours else ("normalize_before",))}
        given = {"scale_embedding": model_type == "plbart"} | fields_of(cls, config, where, unread)
        if not ours:
            given |= {"normalize_before": mbart, "final_layer_norm": mbart}
        if "pad_token_id" in config and config["pad_token_id"] is None:  # transformers then pads with EOS
            given["pad_token_id"] = given.get("eos_token_id", cls.eos_token_id)
        eos = given.get("eos_token_id", cls.eos_token_id)
        given |= generation_tokens(config, generation, where, eos=eos, start=eos)
        try:
            return cls(**given, model_type="plbart" if model_type == "plbart" else "")
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields as `config.json` has them, readable by transformers and by `from_hf`."""
        name = {"bart": "Bart", "mbart": "MBart", "plbart": "PLBart"}[self.family]
        fields = dataclasses.asdict(self)
        del fields["eos_token_ids"]  # which is of generation_config.json alone
        return fields | {
            "architectures": [f"{name}ForConditionalGeneration"],
            "model_type": self.family,
            "is_encoder_decoder": True,
            "num_hidden_layers": self.encoder_layers,
        }


BART_BASE = BartConfig()
BART_LARGE = BartConfig(
    d_model=1024,
    encoder_layers=12,
    decoder_layers=12,
    encoder_attention_heads=16,
    decoder_attention_heads=16,
    encoder_ffn_dim=4096,
    decoder_ffn_dim=4096,
)
