"""Everything a run is made of: the dataclasses of all sections, their one check, and their way to and from files.

A comment documents each field where it stands, behind it or in the lines right above it: docs/config.md is made of
them. What one field may be, its dataclass says in `__post_init__`; what fields may be together, and beside the sizes of
the model, says `check`, which is called whenever settings are read or changed.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from jax_simcas.backbones.families import FAMILIES, chunk_positions, name_of
from jax_simcas.backbones.protocol import Backbone, BackboneConfig
from jax_simcas.common import checks, files
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import MeshConfig
from jax_simcas.data import formats
from jax_simcas.data.features import check_template
from jax_simcas.data.rows import Fields
from jax_simcas.data.stored import MAX_BAD_ROWS
from jax_simcas.data.synthetic import SPLITS, SyntheticConfig
from jax_simcas.data.tokenizer import SMALLEST_VOCABULARY
from jax_simcas.evaluation import words
from jax_simcas.method.chunk import bucket, most_chunks
from jax_simcas.method.generate_config import GenerateConfig, tokens_of
from jax_simcas.method.model import SimCAS
from jax_simcas.run.fields import hints_of, unknown_field, value_of
from jax_simcas.run.method_config import SimcasConfig, UpdateConfig, backbone_of

TARGET = 512  # tokens of a target in the config for pretrained models of any size; fewer positions lower it
TASKS = ("summarization", "answers")


@dataclass(frozen=True)
class DataConfig:
    """Where rows come from and how they become batches."""

    # "jsonl" reads `{data_dir}/{split}.jsonl[.gz]`, "csv" `{data_dir}/{split}.csv[.gz]` or `.tsv`, "text"
    # `{data_dir}/{split}/*.txt` with `*.summary.txt`, "qmsum" QMSum as published, "parquet"
    # `{data_dir}/{split}.parquet`; "datasets:NAME[:CONFIG]" a folder or hub id of the datasets library;
    # "tfds:NAME[/CONFIG]" what tensorflow-datasets prepared in `data_dir`; "chunked[:NAME]" files or datasets that are
    # cut into chunks of token ids, as the authors publish them; "embedded" generates the synthetic task
    source: str = "jsonl"
    data_dir: str = ""  # folder of the data; may be gs://... for tfds
    train_split: str = "train"  # name of the split to train on
    validation_split: str = "validation"  # name of the split to validate on
    train_rows: int = 0  # training uses this many rows, from the start of its split; 0: all
    # rows that are left out because they are empty, null or cannot be read; more are an error
    max_bad_rows: int = MAX_BAD_ROWS
    fields: Fields = field(default_factory=Fields)
    embedded: SyntheticConfig = field(default_factory=SyntheticConfig)
    # what the encoder reads: `{document}` once and, where rows have them, `{query}` and `{context}`
    input_template: str = "{document}"
    # where a document of several parts is split; training joins them by `join_parts` in random order; "": nowhere
    parts_at: str = ""
    join_parts: str = "</s>"  # text between parts that are joined
    draw_answer: bool = False  # training learns a random one of a row's answers instead of the first
    task: str = "summarization"  # "summarization" is scored with ROUGE, "answers" with exact match and F1
    # words that ROUGE counts: "rouge-score" reads a to z and 0 to 9, stemmed; "unicode" any letters, Han, kana and
    # Thai by character; "unicode:german" and other languages of nltk's Snowball with stems; "auto" takes rouge-score
    # if it can read the references of the set, else unicode; exact match and F1 likewise
    rouge_tokenizer: str = "auto"
    # folder or hub id; "" takes the pretrained model's, or trains `vocab_size` byte-level BPE tokens on the training
    # split when there is no pretrained model
    tokenizer: str = ""
    vocab_size: int = 8_192  # tokens of a tokenizer that is trained here
    # language codes that an mBART-like tokenizer puts around documents and targets, such as "en_XX"; "" its own
    src_lang: str = ""
    tgt_lang: str = ""  # the same of targets and summaries
    batch_size: int = 1  # documents per batch, over all devices
    # lengths that batches are padded to, in chunks; one compilation each; empty: powers of two
    chunk_buckets: tuple[int, ...] = ()
    target_buckets: tuple[int, ...] = ()  # the same of targets, in tokens
    # in place of empty buckets training takes some that fit the rows, at most four combinations; the workdir keeps them
    fit_buckets: bool = False
    # training sorts the rows of this many batches by chunks, so that less of a batch is padding; 0: not
    bucket_batches: int = 0
    # a training that reads its rows more than once tokenises them before the first step and keeps the tokens on disk;
    # not where `parts_at` joins documents in another order each time; the numbers are the same
    cache: bool = True
    workers: int = 0  # processes that tokenise and prepare training batches; 0: the training process itself

    def __post_init__(self) -> None:
        check_template(self.input_template)
        if self.source != "embedded":
            formats.check_source(self.source)
        checks.one_of(self, "task", TASKS)
        try:
            words.check_name(self.rouge_tokenizer)
        except ValueError as error:
            raise ValueError(f"rouge_tokenizer={error}") from None
        checks.at_least(self, 1, "batch_size")
        checks.at_least(self, 0, "bucket_batches", "max_bad_rows", "train_rows", "workers")
        checks.at_least(self, SMALLEST_VOCABULARY, "vocab_size")
        for name in ("train_split", "validation_split"):
            split = getattr(self, name)
            if not split.strip():
                raise ValueError(f"{name}={split!r}: expected the name of a split")
            if self.source == "embedded" and split not in SPLITS:
                raise ValueError(f"{name}={split!r}: the synthetic task has {', '.join(SPLITS)}")
        for name in ("chunk_buckets", "target_buckets"):
            sizes = getattr(self, name)
            if any(size < 1 for size in sizes):
                raise ValueError(f"{name}={sizes}: expected whole numbers of at least 1")


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to do what."""

    # optimizer steps; None: three passes over the training rows, but at least 500 steps unless that is over 20 passes
    steps: int | None = 1_000
    # passes over the training rows, in place of `steps`; 0: `steps` counts, as where --config.loop.steps alone is given
    epochs: int = 0
    log_every: int | None = 10  # optimizer steps; None: a fiftieth of the run, at most 10
    eval_every: int | None = 200  # optimizer steps; None: a fifth of the run, from 5 to 500
    eval_documents: int = 64  # documents of a validation during training
    checkpoint_every: int | None = 200  # optimizer steps; None: a fifth of the run, from 5 to 500
    selector_every: int = 1  # optimizer steps: the selector learns from every batch of each such step; 0: never
    # optimizer steps before the selector learns; until then the transformer reads every state or, beyond the capacity,
    # evenly spread ones
    selector_start: int = 0
    keep_checkpoints: int = 2  # of the latest; the best is kept beside them
    best_metric: str = "nll"  # validation figure, "nll" or "loss" (nats per token), whose lowest is the best checkpoint
    max_skipped: int = 10  # non-finite batches in a row after which training stops
    seed: int = 0  # of parameters, draws and the order of rows

    def __post_init__(self) -> None:
        every = ("log_every", "eval_every", "checkpoint_every")
        checks.at_least(self, 1, "steps", *every, "eval_documents", "keep_checkpoints", "max_skipped")
        checks.at_least(self, 0, "epochs", "selector_every", "selector_start")
        checks.at_least(self, 0, "seed", most=checks.LARGEST_SEED)
        checks.one_of(self, "best_metric", ("nll", "loss"))


# A section for the sizes of each family.
SECTIONS = [(name, family.config, field(default_factory=family.config)) for name, family in FAMILIES.items()]
Families: Any = dataclasses.make_dataclass("Families", SECTIONS, frozen=True, kw_only=True)


@dataclass(frozen=True)
class Settings(Families):
    """One run."""

    # folder, another run's workdir or hub id to start from; "" trains a model of the sizes of `backbone` from scratch
    pretrained: str = ""
    # a family, whose sizes are in the section of that name; what `pretrained` names brings its own. Or
    # package.module:name of a (bart config, attention) -> Backbone of your own
    backbone: str = "bart"
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
        backbone: Backbone = backbone_of(self.backbone, self.backbone_config, self.simcas.attention)
        return self.simcas.model(backbone)

    @property
    def family(self) -> str:
        """The section of the sizes; a backbone of one's own has BART's."""
        return self.backbone if self.backbone in FAMILIES else "bart"

    @property
    def backbone_config(self) -> BackboneConfig:
        """Sizes, rates and special tokens of the model."""
        config: BackboneConfig = getattr(self, self.family)
        return config

    def with_backbone_config(self, config: BackboneConfig) -> Settings:
        """The settings with another backbone's config; a backbone of one's own stays, if the config is BART's."""
        name = name_of(config)
        changes: dict[str, Any] = {name: config} | ({} if name == self.family else {"backbone": name})
        return dataclasses.replace(self, **changes)


def check(settings: Settings, where: str = "config", sizes_known: bool | None = None) -> Settings:
    """The settings, if they fit together.

    Args:
      sizes_known: whether `shape` is that of the model; by default unless it is to come from `pretrained`.

    Raises:
      UserError: names `where` and the fields.
    """
    data = settings.data
    model = settings.model()  # and so every name can be resolved
    settings.optimizer.transformer(settings.loop.steps)
    if data.bucket_batches and (data.parts_at or not data.cache):
        raise UserError(
            f"{where}.data.bucket_batches={data.bucket_batches} needs the number of chunks of every row, which the "
            "cache of tokens knows: it needs config.data.cache=True and no config.data.parts_at"
        )
    _check_positions(settings, where)
    if sizes_known if sizes_known is not None else not settings.pretrained:
        _check_sizes(settings, model.backbone, where)
    return settings


def _check_positions(settings: Settings, where: str) -> None:
    simcas, data = settings.simcas, settings.data
    if simcas.chunk_position != "learned":
        return
    tokens = simcas.max_input_len
    if data.source == "embedded":
        tokens = min(tokens, data.embedded.chunks * data.embedded.words_per_chunk + 2)
    longest = most_chunks(max(tokens - 2, 0), simcas.chunk_length, sentences=simcas.chunking == "sentences")
    padded = max(bucket(longest, data.chunk_buckets, longest), *data.chunk_buckets, 1)
    along = max(settings.mesh.chunk, 1)
    padded = -(-padded // along) * along
    if padded > simcas.max_chunks:
        raise UserError(
            f"{where}.simcas.max_chunks={simcas.max_chunks}: documents of {tokens} tokens, in batches of "
            f"chunk_buckets={data.chunk_buckets}{f', on a mesh of chunk={along}' if along > 1 else ''}, have up to "
            f"{padded} chunks: raise it, or lower max_input_len or chunk_buckets"
        )


def _check_sizes(settings: Settings, backbone: Backbone, where: str) -> None:
    positions, vocabulary = backbone.positions, backbone.vocab_size
    of_chunk = chunk_positions(settings.backbone_config) if settings.backbone in FAMILIES else positions
    has_window = bool(getattr(settings.backbone_config, "attention_window", ()))
    of_decoder = "max_decoder_position_embeddings"
    of_target = of_decoder if getattr(settings.backbone_config, of_decoder, None) else "max_position_embeddings"
    lengths = {
        "simcas.chunk_length": (
            settings.simcas.chunk_length,
            of_chunk,
            "half its attention_window at most" if has_window else "max_position_embeddings",
        ),
        "simcas.max_target_len": (settings.simcas.max_target_len, positions, of_target),
        "generate.max_length": (settings.generate.max_length, positions, of_target),
    }
    for name, (length, most, why) in lengths.items():
        if most is not None and length is not None and length > most:
            raise UserError(
                f"{where}.{name}={length} exceeds the model's {most} positions ({why}): lower it, or use a model with "
                "more positions"
            )
    for name, token in tokens_of(settings.generate):
        if token >= vocabulary:
            raise UserError(f"{where}.generate.{name}={token} lies outside the vocabulary of {vocabulary} tokens")


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
    """int for `int | None`, object for more types; None for a type that does not allow None."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    if type(None) not in kinds:
        return None
    allowed = [kind for kind in kinds if kind is not type(None)]
    return typing.get_origin(allowed[0]) or allowed[0] if len(allowed) == 1 else object


def from_config(config: config_dict.ConfigDict, where: str = "config") -> Settings:
    """The frozen dataclasses that library code sees, checked.

    Raises:
      UserError: a field that is not known, a value that it cannot have, or values that do not fit together.
    """
    try:
        mapping = config.to_dict()
    except Exception as error:  # a placeholder that is required, references in a circle
        raise UserError(f"{where}: {error}") from None
    return check(from_mapping(mapping, where), where)


def from_mapping(mapping: Mapping[str, Any], where: str) -> Settings:
    """Nested dictionaries -> settings, each field checked on its own; `check` is the caller's turn.

    Raises:
      UserError: a field that is not known, or a value that it cannot have; named after `where`.
    """
    return _from_mapping(Settings, mapping, where)


def _from_mapping(cls: Any, mapping: Any, where: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where}={mapping!r}: expected a section, with the fields of {cls.__name__}")
    hints = hints_of(cls)
    given = {}
    for name, value in mapping.items():
        if name not in hints:
            raise UserError(unknown_field(cls, str(name), where))
        build = _from_mapping if dataclasses.is_dataclass(hints[name]) else value_of
        given[name] = build(hints[name], value, f"{where}.{name}")
    return made(lambda: cls(**given), where)


def made(make: Callable[[], Any], where: str) -> Any:
    """What `make` returns; a ValueError of a dataclass, which begins with the field, becomes a UserError."""
    try:
        return make()
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None


def to_json(settings: Settings) -> str:
    """`config.json` of a workdir."""
    return json.dumps(dataclasses.asdict(settings), indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Settings:
    """Reads what `to_json` wrote.

    Raises:
      UserError: no such file, not JSON, or fields that this version does not know.
    """
    mapping = files.read_json(path, f"not found; is {path.parent} a workdir that training wrote?")
    return from_mapping(mapping, f"{path}: config")


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
