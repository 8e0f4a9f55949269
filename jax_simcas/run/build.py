"""From settings to what a run is made of: model, tokenizer, rows, batches; and how a trained model is read back."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.checkpoints.hub import EXTRA, Pretrained, fill_missing_params, load, read_config
from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import put, state_shardings
from jax_simcas.data import formats, synthetic
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.rows import RowSource
from jax_simcas.data.tokenizer import TextTokenizer
from jax_simcas.evaluation.predict import Predictor
from jax_simcas.evaluation.summarizer import Summarizer
from jax_simcas.method.model import init_params
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import Settings
from jax_simcas.run.workdir import CHECKPOINTS, CONFIG, TOKENIZER

Params = Any


class Model(NamedTuple):
    """Settings, parameters and tokenizer of a model; `notes` are for the user."""

    settings: Settings
    params: Params
    tokenizer: TextTokenizer
    notes: tuple[str, ...]


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
    start = settings.bart.decoder_start_token_id
    return PipelineConfig(**shared, seed=settings.loop.seed, decoder_start=start)


def make_tokenizer(settings: Settings, cache: Path) -> TextTokenizer:
    """The tokenizer that the settings name; trains one on the training split if they name none."""
    data = settings.data
    if data.tokenizer:
        return tokenizer_lib.load_tokenizer(data.tokenizer)
    if data.source == "embedded":
        words = data.embedded.words
        folder = cache / "tokenizers" / f"words-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:20]}"
        return tokenizer_lib.load_or_make(folder, lambda path: tokenizer_lib.word_level(words, path))
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
    key = jax.random.key(settings.loop.seed)
    notes: tuple[str, ...] = ()
    saved = tokenizer_lib.load_tokenizer(saved_tokenizer) if saved_tokenizer and saved_tokenizer.is_dir() else None
    if settings.pretrained:
        loaded = fill_missing_params(
            load_weights(settings.pretrained), settings.pretrained, key, settings.model().chunk_position
        )
        settings = dataclasses.replace(settings, bart=keep_run_dropout(loaded.config, settings.bart))
        tokenizer = saved or tokenizer_lib.load_tokenizer(settings.data.tokenizer or loaded.folder)
        rules = settings.model().sharding_rules
        params, notes = put(loaded.params, state_shardings(mesh, loaded.params, rules)), tuple(loaded.notes)
        check_vocabulary(tokenizer, settings, settings.pretrained)
    else:
        tokenizer = saved or make_tokenizer(settings, cache)
        sized = partial(dataclasses.replace, settings.bart, vocab_size=len(tokenizer))
        settings = dataclasses.replace(settings, bart=config_lib.made(sized, "config.bart"))
        params = None
    config_lib.check(settings, sizes_known=True)
    if params is None:
        model = settings.model()
        fresh = partial(init_params, model=model)
        shardings = state_shardings(mesh, jax.eval_shape(fresh, key), model.sharding_rules)
        params = jax.jit(fresh, out_shardings=shardings)(key)
    return Model(settings, params, tokenizer, notes)


def keep_run_dropout(pretrained: BartConfig, wanted: BartConfig) -> BartConfig:
    """The pretrained shape with the run's own dropout rates."""
    rates = {name: getattr(wanted, name) for name in ("dropout", "attention_dropout", "activation_dropout")}
    return dataclasses.replace(pretrained, **rates)


def check_vocabulary(tokenizer: TextTokenizer, settings: Settings, where: str | os.PathLike[str]) -> None:
    """Raises UserError if the tokenizer has ids without an embedding row, or other special ids than the model."""
    rows = settings.bart.vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens but the weights have {rows}: "
            "use the tokenizer that the weights were trained with"
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        given, expected = getattr(tokenizer, name), getattr(settings.bart, name)
        if given != expected:
            raise UserError(f"{where}: the tokenizer's {name} is {given}, the model's {expected}")


def load_weights(source: str, step: Any = "best") -> Pretrained:
    """A workdir's checkpoint, a folder with weights in any layout, or a hub id; `folder` has the tokenizer.

    Raises:
      UserError: none of these, or what is there does not fit together.
    """
    folder = Path(source)
    if (folder / CHECKPOINTS).is_dir():
        settings = config_lib.read_json(folder / CONFIG)
        params, meta = load_params(folder / CHECKPOINTS, step)
        notes = (*meta["warnings"], f"{source}: checkpoint of step {meta['step']}")
        extra = dataclasses.asdict(settings)
        return Pretrained(settings.bart, settings.model().backbone.unstack(params), folder / TOKENIZER, extra, notes)
    if (folder / TOKENIZER).is_dir():
        raise UserError(f"{source}: a workdir without a checkpoint; train it first")
    return load(source)


def fitted_to(settings: Settings, bart: BartConfig) -> Settings:
    """Default settings with no chunk, target or summary longer than the positions of the model."""
    positions = bart.max_position_embeddings
    simcas, generate = settings.simcas, settings.generate
    simcas = simcas.replace(
        chunk_length=min(simcas.chunk_length, positions), max_target_len=min(simcas.max_target_len, positions)
    )
    generate = dataclasses.replace(generate, max_length=min(generate.max_length, positions))
    return dataclasses.replace(settings, simcas=simcas, generate=generate)


def load_model(source: str, step: Any = "best") -> Model:
    """A trained model, as `load_weights` reads it, with the settings that lie beside it or the default ones.

    Raises:
      UserError: no model, or what is there does not fit together.
    """
    default = Settings(pretrained=source)
    loaded = fill_missing_params(load_weights(source, step), source, jax.random.key(0))
    if loaded.extra:
        default = config_lib.from_mapping(loaded.extra, f"{source}: its settings")
    else:
        default = fitted_to(default, loaded.config)
    settings = dataclasses.replace(default, pretrained=source, bart=loaded.config)
    tokenizer = tokenizer_lib.load_tokenizer(loaded.folder)
    check_vocabulary(tokenizer, settings, source)
    return Model(settings, loaded.params, tokenizer, tuple(loaded.notes))


def read_settings(source: str) -> Settings:
    """The settings that `load_model` would give, without reading weights; a hub id's are read with its weights.

    Raises:
      UserError: what lies there is not what training or `convert` wrote.
    """
    folder = Path(source)
    if (folder / CHECKPOINTS).is_dir():
        return dataclasses.replace(config_lib.read_json(folder / CONFIG), pretrained=source)
    if (folder / EXTRA).is_file():
        return dataclasses.replace(config_lib.read_json(folder / EXTRA), pretrained=source)
    return Settings(pretrained=source)


def read_sizes(source: str) -> BartConfig:
    """The shape of the model in a workdir or a folder, without reading weights.

    Raises:
      UserError: its config.json is missing or not one of a model that can be read.
    """
    folder = Path(source)
    return config_lib.read_json(folder / CONFIG).bart if (folder / CHECKPOINTS).is_dir() else read_config(folder)


def load_summarizer(source: str | os.PathLike[str], step: Any = "best") -> Summarizer:
    """A model that summarises text: from a workdir, a folder with weights in any layout, or a hub id.

    Args:
      step: of a workdir: "best", "latest" or a number.

    Raises:
      UserError: no model, or what is there does not fit together.
    """
    return Summarizer(predictor(load_model(os.fspath(source), step)))


def predictor(model: Model) -> Predictor:
    """The part of a model that predicting needs."""
    settings = model.settings
    return Predictor(
        model.params,
        settings.model(),
        model.tokenizer,
        pipeline_config(settings),
        settings.generate,
    )
