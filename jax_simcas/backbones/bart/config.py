"""The shape of a BART-like encoder-decoder, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jax_simcas.backbones.protocol import Tokens
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError

ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class BartConfig:
    """Sizes, rates and special tokens of a BART (or mBART) checkpoint; the defaults are BART-base.

    Raises:
      ValueError: a value out of range, by the name of its field.
    """

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

    def __post_init__(self) -> None:
        sizes = ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
        heads = ("encoder_attention_heads", "decoder_attention_heads")
        checks.at_least(self, 1, *sizes, *heads)
        checks.at_least(self, 3, "vocab_size", "max_position_embeddings")
        checks.at_least(self, 0, "init_std")
        checks.below_one(self, "dropout", "attention_dropout", "activation_dropout")
        checks.one_of(self, "activation_function", ACTIVATIONS)
        for name in heads:
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model={self.d_model} is not a multiple of {name}={getattr(self, name)}")
        required = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        for name in (*required, "forced_bos_token_id", "forced_eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} lies outside the vocabulary of {self.vocab_size} tokens")

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
        )

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str = "config.json") -> BartConfig:
        """Reads the fields of a Hugging Face `config.json`.

        Raises:
          UserError: `model_type` is neither bart nor mbart, a field has the wrong type or an unsupported value.
        """
        model_type = config.get("model_type", "bart")
        if model_type not in ("bart", "mbart"):
            raise UserError(f"{where}: model_type is {model_type!r}, expected 'bart' or 'mbart'")
        mbart = model_type == "mbart"
        given = {"normalize_before": mbart, "final_layer_norm": mbart}
        for field in dataclasses.fields(cls):
            if config.get(field.name) is not None:
                given[field.name] = _checked(config[field.name], field, where)
        if "decoder_start_token_id" not in given:
            given["decoder_start_token_id"] = given.get("eos_token_id", cls.eos_token_id)
        if "forced_eos_token_id" not in given and "forced_eos_token_id" in config:
            given["forced_eos_token_id"] = None  # present and null: not forced
        try:
            return cls(**given)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields as `config.json` has them, readable by transformers and by `from_hf`."""
        mbart = self.normalize_before
        return {
            "architectures": ["MBartForConditionalGeneration" if mbart else "BartForConditionalGeneration"],
            "model_type": "mbart" if mbart else "bart",
            "is_encoder_decoder": True,
            "num_hidden_layers": self.encoder_layers,
            **dataclasses.asdict(self),
        }


def _checked(value: Any, field: dataclasses.Field, where: str) -> Any:
    kind = str(field.type).split(" |")[0]
    accepted = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{where}: {field.name} is {value!r}, expected {kind}")
    return float(value) if kind == "float" else value


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
