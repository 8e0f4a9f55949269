"""Weights of BART and its relatives under PyTorch's names: the hub's, a bare model's, the released trainer's.

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
    TORCH_SELECTOR,
    Flat,
    Rename,
    StateDict,
    renamed,
    to_flat,
    to_torch,
)
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError

LOGITS_BIAS, STACKS = "final_logits_bias", ("encoder", "decoder")
HEAD = re.compile(r"(^|\.)lm_head\.weight$")
TIED = re.compile(r"(^|\.)(lm_head|(encoder|decoder)\.embed_tokens)\.weight$")
DROPPED = re.compile(r"(^|\.)((encoder|decoder)\.version|embed_positions\.(position_ids|weights))$")
TO_TREE: tuple[Rename, ...] = (
    SELECTOR_TO_TREE,
    (r"([^.]*norm[^.]*)\.weight$", r"\1.scale", None),
    (r"(^|\.)(shared|embed_tokens|embed_positions|chunk_positions)\.weight$", r"\1\2.embedding", None),
    (r"\.weight$", ".kernel", np.transpose),
)
TO_TORCH: tuple[Rename, ...] = (
    SELECTOR_TO_TORCH,
    (r"\.kernel$", ".weight", np.transpose),
    (r"\.(scale|embedding)$", ".weight", None),
)


# What LED names in another way: its whole model, and the attention of its encoder.
_ATTENTION = r"(encoder\.layers\.\d+\.self_attn)\."
LED_TO_HUB: tuple[Rename, ...] = (
    (r"^led\.", "model.", None),
    (_ATTENTION + r"output\.", r"\1.out_proj.", None),
    (_ATTENTION + r"longformer_self_attn\.(\w+_global)\.", r"\1.\2.", None),
    (_ATTENTION + r"longformer_self_attn\.([qkv])\w+\.", r"\1.\2_proj.", None),
)
HUB_TO_LED: tuple[Rename, ...] = (
    (rf"^model\.(?!{re.escape(TORCH_SELECTOR.removeprefix('model.'))})", "led.", None),
    (_ATTENTION + r"out_proj\.", r"\1.output.", None),
    (_ATTENTION + r"(\w+_global)\.", r"\1.longformer_self_attn.\2.", None),
    *(
        (_ATTENTION + f"{name[0]}_proj\\.", rf"\1.longformer_self_attn.{name}.", None)
        for name in ("query", "key", "value")
    ),
)
OTHER_NAMES = {"led": (LED_TO_HUB, HUB_TO_LED)}  # by model_type


def from_state_dict(weights: StateDict, config: BartConfig, where: object = "state dict") -> Flat:
    """The parameters by their paths.

    Raises:
      UserError: `lm_head` or an `embed_tokens` differs from the embedding that it is to share.
    """
    to_hub, _ = OTHER_NAMES.get(config.family, ((), ()))
    weights = dict(renamed(name, value, to_hub) for name, value in weights.items())
    return completed(to_flat(_without_tied_copies(_hub_names(weights), config, where), TO_TREE), config)


def completed(flat: Flat, config: BartConfig) -> Flat:
    """With what files may leave out: a bias of zeros, tables of waves. Without what transformers does not read."""
    flat = {**flat, **_waves(config)} if config.dialect.positions.offset is None else {**_waves(config), **flat}
    if not config.dialect.logits_bias:
        return {name: value for name, value in flat.items() if name != LOGITS_BIAS}
    table = flat.get("model/decoder/embed_tokens/embedding", flat.get("model/shared/embedding"))
    return flat if table is None else {LOGITS_BIAS: np.zeros((1, len(table)), np.float32), **flat}


def to_state_dict(params: Any, config: BartConfig) -> StateDict:
    """The tree under the hub's names, without copies of the shared embedding and without what can be computed."""
    flat = trees.by_path(params)
    for name, table in {} if config.dialect.positions.saved else _waves(config).items():
        if np.array_equal(flat[name], table):
            del flat[name]
    _, from_hub = OTHER_NAMES.get(config.family, ((), ()))
    return to_torch(flat, (*TO_TORCH, *from_hub))


def _waves(config: BartConfig) -> Flat:
    """The tables of positions that do not learn."""
    waves, offset = config.dialect.positions.waves, config.position_offset
    if waves is None:
        return {}
    lengths = zip(STACKS, (config.max_position_embeddings, config.positions), strict=True)
    table = lambda length: waves(length + offset, config.d_model, config.pad_token_id)
    return {f"model/{stack}/embed_positions/embedding": table(length) for stack, length in lengths}


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


def _without_tied_copies(weights: StateDict, config: BartConfig, where: object) -> StateDict:
    """One embedding in place of the copies that `lm_head` and `embed_tokens` are."""
    together = config.share_encoder_decoder_embeddings
    kept, tied = ("model.shared.weight", TIED) if together else ("model.decoder.embed_tokens.weight", HEAD)
    copies = {name: value for name, value in weights.items() if tied.search(name)}
    weights = {name: value for name, value in weights.items() if name not in copies}
    for name, value in copies.items():
        shared = weights.setdefault(kept, value)
        if value.shape != shared.shape or not np.array_equal(value, shared):
            raise UserError(f"{where}: {name} differs from {kept}; untied embeddings are not supported")
    return weights
