"""The shape of a BART-like encoder-decoder, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax_simcas.backbones.protocol import Tokens
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError

ACTIVATIONS = ("gelu", "gelu_new", "relu")
FAMILIES = ("bart", "mbart", "plbart")  # by `model_type` of config.json


@dataclass(frozen=True)
class BartConfig:
    """Sizes, rates and special tokens of a BART, mBART or PLBart checkpoint; the defaults are BART-base.

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
        checks.one_of(self, "model_type", ("", *FAMILIES))
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
          UserError: a `model_type` that is none of `FAMILIES`, a field of the wrong type or an unsupported value.
        """
        model_type = config.get("model_type", "bart")
        if model_type not in FAMILIES:
            raise UserError(f"{where}: model_type is {model_type!r}, expected one of {', '.join(FAMILIES)}")
        mbart = model_type == "mbart"
        given: dict[str, Any] = {"scale_embedding": model_type == "plbart"}
        ours = "final_layer_norm" in config  # which only `to_hf` writes; transformers goes by the model_type alone
        unread = {"eos_token_ids", "model_type", *(() if ours else ("normalize_before",))}
        for field in dataclasses.fields(cls):
            if field.name not in unread and config.get(field.name) is not None:
                value = config[field.name]
                if field.name == "eos_token_id" and isinstance(value, list) and value:
                    value = value[0]
                given[field.name] = _checked(value, field, where)
        if not ours:
            given |= {"normalize_before": mbart, "final_layer_norm": mbart}
        if "pad_token_id" in config and config["pad_token_id"] is None:  # transformers then pads with EOS
            given["pad_token_id"] = given.get("eos_token_id", cls.eos_token_id)
        given |= _generation_tokens(config, config if generation is None else generation, given, where)
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


def _ends(generation: Mapping[str, Any], where: str) -> list[int]:
    """The tokens that end a summary: one, several or none."""
    given = generation.get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ends):
        raise UserError(f"{where}: eos_token_id is {given!r}, expected int")
    return ends


def forces_bos(generation: Mapping[str, Any], in_config: bool) -> bool:
    """Whether summaries must begin with BOS under the option's first name, whatever `forced_bos_token_id` says.

    transformers obeys it in a config.json, and in a generation_config.json that was made of one.

    Source: `GenerationConfig.__init__`.
    """
    obeyed = in_config or generation.get("_from_model_config")
    return bool(obeyed and generation.get("force_bos_token_to_be_generated"))


def _generation_tokens(
    config: Mapping[str, Any], generation: Mapping[str, Any], given: dict[str, Any], where: str
) -> dict[str, Any]:
    """The tokens that a summary starts and ends with, as transformers' `generate` finds them.

    Source: `_prepare_special_tokens`: the start is `decoder_start_token_id`, else `bos_token_id`; without
    `eos_token_id` nothing ends a summary early.
    Deviation: with neither of the two, where transformers fails, the start is that of config.json, or EOS.
    """
    starts = (*(generation.get(name) for name in ("decoder_start_token_id", "bos_token_id")),)
    starts += (config.get("decoder_start_token_id"), given.get("eos_token_id"), BartConfig.eos_token_id)
    start = next(token for token in starts if token is not None)
    tokens = {"decoder_start_token_id": start}
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        token = generation.get(name)
        tokens[name] = token[0] if isinstance(token, list) and len(token) == 1 else token
    if forces_bos(generation, in_config=generation is config):
        tokens["forced_bos_token_id"] = generation.get("bos_token_id")
    for name, token in tokens.items():
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise UserError(f"{where}: {name} is {token!r}, expected int")
    ends = _ends(generation, where)
    eos = given.get("eos_token_id", BartConfig.eos_token_id)
    return {**tokens, "eos_token_ids": () if ends == [eos] else tuple(ends) or (-1,)}


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
