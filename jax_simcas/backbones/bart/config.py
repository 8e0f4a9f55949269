"""The shape of a BART-like encoder-decoder, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jax_simcas.backbones.protocol import Tokens
from jax_simcas.common.errors import UserError

ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class BartConfig:
    """Sizes, rates and special tokens of a BART (or mBART) checkpoint; the defaults are BART-base.

    `normalize_before` and `final_layer_norm` are True in mBART: its layers normalise their input and each
    stack ends in one more layer norm.
    """

    vocab_size: int = 50265
    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 12
    decoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    decoder_ffn_dim: int = 3072
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    normalize_before: bool = False
    final_layer_norm: bool = False
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    decoder_start_token_id: int = 2
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = 2

    def __post_init__(self) -> None:
        for heads in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, heads):
                raise ValueError(f"d_model={self.d_model} is not a multiple of {heads}={getattr(self, heads)}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function={self.activation_function!r}: expected one of {', '.join(ACTIVATIONS)}"
            )
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            token = getattr(self, name)
            if not 0 <= token < self.vocab_size:
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
