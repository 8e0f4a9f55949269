"""Everything a run is made of: the dataclasses of all modules, and their way to and from config files."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import MeshConfig
from jax_simcas.data import formats
from jax_simcas.data.features import check_template
from jax_simcas.data.rows import Fields
from jax_simcas.data.synthetic import SyntheticConfig
from jax_simcas.method.beam_search import GenerateConfig
from jax_simcas.method.model import SimCAS
from jax_simcas.run.method_config import SimcasConfig, UpdateConfig, backbone_of


@dataclass(frozen=True)
class DataConfig:
    """Where rows come from and how they become batches.

    source: "jsonl" reads `{data_dir}/{split}.jsonl[.gz]`, "csv" `{data_dir}/{split}.csv[.gz]`,
      "parquet" `{data_dir}/{split}.parquet`;
      "datasets:NAME[:CONFIG]" a folder or hub id of the datasets library; "tfds:NAME[/CONFIG]" what
      tensorflow-datasets prepared in `data_dir`; "chunked[:NAME]" files or datasets that are cut into chunks of
      token ids, as the authors publish them; "embedded" generates the embedded task.
    input_template: what the encoder reads; `{document}` and, where rows have them, `{query}` and `{context}`.
    parts_at: where a document of several parts is split; training joins them by `join_parts` in random order.
    train_rows: training sees only so many of its split's first rows; 0: all.
    draw_answer: training learns a random one of a row's answers instead of the first.
    tokenizer: a folder or hub id; "" takes the pretrained model's, or trains `vocab_size` byte-level BPE
      tokens on the training split when there is no pretrained model.
    task: "summarization" is scored with ROUGE, "answers" with exact match and F1.
    chunk_buckets, target_buckets: lengths that batches are padded to, in chunks and tokens; one compilation
      each. Empty: powers of two.
    bucket_batches: training sorts the rows of so many batches by chunks, so that less of a batch is padding; 0: not.
    cache: a training that reads its rows more than once tokenises them before the first step and keeps the tokens on
      disk; not where `parts_at` joins documents anew each time. The numbers are the same.
    workers: processes that tokenise and prepare training batches; 0: the training process itself.
    """

    source: str = "jsonl"
    data_dir: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    train_rows: int = 0
    fields: Fields = field(default_factory=Fields)
    embedded: SyntheticConfig = field(default_factory=SyntheticConfig)
    input_template: str = "{document}"
    parts_at: str = ""
    join_parts: str = "</s>"
    draw_answer: bool = False
    task: str = "summarization"
    tokenizer: str = ""
    vocab_size: int = 8_192
    batch_size: int = 1
    chunk_buckets: tuple[int, ...] = ()
    target_buckets: tuple[int, ...] = ()
    bucket_batches: int = 0
    cache: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        check_template(self.input_template)
        if self.source != "embedded":
            formats.check_source(self.source)
        if self.task not in ("summarization", "answers"):
            raise ValueError(f"task={self.task!r}: expected one of summarization, answers")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 1")
        if self.bucket_batches < 0:
            raise ValueError(f"bucket_batches={self.bucket_batches}: expected at least 0")
        if self.train_rows < 0:
            raise ValueError(f"train_rows={self.train_rows}: expected at least 0 (0: all)")


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to do what; all counts are optimizer steps.

    epochs: passes over the training rows, in place of `steps`; 0: `steps` counts.
    selector_every: the selector learns from every batch of each such step; 0: never.
    best_metric: which validation figure makes a checkpoint the best.
    max_skipped: non-finite batches in a row after which training stops.
    """

    steps: int = 1_000
    epochs: int = 0
    log_every: int = 10
    eval_every: int = 200
    eval_documents: int = 64
    checkpoint_every: int = 200
    selector_every: int = 1
    keep_checkpoints: int = 2
    best_metric: str = "nll"
    max_skipped: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_every", "eval_documents", "checkpoint_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.epochs < 0:
            raise ValueError(f"epochs={self.epochs}: expected at least 0")
        if self.best_metric not in ("nll", "loss"):
            raise ValueError(f"best_metric={self.best_metric!r}: expected one of nll, loss")


@dataclass(frozen=True)
class Settings:
    """One run. `pretrained` is a folder, another run's workdir or a hub id; "" trains `bart` from scratch."""

    pretrained: str = ""
    backbone: str = "bart"  # or package.module:name of a (bart config, attention) -> Backbone of your own
    bart: BartConfig = field(default_factory=BartConfig)
    simcas: SimcasConfig = field(default_factory=SimcasConfig)
    optimizer: UpdateConfig = field(default_factory=UpdateConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def model(self) -> SimCAS:
        """Backbone and method, as values.

        Raises:
          UserError: a name that cannot be resolved.
        """
        backbone: Backbone = backbone_of(self.backbone, self.bart, self.simcas.attention)
        return self.simcas.model(backbone)


def default_config() -> config_dict.ConfigDict:
    """A ConfigDict with every field of `Settings` at its default, for config files to change."""
    return to_config(Settings())


def to_config(value: Any) -> config_dict.ConfigDict:
    """A dataclass with dataclasses in it, such as `Settings` -> what `from_config` reads."""
    config = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(value))
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        if dataclasses.is_dataclass(inner):
            config[item.name] = to_config(inner)
        elif _optional(hints[item.name]):
            config[item.name] = config_dict.placeholder(_optional(hints[item.name]))
            config[item.name] = inner
        else:
            config[item.name] = inner
    return config


def _optional(hint: Any) -> type | None:
    """int for `int | None`; None for a type that does not allow None."""
    if isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint):
        return typing.get_args(hint)[0]
    return None


def from_config(config: config_dict.ConfigDict) -> Settings:
    """The frozen dataclasses that library code sees.

    Raises:
      UserError: a value that its dataclass refuses, named with its field; a config file that cannot be read.
    """
    try:
        mapping = config.to_dict()
    except OSError as error:  # a config file that could not be read says so only when it is looked at
        raise UserError(str(error).split(": ", 1)[-1]) from None
    return from_mapping(mapping, "config")


def from_mapping(mapping: dict[str, Any], where: str) -> Settings:
    """Nested dictionaries -> settings; see `from_config`."""
    return _from_mapping(Settings, mapping, where)


def _from_mapping(cls: Any, mapping: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    given = {}
    for name, value in mapping.items():
        if name not in hints:
            known = ", ".join(sorted(hints))
            raise UserError(f"{where}.{name}: no such field; {where} has {known}")
        nested = hints[name]
        if dataclasses.is_dataclass(nested):
            given[name] = _from_mapping(nested, value, f"{where}.{name}")
        else:
            given[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def to_json(settings: Settings) -> str:
    """`config.json` of a workdir."""
    return json.dumps(dataclasses.asdict(settings), indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Settings:
    """Reads what `to_json` wrote.

    Raises:
      UserError: no such file, not JSON, or fields that this version does not know.
    """
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; is {path.parent} a workdir that training wrote?") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    return from_mapping(mapping, str(path))


def differences(old: Settings, new: Settings) -> list[str]:
    """`field: old -> new` for every field that differs."""

    def walk(a: Any, b: Any, name: str) -> list[str]:
        if dataclasses.is_dataclass(a):
            return [
                line
                for item in dataclasses.fields(a)
                for line in walk(getattr(a, item.name), getattr(b, item.name), f"{name}.{item.name}")
            ]
        return [] if a == b else [f"{name[1:]}: {a!r} -> {b!r}"]

    return walk(old, new, "")


# The flags that override a setting, in every program that has them.
OVERRIDING_FLAGS = {
    "budget": "simcas.budget",
    "capacity": "simcas.capacity",
    "max_input_len": "simcas.max_input_len",
    "dtype": "simcas.dtype",
    "num_beams": "generate.num_beams",
    "max_length": "generate.max_length",
    "min_length": "generate.min_length",
    "length_penalty": "generate.length_penalty",
    "no_repeat_ngram_size": "generate.no_repeat_ngram_size",
    "batch_size": "data.batch_size",
    "data_dir": "data.data_dir",
}


def apply_flag_overrides(settings: Settings, arguments: Any, flags: Mapping[str, str] = OVERRIDING_FLAGS) -> Settings:
    """Settings with the flags applied, those of the form --config.FIELD=VALUE first.

    Raises:
      UserError: a value that the settings refuse.
    """
    if getattr(arguments, "overrides", None):
        settings = from_config(cli.override(to_config(settings), arguments.overrides))
    changes: dict[str, dict[str, Any]] = {}
    for flag, field_ in flags.items():
        section, name = field_.split(".")
        if getattr(arguments, flag, None) is not None:
            changes.setdefault(section, {})[name] = getattr(arguments, flag)
    try:
        return dataclasses.replace(
            settings, **{name: dataclasses.replace(getattr(settings, name), **to) for name, to in changes.items()}
        )
    except ValueError as error:
        raise UserError(str(error)) from None
