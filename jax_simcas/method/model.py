"""One document through SimCAS: encode with alignment, select, decode. `vmap` makes batches."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.bart.decoder import decode, init_decoder
from jax_simcas.backbones.bart.encoder import REMAT, encode_chunks, init_encoder
from jax_simcas.method import select as select_lib
from jax_simcas.method.align import ALIGNMENTS, align
from jax_simcas.method.reward import HYPER_LENGTH, REWARD_SCALE
from jax_simcas.method.select import Compacted, Selection

Params = Any
CHUNK_AXIS = "chunk"


@dataclass(frozen=True)
class SimcasConfig:
    """Every choice that method.md leaves open; the defaults are its defaults.

    capacity: rows that the decoder may attend to, the document's state included; None: all that are selected.
    policy: at inference.
    train_policy: in the transformer's training: "sample" draws; "all" goes without selection.
    budget: candidates a document that the policies `topk`, `random`, `first` and `spaced` keep.
    dtype: compute type of products and states; parameters, softmax, norms and losses stay float32.
    remat: what the backward pass need not recompute, from most memory to least: "none" recomputes nothing, "dots" no
      product, "sums" what products need but none that only a norm needs, "layer" all of a layer but its attention.
    """

    chunk_length: int = 512
    chunking: str = "fixed"
    max_input_len: int = 16_384  # tokens
    max_target_len: int = 1_024  # tokens
    mask_padding: bool = True
    align: str = "mean"
    chunk_position: str = "none"
    max_chunks: int = 1_024  # rows of the learned chunk positions
    policy: str = "greedy"
    train_policy: str = "sample"
    threshold: float = 0.5
    budget: int | None = None
    capacity: int | None = None
    empty_chunk: str = "all"
    reward_scale: float = REWARD_SCALE
    hyper_length: int = HYPER_LENGTH
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        allowed = {
            "chunking": ("fixed", "sentences"),
            "align": ALIGNMENTS,
            "chunk_position": ("none", "sinusoidal", "learned"),
            "policy": select_lib.POLICIES,
            "train_policy": ("sample", "all"),
            "empty_chunk": ("all", "none"),
            "dtype": ("float32", "bfloat16"),
            "remat": tuple(REMAT),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(values)}")
        for name, least in (
            ("chunk_length", 3),
            ("max_input_len", 3),
            ("max_target_len", 3),
            ("capacity", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold={self.threshold}: expected a probability")
        if self.policy in select_lib.BUDGETED and self.budget is None:
            raise ValueError(f"policy={self.policy!r} needs budget=<number of candidates a document>")

    def replace(self, **changes: Any) -> SimcasConfig:
        return dataclasses.replace(self, **changes)


def check_fits(bart: BartConfig, simcas: SimcasConfig) -> None:
    """Raises ValueError when a chunk or a target is longer than the model's position tables."""
    for name in ("chunk_length", "max_target_len"):
        if getattr(simcas, name) > bart.max_position_embeddings:
            raise ValueError(
                f"{name}={getattr(simcas, name)} exceeds the model's {bart.max_position_embeddings} positions "
                "(max_position_embeddings): lower it, or use a model with more positions"
            )


def init_params(key: Array, bart: BartConfig, simcas: SimcasConfig) -> Params:
    """Fresh parameters of transformer and selector (float32), in the tree of the published Flax BART."""
    keys = jax.random.split(key, 5)
    embedding = bart.init_std * jax.random.normal(keys[0], (bart.vocab_size, bart.d_model))
    encoder = init_encoder(keys[1], bart)
    if simcas.chunk_position == "learned":
        table = bart.init_std * jax.random.normal(keys[4], (simcas.max_chunks, bart.d_model))
        encoder["chunk_positions"] = {"embedding": table}
    return {
        "model": {
            "shared": {"embedding": embedding.at[bart.pad_token_id].set(0.0)},
            "encoder": encoder,
            "decoder": init_decoder(keys[2], bart),
        },
        "final_logits_bias": jnp.zeros((1, bart.vocab_size)),
        "selector": select_lib.init_selector(keys[3], bart.d_model),
    }


def chunk_positions(params: Params, bart: BartConfig, simcas: SimcasConfig, chunks: int) -> Float[Array, "K D"] | None:
    """What is added to every token of chunk k before layer 0, or None.

    sinusoidal: c sin(k w_i), c cos(k w_i) with w_i = 10000^(-2i/D) and c = sqrt(2) init_std: as large as the embeddings
    begin, which numbers of size 1 would drown.
    """
    if simcas.chunk_position == "none":
        return None
    if simcas.chunk_position == "learned":
        if chunks > simcas.max_chunks:
            raise ValueError(f"{chunks} chunks exceed max_chunks={simcas.max_chunks} learned chunk positions")
        return params["model"]["encoder"]["chunk_positions"]["embedding"][:chunks]
    rates = 10_000.0 ** (-jnp.arange(0, bart.d_model, 2) / bart.d_model)
    angles = jnp.arange(chunks)[:, None] * rates
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, : bart.d_model]
    return math.sqrt(2) * bart.init_std * waves


def encode(
    params: Params,
    bart: BartConfig,
    simcas: SimcasConfig,
    input_ids: Int[Array, "K S"],
    token_mask: Bool[Array, "K S"],
    chunk_mask: Bool[Array, " K"],
    key: Array | None = None,
) -> tuple[Float[Array, "K S D"], Float[Array, "L K S D"]]:
    """Encodes the chunks side by side; boundary states meet between layers, over the axis "chunk".

    Source: method.md "Encode and align". With `mask_padding=False` PAD is attended to (released code).

    Args:
      key: for dropout, one key a chunk is made of it; None switches dropout off.

    Returns:
      the last layer's states, and the inputs of all layers (dead code when unused).
    """
    chunks = input_ids.shape[0]
    visible = token_mask if simcas.mask_padding else jnp.broadcast_to(chunk_mask[:, None], token_mask.shape)
    added = chunk_positions(params, bart, simcas, chunks)
    keys = None if key is None else jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(chunks))

    def between(hidden: Array, inner: Array) -> Array:
        one_chunk = lambda x, real: align(x, real, simcas.align, CHUNK_AXIS, enabled=inner)
        return jax.vmap(one_chunk, axis_name=CHUNK_AXIS)(hidden, chunk_mask)

    return encode_chunks(
        params["model"],
        bart,
        input_ids,
        visible,
        between,
        added=added,
        keys=keys,
        dtype=jnp.dtype(simcas.dtype),
        remat=simcas.remat,
    )


def candidates(
    simcas: SimcasConfig, token_mask: Bool[Array, "K S"], chunk_mask: Bool[Array, " K"]
) -> Bool[Array, "K N"]:
    """Which of positions 1..S-1 may be selected: real tokens, or (released code) PAD as well."""
    if simcas.mask_padding:
        return token_mask[:, 1:]
    return jnp.broadcast_to(chunk_mask[:, None], token_mask[:, 1:].shape)


class Encoded(NamedTuple):
    """One document, ready for the decoder."""

    hidden: Float[Array, "K S D"]
    selection: Selection
    compacted: Compacted


def encode_and_select(
    params: Params,
    bart: BartConfig,
    simcas: SimcasConfig,
    input_ids: Int[Array, "K S"],
    token_mask: Bool[Array, "K S"],
    chunk_mask: Bool[Array, " K"],
    *,
    policy: str | None = None,
    select_key: Array | None = None,
    dropout_key: Array | None = None,
    budget: Int[Array, ""] | int | None = None,
    action: Bool[Array, "K N"] | None = None,
) -> Encoded:
    """encode, select, compact. The selector gets no gradient.

    Args:
      policy, budget: in place of the configured ones.
      action: given actions, before the keep-everything rule.
    """
    hidden, _ = encode(params, bart, simcas, input_ids, token_mask, chunk_mask, dropout_key)
    selection = select_lib.select(
        jax.lax.stop_gradient(params["selector"]),
        jax.lax.stop_gradient(hidden),
        candidates(simcas, token_mask, chunk_mask),
        chunk_mask,
        policy=policy or simcas.policy,
        key=select_key,
        budget=simcas.budget if budget is None else budget,
        threshold=simcas.threshold,
        empty_chunk=simcas.empty_chunk,
        action=action,
    )
    return Encoded(hidden, selection, select_lib.compact(hidden, chunk_mask, selection, simcas.capacity))


def decode_selected(
    params: Params,
    bart: BartConfig,
    simcas: SimcasConfig,
    compacted: Compacted,
    target_ids: Int[Array, " T"],
    target_mask: Bool[Array, " T"],
    dropout_key: Array | None = None,
    with_weights: bool = True,
) -> tuple[Float[Array, "T V"], Float[Array, " C"] | None]:
    """Teacher-forced logits, and (`with_weights`) the mean cross-attention weight of every selected state."""
    return decode(
        params,
        bart,
        compacted.states,
        compacted.mask,
        target_ids,
        target_mask,
        key=dropout_key,
        dtype=jnp.dtype(simcas.dtype),
        remat=simcas.remat,
        with_weights=with_weights,
    )
