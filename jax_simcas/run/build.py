"""From settings to what a run is made of: model, tokenizer, rows, batches; and how a trained model is read back."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jax_simcas.backbones.families import chunk_positions, name_of, replaced
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints.hub import (
    EXTRA,
    Pretrained,
    fill_missing_params,
    load,
    read_config,
    read_generation,
    read_passengers,
)
from jax_simcas.checkpoints.repository import PASSENGERS
from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common.errors import NoSuchModel, UserError, prefixed
from jax_simcas.common.sharding import put, state_shardings
from jax_simcas.common.tables import plural
from jax_simcas.common.trees import Params
from jax_simcas.data import formats, synthetic
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.rows import RowSource
from jax_simcas.data.tokenizer import TextTokenizer
from jax_simcas.evaluation.predict import Predictor
from jax_simcas.evaluation.summarizer import Summarizer
from jax_simcas.method.generate_config import FORCED, NOTHING
from jax_simcas.method.model import init_params
from jax_simcas.run import config as config_lib
from jax_simcas.run.allowed_code import check_names
from jax_simcas.run.config import TARGET, Settings
from jax_simcas.run.config_file import named_by, with_flags
from jax_simcas.run.generation import defaults, generating, generation_of, raw_generation
from jax_simcas.run.method_config import SimcasConfig, check_machine
from jax_simcas.run.overrides import Keywords, overrides_of
from jax_simcas.run.workdir import CHECKPOINTS, CONFIG, TOKENIZER

WARNING = "warning: "  # begins a note that a user should not miss
# The fields of a shape that name its special tokens.
ROLES = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", *FORCED)


class Model(NamedTuple):
    """Settings, parameters and tokenizer of a model.

    notes: for the user. generation: the generation settings of the checkpoint, as transformers has them.
    has_selector: the checkpoint had one, and so it was trained. step: of a run's checkpoint. passengers: weights of the
    checkpoint that nothing here reads.
    """

    settings: Settings
    params: Params
    tokenizer: TextTokenizer
    notes: tuple[str, ...]
    generation: Mapping[str, Any] = MappingProxyType({})
    has_selector: bool = True
    step: int | None = None
    passengers: Mapping[str, Any] = MappingProxyType({})


def open_source(settings: Settings, split: str, cache: Path, need_reference: bool = True) -> RowSource:
    """The rows of `split`; rows without a reference only where none is needed."""
    data = settings.data
    if data.source == "embedded":
        return synthetic.SyntheticSource(split, data.embedded)
    options = {"max_bad_rows": data.max_bad_rows, "need_reference": need_reference}
    return formats.open_rows(data.source, data.data_dir, split, data.fields, cache, **options)


def pipeline_config(settings: Settings) -> PipelineConfig:
    """The part of the settings that turns rows into batches."""
    names = {field.name for field in dataclasses.fields(PipelineConfig)}
    shared = {name: value for name, value in (vars(settings.simcas) | vars(settings.data)).items() if name in names}
    shape = settings.backbone_config
    start = None if shape.wraps_targets else shape.decoder_start_token_id
    return PipelineConfig(**shared, seed=settings.loop.seed, decoder_start=start, embedding_rows=shape.vocab_size)


def make_tokenizer(settings: Settings, cache: Path) -> TextTokenizer:
    """The tokenizer that the settings name; trains one on the training split if they name none."""
    data = settings.data
    if data.tokenizer:
        return tokenizer_lib.load_tokenizer(data.tokenizer)
    if data.source == "embedded":
        words, punctuated = data.embedded.words, synthetic.WORDINGS[data.embedded.wording].punctuated
        folder = cache / "tokenizers" / f"words-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:20]}"
        return tokenizer_lib.load_or_make(folder, lambda path: tokenizer_lib.word_level(words, path, punctuated))
    source = open_source(settings, data.train_split, cache)
    if source[0].chunks is not None:
        raise UserError(
            f"{source!r} holds token ids: name the tokenizer that made them, --config.data.tokenizer=FOLDER-or-hub-id, "
            "or --config.pretrained (facebook/bart-base for the authors' sets)"
        )
    return tokenizer_lib.train_on_rows(source, data.vocab_size, cache)


def new_model(settings: Settings, cache: Path, mesh: Mesh, saved_tokenizer: Path | None = None) -> Model:
    """A model to start training from: as `load_weights` reads it, or fresh with a vocabulary that fits the tokenizer.

    Parameters are made or read directly into their shards on the mesh. A resumed run keeps the tokenizer that it
    saved, if `saved_tokenizer` exists.

    Raises:
      UserError: weights, vocabulary or lengths that do not fit together.
    """
    check_machine(settings.simcas)
    key = jax.random.key(settings.loop.seed)
    languages = settings.data.src_lang, settings.data.tgt_lang
    saved = None
    if saved_tokenizer and saved_tokenizer.is_dir():
        saved = tokenizer_lib.load_tokenizer(saved_tokenizer, *languages)
    if settings.pretrained:
        return _from_pretrained(settings, key, mesh, saved)
    tokenizer = saved or make_tokenizer(settings, cache)
    tokenizer_lib.set_languages(tokenizer, *languages)
    settings = in_language(with_tokens_of(settings, tokenizer), tokenizer)
    sized = partial(replaced, settings.backbone_config, vocab_size=len(tokenizer))
    settings = settings.with_backbone_config(config_lib.made(sized, f"config.{settings.family}"))
    settings = config_lib.check(generating(settings, defaults(settings.backbone_config)), sizes_known=True)
    fresh = partial(init_params, model=settings.model())
    shardings = state_shardings(mesh, jax.eval_shape(fresh, key), settings.model().sharding_rules)
    notes = check_vocabulary(tokenizer, settings, f"config.{settings.family}")
    return Model(settings, jax.jit(fresh, out_shardings=shardings)(key), tokenizer, notes)


def with_tokens_of(settings: Settings, tokenizer: TextTokenizer) -> Settings:
    """The settings of a model from scratch whose special tokens are the tokenizer's where they are the family's own.

    A token that starts, begins or ends a target stays what it is in the family: T5's decoder starts with PAD, BART's
    with EOS. Other ids than the family's stay, as they come from the user, and a token that the family lacks stays out.
    """
    shape: Any = settings.backbone_config
    usual: Any = type(shape)()
    roles = {getattr(usual, f"{role}_token_id"): role for role in ("pad", "eos", "bos")}
    ids = {role: tokenizer_lib.special_id(tokenizer, role) for role in roles.values()}
    changes = {
        name: ids[roles[getattr(usual, name)]]
        for name in ROLES
        if getattr(usual, name) is not None and getattr(shape, name) == getattr(usual, name)
    }
    return settings.with_backbone_config(replaced(shape, **changes))


def _from_pretrained(settings: Settings, key: jax.Array, mesh: Mesh, saved: TextTokenizer | None) -> Model:
    """`new_model` from pretrained weights: their sizes, tokens and generation settings where the run gives none."""
    source, data = settings.pretrained, settings.data
    with prefixed("config.pretrained=", NoSuchModel):
        loaded = load_weights(source)
    has_selector = "selector" in loaded.params
    generate, notes = generation_of(loaded, source, has_length=settings.generate.max_length is not None)
    loaded = fill_missing_params(loaded, source, key, settings.model().chunk_position)
    settings = settings.with_backbone_config(keep_run_dropout(loaded.config, settings))
    settings = fitted_to(generating(settings, generate), settings.backbone_config)
    if not has_selector and not settings.loop.selector_every:
        settings, untrained = without_selector(settings)
        notes += untrained
    tokenizer = saved or tokenizer_lib.load_tokenizer(data.tokenizer or loaded.folder, data.src_lang, data.tgt_lang)
    settings = in_language(settings, tokenizer)
    notes += check_vocabulary(tokenizer, settings, source)
    config_lib.check(settings, sizes_known=True)
    params = put(loaded.params, state_shardings(mesh, loaded.params, settings.model().sharding_rules))
    notes = (*loaded.notes, *notes)
    return Model(settings, params, tokenizer, notes, raw_generation(loaded), has_selector, passengers=loaded.passengers)


def in_language(
    settings: Settings, tokenizer: TextTokenizer, flags: Mapping[str, str] = MappingProxyType({})
) -> Settings:
    """The settings with summaries that begin in the target language, where one is named, or with a token named by text.

    Where the tokenizer ends a target with its language's code (mBART-25, PLBart), the decoder starts with it; where it
    begins a target with it (mBART-50, NLLB, M2M100), or the model does not wrap targets around, it is the forced first
    token.
    """
    settings = _with_ids(settings, "generate", ("forced_bos_token_id",), tokenizer, flags)
    settings = _with_ids(settings, "simcas", ("chunk_start", "chunk_end"), tokenizer, flags)
    if not settings.data.tgt_lang:
        return settings
    frame, code = tokenizer_lib.frame_of(tokenizer), tokenizer_lib.language_id(tokenizer, settings.data.tgt_lang)
    changes: dict[str, Any] = {}
    if settings.backbone_config.wraps_targets:
        changes["decoder_start_token_id"] = (*frame.target_prefix, *frame.target_suffix)[-1]
    if code in frame.target_prefix or not settings.backbone_config.wraps_targets:
        changes["forced_bos_token_id"] = code
    return settings.with_backbone_config(replaced(settings.backbone_config, **changes))


def _with_ids(
    settings: Settings, section: str, names: tuple[str, ...], tokenizer: TextTokenizer, flags: Mapping[str, str]
) -> Settings:
    """The settings with the ids of tokens that these fields name by text."""
    held = getattr(settings, section)
    ids: dict[str, int] = {}
    for name in names:
        given = getattr(held, name)
        if isinstance(given, str):
            token = tokenizer.backend_tokenizer.token_to_id(given)
            if token is None:
                shown = flags.get(f"{section}.{name}", f"config.{section}.{name}")
                raise UserError(f"{shown}={given!r}: the tokenizer has no such token")
            ids[name] = token
    changed: Any = dataclasses.replace(held, **ids)
    return dataclasses.replace(settings, **{section: changed})


LEARNED_POLICIES = ("greedy", "sample", "threshold", "topk")  # those that ask the selector


def without_selector(settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Settings without a selector, and a note: all states are kept or, beyond a capacity, evenly spread ones."""
    simcas = settings.simcas
    if simcas.policy not in LEARNED_POLICIES:
        return settings, ()
    room = None if simcas.capacity is None else simcas.capacity - 1
    wanted = simcas.budget if simcas.policy == "topk" else None
    budget = min((count for count in (room, wanted) if count is not None), default=None)
    changes: dict[str, Any] = {"policy": "all"} if budget is None else {"policy": "spaced", "budget": budget}
    if not settings.loop.selector_every:
        changes["train_policy"] = "all"
    settings = dataclasses.replace(settings, simcas=simcas.replace(**changes))
    kept = "all states" if budget is None else f"at most {plural(budget, 'evenly spread state')}"
    return settings, (f"until a selector is trained, policy={settings.simcas.policy} keeps {kept}",)


def keep_run_dropout(pretrained: BackboneConfig, settings: Settings) -> BackboneConfig:
    """The pretrained shape with the dropout rates of the run."""
    wanted = getattr(settings, name_of(pretrained))
    return replaced(pretrained, **{name: getattr(wanted, name) for name in pretrained.rates})


def check_vocabulary(tokenizer: TextTokenizer, settings: Settings, where: str | os.PathLike[str]) -> tuple[str, ...]:
    """A note if targets end in a token that does not end a summary.

    Raises:
      UserError: a special token around texts that has no row in the embedding; any other is refused where it occurs.
    """
    frame, rows = tokenizer_lib.frame_of(tokenizer), settings.backbone_config.vocab_size
    target = (*frame.target_prefix, *frame.target_suffix)
    chosen = {token for token in (settings.simcas.chunk_start, settings.simcas.chunk_end) if isinstance(token, int)}
    without = sorted(token for token in {*frame.tokens, *target, *chosen} if token >= rows)
    if without:
        names = ", ".join(f"{tokenizer.backend_tokenizer.id_to_token(token)} ({token})" for token in without)
        raise UserError(
            f"{where}: the tokenizer puts {names} around texts, but the weights have {rows} tokens: use the tokenizer "
            "that the weights were trained with"
        )
    tokens = settings.backbone_config.tokens
    ends = tokens.all_ends
    if ends != (NOTHING,) and not set(ends) & set(frame.target_suffix):
        given = " ".join(map(str, frame.target_suffix))
        ends_differ = f"targets end in token {given}, generation ends at {' '.join(map(str, ends))}"
        return (f"warning: {where}: {ends_differ}: a model trained on these targets does not learn to end",)
    return ()


def is_workdir(source: str) -> bool:
    """Whether it is a folder that training made, whose settings come from the user."""
    return (Path(source) / CHECKPOINTS).is_dir()


def load_weights(source: str, step: Any = "best") -> Pretrained:
    """A workdir's checkpoint, a folder with weights in any layout, or a hub id; `folder` has the tokenizer.

    Raises:
      UserError: none of these, or what is there does not fit together.
    """
    folder = Path(source)
    if is_workdir(source):
        settings = config_lib.read_json(folder / CONFIG)
        params, meta = load_params(folder / CHECKPOINTS, step)
        notes = (*meta["warnings"], f"{source}: checkpoint of step {meta['step']}")
        params = settings.model().backbone.unstack(params)
        training: dict[str, int] = {name: meta[name] for name in ("step", "rows") if name in meta}
        return Pretrained(
            settings.backbone_config,
            params,
            folder / TOKENIZER,
            dataclasses.asdict(settings),
            notes,
            read_generation(folder) or {},
            training=training,
            passengers=read_passengers(folder / PASSENGERS),
        )
    if (folder / TOKENIZER).is_dir():
        raise UserError(f"{source}: a workdir without a checkpoint; train it first")
    return load(source)


def fitted_to(settings: Settings, shape: BackboneConfig) -> Settings:
    """The settings with the lengths of chunks and targets of our configs no longer than the positions of the model.

    A length that is nobody's but the user's is left to the check.
    """
    simcas, generate, positions = settings.simcas, settings.generate, shape.positions
    most = {"chunk_length": chunk_positions(shape), "max_target_len": positions}
    ours = {"chunk_length": (SimcasConfig.chunk_length,), "max_target_len": (SimcasConfig.max_target_len, TARGET)}
    lengths = {name: (getattr(simcas, name), bound) for name, bound in most.items() if bound is not None}
    fitting = {name: min(length) for name, length in lengths.items() if length[0] in ours[name]}
    if positions is not None and generate.max_length == TARGET > positions:
        least = None if generate.min_length is None else min(generate.min_length, positions)
        generate = dataclasses.replace(generate, max_length=positions, min_length=least)
    return dataclasses.replace(settings, simcas=simcas.replace(**fitting), generate=generate)


def load_model(source: str, step: Any = "best", given: Container[str] = ()) -> Model:
    """A trained model, as `load_weights` reads it, with the settings that lie beside it or the default ones.

    Args:
      given: settings that will be replaced, and so need no note.

    Raises:
      UserError: no model, or what is there does not fit together.
    """
    loaded = load_weights(source, step)
    has_selector = "selector" in loaded.params
    generate, notes = generation_of(loaded, source, has_length="generate.max_length" in given)
    loaded = fill_missing_params(loaded, source, jax.random.key(0))
    settings = Settings()
    if loaded.extra:
        settings = config_lib.from_mapping(loaded.extra, f"{source}: its settings")
        if not is_workdir(source):
            settings = check_names(settings, f"{source}: its settings")
    settings = dataclasses.replace(settings, pretrained=source, generate=generate).with_backbone_config(loaded.config)
    if not loaded.extra:
        settings = fitted_to(settings, loaded.config)
    tokenizer = tokenizer_lib.load_tokenizer(loaded.folder, settings.data.src_lang, settings.data.tgt_lang)
    notes += check_vocabulary(tokenizer, settings, source)
    notes, step = (*loaded.notes, *notes), loaded.training.get("step")
    return Model(settings, loaded.params, tokenizer, notes, raw_generation(loaded), has_selector, step)


def configured(model: Model, arguments: Any = None) -> Model:
    """A model as the flags of a program have it: its settings checked, its languages, a policy that it has learned.

    Raises:
      UserError: names the flag.
    """
    if arguments is None:
        settings = config_lib.check(model.settings, sizes_known=True)
    else:
        settings = with_flags(model.settings, arguments)
    notes = model.notes
    if not model.has_selector and "simcas.policy" not in named_by(arguments):
        settings, untrained = without_selector(settings)
        notes += untrained
    flags = {} if arguments is None else overrides_of(arguments)
    named = [flags.get(f"data.{name}", (f"config.data.{name}",))[0] for name in ("src_lang", "tgt_lang")]
    tokenizer_lib.set_languages(model.tokenizer, settings.data.src_lang, settings.data.tgt_lang, (named[0], named[1]))
    shown = {field: flag for field, (flag, _) in flags.items()}
    return model._replace(settings=in_language(settings, model.tokenizer, shown), notes=notes)


def read_settings(source: str) -> Settings:
    """The settings that `load_model` would give, without reading weights; a hub id's are read with its weights.

    Raises:
      UserError: what lies there is not what training or `convert` wrote.
    """
    folder = Path(source)
    if is_workdir(source):
        return dataclasses.replace(config_lib.read_json(folder / CONFIG), pretrained=source)
    if (folder / EXTRA).is_file():
        settings = check_names(config_lib.read_json(folder / EXTRA), f"{source}: its settings")
        return dataclasses.replace(settings, pretrained=source)
    return Settings(pretrained=source)


def read_sizes(source: str) -> BackboneConfig:
    """The shape of the model in a workdir or a folder, without reading weights.

    Raises:
      UserError: its config.json is missing or not one of a model that can be read.
    """
    folder = Path(source)
    return config_lib.read_json(folder / CONFIG).backbone_config if is_workdir(source) else read_config(folder)


def load_summarizer(source: str | os.PathLike[str], step: Any = "best", **settings: Any) -> Summarizer:
    """A model that summarises text: from a workdir, a folder with weights in any layout, or a hub id.

    Args:
      step: of a workdir: "best", "latest" or a number.
      settings: in place of the model's own, by the names of `summarize`'s flags: num_beams=2, dtype="bfloat16".

    Warns of what a checkpoint asks for that has no effect here; `Summarizer.notes` has all that there is to know.

    Raises:
      UserError: no model, or what is there does not fit together; a value that a setting cannot have.
      TypeError: a setting that there is not.
    """
    given = Keywords(**settings)
    model = configured(load_model(os.fspath(source), step, named_by(given)), given)
    for note in model.notes:
        if note.startswith(WARNING):
            warnings.warn(note.removeprefix(WARNING), stacklevel=2)
    return Summarizer(predictor(model), model.notes)


def predictor(model: Model) -> Predictor:
    """The part of a model that predicting needs.

    Raises:
      UserError: it asks for what this machine does not have.
    """
    settings = model.settings
    check_machine(settings.simcas)
    return Predictor(
        model.params,
        settings.model(),
        model.tokenizer,
        pipeline_config(settings),
        settings.generate,
    )
