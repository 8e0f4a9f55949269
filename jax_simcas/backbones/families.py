"""All families of backbones: what a `model_type` of config.json is read by. A family is a folder and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

from jax_simcas.backbones.bart import config as bart
from jax_simcas.backbones.bart import weights as bart_weights
from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.ops.attention import Attend, attention
from jax_simcas.backbones.ops.naming import Flat, StateDict
from jax_simcas.backbones.protocol import Backbone, BackboneConfig, Params
from jax_simcas.backbones.t5 import config as t5
from jax_simcas.backbones.t5 import weights as t5_weights
from jax_simcas.backbones.t5.backbone import T5
from jax_simcas.backbones.t5gemma import config as t5gemma
from jax_simcas.backbones.t5gemma import weights as t5gemma_weights
from jax_simcas.backbones.t5gemma.backbone import T5Gemma


class Family(NamedTuple):
    """config: the class of its `BackboneConfig`; the others take one of it.

    completed: adds what a file with the tree's own names may leave out. fitted: the config for such parameters.
    passengers: weights that nothing here computes with, such as those that see images; exports keep them.
    """

    model_types: tuple[str, ...]  # of transformers
    config: type[Any]
    backbone: Callable[[Any, Attend], Backbone]
    from_state_dict: Callable[[StateDict, Any, object], Flat]
    to_state_dict: Callable[[Params, Any], StateDict]
    completed: Callable[[Flat, Any], Flat] = lambda flat, shape: flat
    fitted: Callable[[Any, Collection[str]], Any] = lambda config, paths: config
    passengers: Callable[[StateDict], StateDict] = lambda weights: {}


# By the name of the section of the settings that holds the config.
FAMILIES: dict[str, Family] = {
    "bart": Family(
        bart.MODEL_TYPES,
        bart.BartConfig,
        Bart,
        bart_weights.from_state_dict,
        bart_weights.to_state_dict,
        bart_weights.completed,
    ),
    "t5": Family(
        t5.MODEL_TYPES,
        t5.T5Config,
        T5,
        t5_weights.from_state_dict,
        t5_weights.to_state_dict,
        fitted=t5_weights.fitted,
    ),
    "t5gemma": Family(
        t5gemma.MODEL_TYPES,
        t5gemma.T5GemmaConfig,
        T5Gemma,
        t5gemma_weights.from_state_dict,
        t5gemma_weights.to_state_dict,
        passengers=t5gemma_weights.passengers,
    ),
}
MODEL_TYPES = {model_type: name for name, family in FAMILIES.items() for model_type in family.model_types}


def name_of(shape: BackboneConfig) -> str:
    """The family of a config."""
    return next(name for name, family in FAMILIES.items() if isinstance(shape, family.config))


def chunk_positions(shape: BackboneConfig) -> int | None:
    """The most tokens of a chunk, which some models bound more tightly than those of a target."""
    most: int | None = getattr(shape, "chunk_positions", shape.positions)
    return most


def replaced(shape: BackboneConfig, **changes: Any) -> BackboneConfig:
    """`dataclasses.replace` for a config of any family.

    Raises:
      ValueError: a value that the field cannot have.
    """
    changed: BackboneConfig = dataclasses.replace(cast(Any, shape), **changes)
    return changed


def backbone_for(shape: BackboneConfig, attend: Attend = attention) -> Backbone:
    """The backbone of that shape."""
    return FAMILIES[name_of(shape)].backbone(shape, attend)
