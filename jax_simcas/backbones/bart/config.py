"""The shape of BART and its relatives, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jax_simcas.backbones.bart.dialects import DIALECTS, OWN, Dialect
from jax_simcas.backbones.hf_config import GENERATED, fields_of, generation_tokens
from jax_simcas.backbones.ops.layers import ACTIVATIONS
from jax_simcas.backbones.protocol import Flops, Tokens
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError

MODEL_TYPES = tuple(DIALECTS)  # by `model_type` of config.json
WINDOW = 512  # tokens, of LED's attention


@dataclass(frozen=True)
class BartConfig:
    """Sizes, rates and special tokens of a checkpoint of BART or of a relative of it; the defaults are BART-base.

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
    activation_function: str = "gelu"  # by transformers' name: "gelu", "gelu_new", "relu", "swish", ...
    dropout: float = 0.1  # share of the states set to zero while training
    attention_dropout: float = 0.0  # the same of attention weights
    activation_dropout: float = 0.0  # the same within feed-forward layers
    init_std: float = 0.02  # standard deviation of fresh weights
    scale_embedding: bool = False  # whether embeddings are multiplied by sqrt(d_model)
    # whether layers normalise their input, as in mBART; some `model_type`s decide it
    normalize_before: bool = False
    # whether each stack ends in one more layer norm, as in mBART; some `model_type`s decide it
    final_layer_norm: bool = False
    pad_token_id: int = 1  # fills the last chunk and short targets
    bos_token_id: int | None = 0  # first of every chunk, as the tokenizer has it; None: there is none
    eos_token_id: int = 2  # last of every chunk and target
    decoder_start_token_id: int = 2  # first of every target
    forced_bos_token_id: int | None = None  # token that every summary must begin with; None: any
    forced_eos_token_id: int | None = 2  # token that a summary of max_length must end with; None: any
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a summary; (): eos_token_id alone; (-1,): none
    model_type: str = ""  # by transformers' name, as "pegasus"; "": "mbart" where normalize_before is set, else "bart"
    max_decoder_position_embeddings: int | None = None  # LED's: most tokens of a target; None: max_position_embeddings
    attention_window: tuple[int, ...] = ()  # LED's: tokens that each attends to, by layer; a chunk has half of it
    decoder_vocab_size: int | None = None  # Marian's: tokens of targets, where they have a vocabulary of their own
    share_encoder_decoder_embeddings: bool = True  # Marian's: whether documents and targets have one vocabulary

    def __post_init__(self) -> None:
        checks.one_of(self, "model_type", ("", *MODEL_TYPES))
        self._complete()
        sizes = ("d_model", "encoder_ffn_dim", "decoder_ffn_dim")
        heads = ("encoder_attention_heads", "decoder_attention_heads")
        checks.at_least(self, 1, *sizes, *heads)
        checks.at_least(self, 1, "encoder_layers", "decoder_layers", most=checks.MOST_LAYERS)
        checks.at_least(self, 3, "vocab_size", "max_position_embeddings")
        if self.max_decoder_position_embeddings is not None:
            checks.at_least(self, 3, "max_decoder_position_embeddings")
        checks.at_least(self, 0, "init_std")
        checks.below_one(self, "dropout", "attention_dropout", "activation_dropout")
        checks.one_of(self, "activation_function", ACTIVATIONS)
        for name in heads:
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model={self.d_model} is not a multiple of {name}={getattr(self, name)}")
        read = ("pad_token_id", "bos_token_id", "eos_token_id")
        written = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
        for names, size in ((read, self.vocab_size), ((*read, *written), self.target_vocabulary)):
            for name in names:
                token = getattr(self, name)
                if token is not None and not 0 <= token < size:
                    raise ValueError(f"{name}={token} lies outside the vocabulary of {size} tokens")

    def _complete(self) -> None:
        """Sets what the dialect decides."""
        dialect = self.dialect
        decided = {name: getattr(dialect, name) for name in ("normalize_before", "final_layer_norm")}
        if "attention_window" in dialect.own:
            decided |= {"max_decoder_position_embeddings": self.positions}
            decided |= {"attention_window": self.attention_window or (WINDOW,) * self.encoder_layers}
        if not self.share_encoder_decoder_embeddings:
            decided |= {"decoder_vocab_size": self.target_vocabulary}
        for name, value in decided.items():
            if value is not None:
                object.__setattr__(self, name, value)
        if self.attention_window:
            self._check_window()

    def _check_window(self) -> None:
        windows, layers = self.attention_window, self.encoder_layers
        if len(windows) != layers or not all(window > 0 and window % 2 == 0 for window in windows):
            raise ValueError(f"attention_window={windows}: expected {layers} even numbers, one for each encoder layer")

    @property
    def family(self) -> str:
        """The `model_type` of transformers."""
        return self.model_type or ("mbart" if self.normalize_before else "bart")

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.family]

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def positions(self) -> int:
        """The most tokens of a target."""
        return self.max_decoder_position_embeddings or self.max_position_embeddings

    @property
    def chunk_positions(self) -> int:
        """The most tokens of a chunk; within half its window, LED's attention is that of BART."""
        return min((self.max_position_embeddings, *(window // 2 for window in self.attention_window)))

    @property
    def position_offset(self) -> int:
        """Rows of the position tables before that of position 0."""
        offset = self.dialect.positions.offset
        return self.pad_token_id + 1 if offset is None else offset

    @property
    def target_vocabulary(self) -> int:
        """The number of tokens of targets."""
        return self.vocab_size if self.share_encoder_decoder_embeddings else self.decoder_vocab_size or self.vocab_size

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
            logit=2 * d * self.target_vocabulary,
        )

    @property
    def wraps_targets(self) -> bool:
        """Whether a target's last token is what the decoder starts with in training: a language code.

        Source: `shift_tokens_right` of transformers' mBART and PLBart.
        """
        return self.dialect.wraps_targets

    @property
    def tokens(self) -> Tokens:
        """The special tokens."""
        return Tokens(
            self.pad_token_id,
            self.eos_token_id if self.bos_token_id is None else self.bos_token_id,
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
        dialect = DIALECTS[model_type]
        said, config = config, {**dialect.defaults, **config}
        for name, why in dialect.unsupported.items():
            if config.get(name):
                raise UserError(f"{where}: {name} is {config[name]!r}: {why}")
        config |= {ours: config[theirs] for ours, theirs in dialect.fields.items()}
        ours = "final_layer_norm" in config  # which only `to_hf` writes; transformers goes by the model_type alone
        unread = {*GENERATED, "model_type", "attention_window", *dialect.ignored, *(OWN - {*dialect.own})}
        given = fields_of(cls, config, where, {*unread, *(() if ours else ("normalize_before",))})
        if not ours:
            given |= dict.fromkeys(("normalize_before", "final_layer_norm"), model_type == "mbart")
        if "bos_token_id" in config and config["bos_token_id"] is None:
            given["bos_token_id"] = None
        if "pad_token_id" in config and config["pad_token_id"] is None:  # transformers then pads with EOS
            given["pad_token_id"] = given.get("eos_token_id", cls.eos_token_id)
        if given.get("share_encoder_decoder_embeddings", True):
            given.pop("decoder_vocab_size", None)
        if "attention_window" in dialect.own:
            given["attention_window"] = _windows(config["attention_window"], given["encoder_layers"], where)
        eos = given.get("eos_token_id", cls.eos_token_id)
        start = dialect.defaults.get("decoder_start_token_id", eos)
        given |= generation_tokens(said, generation, where, eos=eos, start=start)
        try:
            return cls(**given, model_type="" if model_type in ("bart", "mbart") else model_type)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields as `config.json` has them, readable by transformers and by `from_hf`."""
        dialect = self.dialect
        decided = {name for name in ("normalize_before", "final_layer_norm") if getattr(dialect, name) is not None}
        without = {"eos_token_ids", *decided, *(OWN - {*dialect.own})}  # those are of generation_config.json alone
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in without}
        fields = {dialect.fields.get(name, name): value for name, value in fields.items()}
        if fields.get("share_encoder_decoder_embeddings"):
            fields["decoder_vocab_size"] = self.vocab_size
        return fields | {
            "architectures": [dialect.name + dialect.head],
            "model_type": self.family,
            "is_encoder_decoder": True,
            "num_hidden_layers": self.encoder_layers,
        }


def _windows(value: Any, layers: int, where: str) -> tuple[int, ...]:
    """The window of each layer."""
    windows = value if isinstance(value, list | tuple) else [value] * layers
    if not all(isinstance(window, int) and not isinstance(window, bool) for window in windows):
        raise UserError(f"{where}: attention_window is {value!r}, expected int or a list of them")
    return tuple(windows)


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
