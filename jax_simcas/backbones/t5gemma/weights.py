"""T5Gemma's weights under PyTorch's names, in and out.

The tree has transformers' names: `model/encoder/layers/0/mlp/up_proj/kernel` is
`model.encoder.layers.0.mlp.up_proj.weight`, transposed. Files of a T5Gemma 2 may put `text_model` before the encoder's.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jax_simcas.backbones.ops.naming import (
    SELECTOR_TO_TORCH,
    SELECTOR_TO_TREE,
    Flat,
    Rename,
    StateDict,
    to_flat,
    to_torch,
)
from jax_simcas.backbones.t5gemma.config import T5GemmaConfig
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError

TABLE, TARGET_TABLE, HEAD = "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head.out_proj"
PASSENGER = re.compile(r"^model\.encoder\.(vision_tower|multi_modal_projector)\.")
DROPPED = re.compile(r"(rotary_emb\..*inv_freq|embed_tokens\.embed_scale)$")  # buffers, made anew
TO_TREE: tuple[Rename, ...] = (
    SELECTOR_TO_TREE,
    (r"([^.]*norm[^.]*)\.weight$", r"\1.scale", None),
    (r"(embed_tokens|lm_head\.out_proj|chunk_positions)\.weight$", r"\1.embedding", None),
    (r"\.weight$", ".kernel", np.transpose),
)
TO_TORCH: tuple[Rename, ...] = (
    SELECTOR_TO_TORCH,
    (r"\.kernel$", ".weight", np.transpose),
    (r"\.(scale|embedding)$", ".weight", None),
)


def from_state_dict(weights: StateDict, config: T5GemmaConfig, where: object = "state dict") -> Flat:
    """The parameters by their paths, without `passengers`.

    Raises:
      UserError: a copy of tied embeddings that differs from them.
    """
    weights = {name: value for name, value in _named(weights).items() if not PASSENGER.search(name)}
    return to_flat(_without_tied_copies(weights, config, where), TO_TREE)


def passengers(weights: StateDict) -> StateDict:
    """What sees images in a T5Gemma 2, under its names: nothing here reads it, and a checkpoint keeps it."""
    return {name: value for name, value in _named(weights).items() if PASSENGER.search(name)}


def to_state_dict(params: Any, config: T5GemmaConfig) -> StateDict:
    """The tree under the names that transformers saves, without tied copies and passengers."""
    return to_torch(trees.by_path(params), TO_TORCH)


def _named(weights: StateDict) -> StateDict:
    """Names as T5GemmaForConditionalGeneration saves them."""
    weights = {name: value for name, value in weights.items() if not DROPPED.search(name)}
    if not any(name.startswith("model.") for name in weights):  # a bare T5GemmaModel's
        weights = {name if name.startswith(HEAD) else f"model.{name}": value for name, value in weights.items()}
    return {re.sub(r"^model\.encoder\.text_model\.", "model.encoder.", name): value for name, value in weights.items()}


def _without_tied_copies(weights: StateDict, config: T5GemmaConfig, where: object) -> StateDict:
    """One table in place of its copies, where the config ties them."""
    if not config.tie_word_embeddings:
        return weights
    copies = {f"{HEAD}.weight": f"{TARGET_TABLE}.weight"}
    if config.merged:
        copies = {f"{name}.weight": f"{TABLE}.weight" for name in (TARGET_TABLE, HEAD)}
        copies[f"{TARGET_TABLE}.eoi_embedding"] = f"{TABLE}.eoi_embedding"
    weights = dict(weights)
    for copy, original in copies.items():
        if copy not in weights:
            continue
        value = weights.pop(copy)
        kept = weights.setdefault(original, value)
        if value.shape != kept.shape or not np.array_equal(value, kept):
            raise UserError(
                f"{where}: {copy} differs from {original}, which config.json ties to it; set tie_word_embeddings to "
                "false there if each is meant"
            )
    return weights
