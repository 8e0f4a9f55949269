"""T5's weights under PyTorch's names, in and out.

The tree's `encoder/block/0/layer/0/SelfAttention/q/kernel`, as Flax has it, is PyTorch's
`encoder.block.0.layer.0.SelfAttention.q.weight`, transposed; `TO_TREE` and `TO_TORCH` hold the rules.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
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
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError

SHARED, HEAD = "shared.weight", "lm_head.weight"
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # copies of the shared one
# What no layer reads: old files of T5 have it.
IGNORED = re.compile(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$")
TO_TREE: tuple[Rename, ...] = (
    SELECTOR_TO_TREE,
    (r"(^|\.)(shared|relative_attention_bias|chunk_positions)\.weight$", r"\1\2.embedding", None),
    (r"(?<!layer_norm)\.weight$", ".kernel", np.transpose),
)
TO_TORCH: tuple[Rename, ...] = (
    SELECTOR_TO_TORCH,
    (r"\.kernel$", ".weight", np.transpose),
    (r"\.embedding$", ".weight", None),
)


def from_state_dict(weights: StateDict, config: T5Config, where: object = "state dict") -> Flat:
    """The parameters by their paths, with `lm_head/kernel` only where the head is not the table of embeddings.

    Raises:
      UserError: an `embed_tokens` differs from the shared embedding.
    """
    weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not IGNORED.search(name)}
    tables = [name for name in (SHARED, *TABLES, HEAD) if name in weights]
    if not tables:
        return to_flat(weights, TO_TREE)
    shared = weights[tables[0]]
    for name in tables:
        same = np.array_equal(weights[name], shared)
        if not same and name != HEAD:
            raise UserError(f"{where}: {name} differs from {tables[0]}; a table of its own is not supported")
        if same:
            del weights[name]
    return to_flat({SHARED: shared} | weights, TO_TREE)


def to_state_dict(params: Any, config: T5Config) -> StateDict:
    """The tree under the hub's names, without tied copies of the shared embedding."""
    return to_torch(trees.by_path(params), TO_TORCH)


def fitted(config: T5Config, parameters: Collection[str]) -> T5Config:
    """The config of a model with these parameters: whether it has a head of its own is told by them alone."""
    return dataclasses.replace(config, tie_word_embeddings="lm_head/kernel" not in parameters)
