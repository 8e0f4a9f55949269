"""BART's weights under PyTorch's names, in and out: the hub's, a bare BartModel's, the released trainer's.

The tree's `model/encoder/layers/0/fc1/kernel`, as Flax has it, is PyTorch's `model.encoder.layers.0.fc1.weight`,
transposed; `TO_TREE` and `TO_TORCH` hold the rules.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops.naming import (
    SELECTOR_TO_TORCH,
    SELECTOR_TO_TREE,
    Flat,
    Rename,
    StateDict,
    to_flat,
    to_torch,
)
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError

SHARED, LOGITS_BIAS = "model/shared/embedding", "final_logits_bias"
TIED = re.compile(r"(^|\.)(lm_head|(encoder|decoder)\.embed_tokens)\.weight$")
DROPPED = re.compile(r"(^|\.)((encoder|decoder)\.version|embed_positions\.position_ids)$")
TO_TREE: tuple[Rename, ...] = (
    SELECTOR_TO_TREE,
    (r"([^.]*norm[^.]*)\.weight$", r"\1.scale", None),
    (r"(^|\.)(shared|embed_positions|chunk_positions)\.weight$", r"\1\2.embedding", None),
    (r"\.weight$", ".kernel", np.transpose),
)
TO_TORCH: tuple[Rename, ...] = (
    SELECTOR_TO_TORCH,
    (r"\.kernel$", ".weight", np.transpose),
    (r"\.(scale|embedding)$", ".weight", None),
)


def from_state_dict(weights: StateDict, config: BartConfig, where: object = "state dict") -> Flat:
    """The parameters by their paths.

    Raises:
      UserError: `lm_head` or an `embed_tokens` differs from the shared embedding.
    """
    flat = to_flat(_without_tied_copies(_hub_names(weights), where), TO_TREE)
    if SHARED in flat and LOGITS_BIAS not in flat:
        flat[LOGITS_BIAS] = np.zeros((1, *flat[SHARED].shape[:1]), np.float32)
    return flat


def to_state_dict(params: Any, config: BartConfig) -> StateDict:
    """The tree under the hub's names, without tied copies of the shared embedding."""
    return to_torch(trees.by_path(params), TO_TORCH)


def _hub_names(weights: StateDict) -> StateDict:
    """Names as BartForConditionalGeneration has them."""
    weights = {name: value for name, value in weights.items() if not DROPPED.search(name)}
    inside = [name.startswith("model.") for name in weights]
    if inside and all(inside) and any("model.model." in name for name in weights):  # the released trainer's
        return {name.removeprefix("model."): value for name, value in weights.items()}
    if not any(inside):  # a bare BartModel's
        outside = (LOGITS_BIAS, "lm_head.weight")
        return {name if name in outside else f"model.{name}": value for name, value in weights.items()}
    return weights


def _without_tied_copies(weights: StateDict, where: object) -> StateDict:
    """One shared embedding in place of the copies that `lm_head` and `embed_tokens` are."""
    copies = {name: value for name, value in weights.items() if TIED.search(name)}
    weights = {name: value for name, value in weights.items() if name not in copies}
    for name, value in copies.items():
        shared = weights.setdefault("model.shared.weight", value)
        if value.shape != shared.shape or not np.array_equal(value, shared):
            raise UserError(f"{where}: {name} differs from model.shared.weight; untied embeddings are not supported")
    return weights
