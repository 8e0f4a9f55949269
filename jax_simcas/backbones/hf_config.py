"""What the `from_hf` of all families need: typed fields of a config.json, and the tokens of generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jax_simcas.common.errors import UserError

# The fields that `generation_tokens` gives.
GENERATED = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "eos_token_ids")


def fields_of(cls: type, config: Mapping[str, Any], where: str, unread: Collection[str] = ()) -> dict[str, Any]:
    """The fields of the dataclass `cls` that `config` gives, but for `unread`; null is not given.

    Raises:
      UserError: a field of the wrong type.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name not in unread and config.get(field.name) is not None:
            value = config[field.name]
            if field.name == "eos_token_id" and isinstance(value, list) and value:
                value = value[0]
            given[field.name] = checked(value, field, where)
    return given


def checked(value: Any, field: dataclasses.Field, where: str) -> Any:
    """The value as the field's type has it.

    Raises:
      UserError: another type.
    """
    kind = str(field.type).split(" |")[0]
    accepted = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{where}: {field.name} is {value!r}, expected {kind}")
    return float(value) if kind == "float" else value


def forces_bos(generation: Mapping[str, Any], in_config: bool) -> bool:
    """Whether summaries must begin with BOS under the option's first name, whatever `forced_bos_token_id` says.

    transformers obeys it in a config.json, and in a generation_config.json that was made of one.

    Source: `GenerationConfig.__init__`.
    """
    obeyed = in_config or generation.get("_from_model_config")
    return bool(obeyed and generation.get("force_bos_token_to_be_generated"))


def generation_tokens(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, where: str, *, eos: int, start: int
) -> dict[str, Any]:
    """The tokens that a summary starts and ends with, as transformers' `generate` finds them, by field.

    Source: `_prepare_special_tokens`: the start is `decoder_start_token_id`, else `bos_token_id`; without
    `eos_token_id` nothing ends a summary early.
    Deviation: with neither of the two, where transformers fails, the start is that of config.json, or `start`.

    Args:
      config: what config.json says; of fields that it lacks, transformers takes none of the family's defaults here.
      generation: the content of generation_config.json, beside it; None: there is none, and they are in `config`.
      eos: the model's.

    Raises:
      UserError: a value of the wrong type.
    """
    in_config = generation is None
    if generation is None:
        generation = config
    else:
        where = "".join(where.rpartition("/")[:2]) + "generation_config.json"
    starts = (*(_alone(generation.get(name)) for name in ("decoder_start_token_id", "bos_token_id")),)
    starts += (_alone(config.get("decoder_start_token_id")), start)
    tokens = {"decoder_start_token_id": next(token for token in starts if token is not None)}
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        token = _alone(generation.get(name))
        tokens[name] = None if isinstance(token, list) else token  # a warning tells of several
    if forces_bos(generation, in_config):
        tokens["forced_bos_token_id"] = generation.get("bos_token_id")
    for name, token in tokens.items():
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise UserError(f"{where}: {name} is {token!r}, expected int")
    ends = _ends(generation, where)
    return {**tokens, "eos_token_ids": () if ends == [eos] else tuple(ends) or (-1,)}


def _alone(token: Any) -> Any:
    """The token of a list of one."""
    return token[0] if isinstance(token, list) and len(token) == 1 else token


def _ends(generation: Mapping[str, Any], where: str) -> list[int]:
    """The tokens that end a summary: one, several or none."""
    given = generation.get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ends):
        raise UserError(f"{where}: eos_token_id is {given!r}, expected int")
    return ends
