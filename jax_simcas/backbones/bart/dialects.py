"""What tells the relatives of BART apart: a line of `DIALECTS` each, by the `model_type` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

Norm = Callable[[Array], Array]
# (norm, tokens [T, D], what is added to them, ...) -> the input of the first layer [T, D]
Combine = Callable[..., Float[Array, "T D"]]


def norm_of_sum(norm: Norm, tokens: Float[Array, "T D"], *added: Array) -> Float[Array, "T D"]:
    return norm(sum(added, tokens))


def sum_with_norm(norm: Norm, tokens: Float[Array, "T D"], *added: Array) -> Float[Array, "T D"]:
    """Only the tokens are normalised."""
    return sum(added, norm(tokens))


def plain_sum(norm: Norm, tokens: Float[Array, "T D"], *added: Array) -> Float[Array, "T D"]:
    """Nothing is normalised."""
    return sum(added, tokens)


def halves(rows: int, width: int, pad: int) -> Float[np.ndarray, "rows D"]:
    """Sines in the first half of the width, cosines in the second, of angles p 10000^(-2i/D) at position p.

    Computed in float64 and rounded once, as in transformers' Marian and PEGASUS.
    """
    rates = np.power(10_000.0, -2 * (np.arange(width) // 2) / width)
    angles = np.arange(rows)[:, None] * rates
    return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1).astype(np.float32)


def tensor2tensor(rows: int, width: int, pad: int) -> Float[np.ndarray, "rows D"]:
    """Sines, then cosines of angles p 10000^(-i/(D/2-1)) in row p; PAD's row is 0, as is an odd width's last column.

    Rates and angles are rounded to float32, as in transformers' M2M100; not so the functions of them.
    """
    half = width // 2
    step = np.float32(-np.log(10_000.0) / (half - 1))
    rates = np.exp((np.arange(half, dtype=np.float32) * step).astype(np.float64)).astype(np.float32)
    angles = (np.arange(rows, dtype=np.float32)[:, None] * rates).astype(np.float64)
    table = np.zeros((rows, width), np.float32)
    table[:, : 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table[pad] = 0.0
    return table


class Positions(NamedTuple):
    """The table of position embeddings of a stack.

    offset: rows before that of position 0; None: PAD's row and those before it. PAD then has its own row, and is not
      counted: tokens behind it have the positions that they would have without it.
    waves: (rows, width, PAD) -> a table that does not learn; None: it learns.
    saved: whether transformers writes the table.
    """

    offset: int | None = 2
    waves: Callable[[int, int, int], np.ndarray] | None = None
    saved: bool = True


class Dialect(NamedTuple):
    """One `model_type`.

    name: as transformers' classes begin. head: as that with a language model's head ends.
    normalize_before, final_layer_norm: fields of the config; None: it says itself.
    wraps_targets: a target's last token, a language code, is what the decoder starts with in training.
    logits_bias: whether there is one.
    kept: dense layers of the encoder's attention that nothing here reads: those of tokens that attend to all.
    own: fields of the config that no other has. ignored: fields that it has not. fields: their names in config.json, in
      place of BART's.
    defaults: what a config.json means that does not say. unsupported: what it must not set, and why.
    """

    name: str
    head: str = "ForConditionalGeneration"
    normalize_before: bool | None = False
    final_layer_norm: bool | None = False
    encoder_input: Combine = norm_of_sum
    decoder_input: Combine = norm_of_sum
    positions: Positions = Positions()
    wraps_targets: bool = False
    logits_bias: bool = True
    kept: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fields: Mapping[str, str] = MappingProxyType({})
    defaults: Mapping[str, Any] = MappingProxyType({})
    unsupported: Mapping[str, str] = MappingProxyType({})


def _sizes(width: int, layers: tuple[int, int], heads: int, inner: int, positions: int = 1024) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_position_embeddings": positions,
    }


def _tokens(
    vocabulary: int, pad: int, bos: int | None, eos: int, start: int, last: int | None = None
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "decoder_start_token_id": start,
        "forced_eos_token_id": last,
    }


_LARGE = _sizes(1024, (12, 12), 16, 4096)
_OPEN = Dialect("", normalize_before=None, final_layer_norm=None)  # its norms are told by the config
_PLAIN = Dialect("", encoder_input=plain_sum, decoder_input=plain_sum)
_BEFORE = _PLAIN._replace(normalize_before=True, final_layer_norm=True)

DIALECTS: dict[str, Dialect] = {
    "bart": _OPEN._replace(name="Bart", defaults=_LARGE),
    "mbart": _OPEN._replace(name="MBart", wraps_targets=True, defaults=_LARGE),
    "plbart": _OPEN._replace(
        name="PLBart",
        wraps_targets=True,
        defaults={"scale_embedding": True, "attention_dropout": 0.1, "vocab_size": 50005},
    ),
    "mvp": Dialect(
        "Mvp",
        defaults=_LARGE | _tokens(50267, 1, 0, 2, 2),
        unsupported={"use_prompt": "prompts are not read, as in transformers 5; false runs the model without them"},
    ),
    "pegasus": _BEFORE._replace(
        name="Pegasus",
        positions=Positions(0, halves),
        defaults=_LARGE | _tokens(50265, 0, None, 1, 0, 1),
    ),
    "marian": _PLAIN._replace(
        name="Marian",
        head="MTModel",
        positions=Positions(0, halves, saved=False),
        own=("decoder_vocab_size", "share_encoder_decoder_embeddings"),
        defaults=_LARGE | _tokens(58101, 58100, None, 0, 58100, 0),
    ),
    "m2m_100": _BEFORE._replace(
        name="M2M100",
        positions=Positions(None, tensor2tensor, saved=False),
        logits_bias=False,
        defaults=_LARGE
        | _tokens(128112, 1, 0, 2, 2)
        | {"activation_function": "relu", "scale_embedding": True, "attention_dropout": 0.1},
    ),
    "blenderbot": _BEFORE._replace(
        name="Blenderbot",
        positions=Positions(0),
        defaults=_sizes(2560, (2, 24), 32, 10240, 128) | _tokens(8008, 0, 1, 2, 1, 2),
    ),
    "blenderbot-small": Dialect(
        "BlenderbotSmall",
        decoder_input=sum_with_norm,
        positions=Positions(0),
        defaults=_sizes(512, (8, 8), 16, 2048, 512) | _tokens(50265, 0, 1, 2, 1, 2),
    ),
    "led": Dialect(
        "LED",
        positions=Positions(0),
        kept=("query_global", "key_global", "value_global"),
        own=("max_decoder_position_embeddings", "attention_window"),
        ignored=("scale_embedding",),
        fields={"max_position_embeddings": "max_encoder_position_embeddings"},
        defaults=_LARGE
        | _tokens(50265, 1, 0, 2, 2)
        | {
            "max_encoder_position_embeddings": 16384,
            "max_decoder_position_embeddings": 1024,
            "attention_window": 512,
        },
    ),
}
OWN = {field for dialect in DIALECTS.values() for field in dialect.own}
