"""Generation settings of a checkpoint, as transformers keeps them: how they are read, and written back.

`generation_config.json` alone counts where there is one; else config.json, where transformers 4 wrote them.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from jax_simcas.backbones.families import replaced
from jax_simcas.backbones.hf_config import forces_bos
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints.hub import CONFIG, GENERATION, Pretrained
from jax_simcas.common.errors import UserError
from jax_simcas.method.generate_config import DEFAULTS, FORCED, NOTHING, GenerateConfig, tokens_of
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import Settings
from jax_simcas.run.fields import value_of

Raw = Mapping[str, Any]  # the file's content

# What transformers takes where a checkpoint says nothing; Source: `_get_default_generation_params`.
TRANSFORMERS = dataclasses.replace(DEFAULTS, num_beams=1, max_length=None)
UNLIMITED = 1 << 30  # of positions
NEW_TOKENS = 20  # the default, the start token not counted
OURS = tuple(field.name for field in dataclasses.fields(GenerateConfig))
LENGTHS = ("max_new_tokens", "min_new_tokens")
TOKENS = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id", "force_bos_token_to_be_generated")
# What do_sample needs: of no effect here, and kept for transformers.
SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"),
    "remove_invalid_values",
)
# What we lack, each with the values that ask for nothing.
LACKING: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "num_return_sequences": (1,),
    "encoder_repetition_penalty": (1.0,),
    "sequence_bias": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "constraints": (),
    "force_words_ids": (),
    "stop_strings": (),
    "max_time": (),
    "dola_layers": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "token_healing": (False,),
    "watermarking_config": (),
}


def of_config(config: Raw) -> Raw:
    """The generation settings in the content of a config.json, as generation_config.json has them."""
    known = (*OURS, *LENGTHS, *TOKENS, *LACKING, *SAMPLING)
    found = {name: config[name] for name in known if config.get(name) is not None}
    forced = found.pop("force_bos_token_to_be_generated", None) and forces_bos(config, in_config=True)
    return found | {"forced_bos_token_id": config.get("bos_token_id")} if forced else found


def read(
    raw: Raw, config: BackboneConfig, where: str, *, has_length: bool = False
) -> tuple[GenerateConfig, tuple[str, ...]]:
    """The settings with which transformers' `generate` reads a checkpoint, and notes for the user.

    The forced tokens are left to the backbone, whose tokens `from_hf` of its config reads.

    Args:
      has_length: the run has a max_length of its own, so the checkpoint's is not worth a note.

    Raises:
      UserError: a value that has no meaning; names `where`.
    """
    positions, hints = config.positions or UNLIMITED, typing.get_type_hints(GenerateConfig)
    names = [name for name in OURS if name not in FORCED and raw.get(name) not in (None, [])]
    given = {name: value_of(hints[name], raw[name], f"{where}: {name}") for name in names}
    max_length, min_length = _lengths(raw, positions, where)
    given |= {"max_length": min(max_length, positions), "min_length": min(min_length, max_length, positions)}
    try:
        settings = GenerateConfig(**given).filled(TRANSFORMERS)
        for name, token in tokens_of(settings):
            if token >= config.vocab_size:
                raise ValueError(f"{name}={token} lies outside the vocabulary of {config.vocab_size} tokens")
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    notes = []
    if not has_length and all(raw.get(name) is None for name in ("max_length", "max_new_tokens")):
        notes.append(f"{where}: no max_length: summaries of at most {max_length} tokens, as in transformers")
    if not has_length and max_length > positions:
        notes.append(
            f"warning: {where}: max_length={max_length} exceeds the model's {positions} positions, which count"
        )
    asked = [f"{name}={raw[name]!r}" for name, idle in LACKING.items() if raw.get(name) not in (None, *idle)]
    forced = raw.get("forced_eos_token_id")
    if isinstance(forced, list) and len(forced) > 1:
        asked.append(f"forced_eos_token_id={forced}")
    if asked:
        notes.append(f"warning: {where}: asks for {', '.join(asked)}, which this package has not; summaries may differ")
    return settings, tuple(notes)


def generation_of(loaded: Pretrained, where: str, has_length: bool = False) -> tuple[GenerateConfig, tuple[str, ...]]:
    """The generation settings of a checkpoint, and notes: those that we saved with it, or as transformers has them.

    Args:
      has_length: there is a max_length that counts in place of the checkpoint's.

    Raises:
      UserError: a value that has no meaning.
    """
    if loaded.extra and not loaded.generation_file:
        settings = config_lib.from_mapping(loaded.extra, f"{where}: its settings")
        return generating(settings, defaults(loaded.config)).generate, ()
    name = f"{where}/{GENERATION if loaded.generation_file else CONFIG}"
    return read(raw_generation(loaded), loaded.config, name, has_length=has_length)


def raw_generation(loaded: Pretrained) -> Mapping[str, Any]:
    """The generation settings of a checkpoint, as transformers has them."""
    return loaded.generation if loaded.generation_file else of_config(loaded.generation)


def defaults(shape: BackboneConfig) -> GenerateConfig:
    """The generation settings of a model from scratch, no longer than its positions."""
    assert DEFAULTS.max_length is not None
    longest = DEFAULTS.max_length if shape.positions is None else min(DEFAULTS.max_length, shape.positions)
    return GenerateConfig(max_length=longest).filled(DEFAULTS)


def generating(settings: Settings, checkpoint: GenerateConfig) -> Settings:
    """The settings with the checkpoint's generation settings where they have none.

    As in transformers, a shorter max_length lowers a min_length that the checkpoint asks for.
    """
    longest, shortest = settings.generate.max_length, checkpoint.min_length
    if longest is not None and shortest is not None and settings.generate.min_length is None:
        checkpoint = dataclasses.replace(checkpoint, min_length=min(shortest, longest))
    filled = config_lib.made(lambda: settings.generate.filled(checkpoint), "config.generate")
    return dataclasses.replace(settings, generate=filled)


def _lengths(raw: Raw, positions: int, where: str) -> tuple[int, int]:
    """(max_length, min_length), the start token included."""
    longest, shortest, most_new, least_new = (
        value_of(int | None, raw.get(name), f"{where}: {name}") for name in ("max_length", "min_length", *LENGTHS)
    )
    if most_new is not None or longest is None:
        longest = min(NEW_TOKENS + 1, positions) if most_new is None else most_new + 1
    return longest, (shortest or 0) if least_new is None else least_new + 1


def written(raw: Raw, settings: GenerateConfig, config: BackboneConfig) -> Raw:
    """What generation_config.json is to hold: `raw` where it says the same, else what it says changed to `settings`."""
    if raw:
        before = read(raw, config, GENERATION)[0]
        tokens = type(config).from_hf(config.to_hf(), GENERATION, raw).tokens
        if settings.filled(before) == before and tokens == _forced(config, settings).tokens:
            return raw
    config = _forced(config, settings)
    out = {name: value for name, value in raw.items() if name not in (*OURS, *LENGTHS, *TOKENS)}
    values = vars(settings.filled(TRANSFORMERS))
    out |= {name: value for name, value in values.items() if value is not None and name not in FORCED}
    ends = [token for token in config.eos_token_ids or (config.eos_token_id,) if token != NOTHING]
    out |= {
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "decoder_start_token_id": config.decoder_start_token_id,
        "forced_bos_token_id": config.forced_bos_token_id,
        "forced_eos_token_id": config.forced_eos_token_id,
    }
    return {name: value for name, value in out.items() if value is not None}


def to_json(raw: Raw, settings: GenerateConfig, config: BackboneConfig) -> str:
    """The text of generation_config.json; see `written`."""
    return json.dumps(dict(written(raw, settings, config)), indent=2, sort_keys=True) + "\n"


def _forced(config: BackboneConfig, settings: GenerateConfig) -> BackboneConfig:
    """The config with the forced tokens of the settings in place of its own."""
    given = {name: getattr(settings, name) for name in FORCED if getattr(settings, name) is not None}
    tokens: dict[str, Any] = {name: None if token == NOTHING else token for name, token in given.items()}
    return replaced(config, **tokens)
