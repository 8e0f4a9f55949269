"""From features to padded batches: pad to few shapes, shuffle, shard, resume."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from jax_simcas.common import checks
from jax_simcas.common.errors import UserError
from jax_simcas.data.features import FeatureConfig, Features, check_token_ids, featurize
from jax_simcas.data.rows import Row, RowSource, place_of
from jax_simcas.data.stored import MAX_BAD_ROWS
from jax_simcas.data.tokenizer import LightTokenizer, Tokenizer
from jax_simcas.method.chunk import bucket
from jax_simcas.method.document import Document, Example, Target

BATCHES_AHEAD = 4


@dataclass(frozen=True)
class PipelineConfig(FeatureConfig):
    """What turns rows into batches: features, and how they are batched.

    batch_size: documents per batch, over all processes.
    chunk_buckets, target_buckets: lengths that batches are padded to; beyond them, powers of two.
    seed: of the order of rows and of training's random choices.
    workers: processes that prepare training batches; evaluation needs none.
    embedding_rows: of the model; a row with a token beyond them is left out; None: not known.
    max_bad_rows: how many such rows may be left out.
    bucket_batches: training sorts the shuffled rows of that many batches by chunks, so that batches hold rows of
      similar length; 0: rows come as they are shuffled.
    """

    batch_size: int = 1
    chunk_buckets: tuple[int, ...] = ()
    target_buckets: tuple[int, ...] = ()
    seed: int = 0
    workers: int = 0
    bucket_batches: int = 0
    embedding_rows: int | None = None
    max_bad_rows: int = MAX_BAD_ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "batch_size")
        checks.at_least(self, 0, "bucket_batches", "workers")


@runtime_checkable
class FeatureCache(Protocol):
    """Features of a source's rows that were made before; cache.TokenCache is one."""

    @property
    def chunks(self) -> np.ndarray:
        """Number of chunks of each row."""
        ...

    def read(self, number: int, rng: np.random.Generator | None = None) -> Features | None:
        """What `featurize` gives, but without token_offsets; None for a row that has to be tokenised."""
        ...


def pad_batch(rows: Sequence[Features], config: PipelineConfig, pad: int, size: int | None = None) -> Features:
    """Stacks rows, each padded to the bucket of the longest; `size` adds rows of pure padding."""
    size = size or len(rows)
    longest = lambda name: max((len(row[name]) for row in rows), default=1)
    chunks = bucket(longest("input_ids"), config.chunk_buckets, config.most_chunks)
    target = bucket(longest("target_ids"), config.target_buckets, config.max_target_len)

    def stack(name: str, shape: tuple[int, ...], fill: int | bool, dtype: Any) -> np.ndarray:
        out = np.full((size, *shape), fill, dtype)
        for b, row in enumerate(rows):
            out[b, : len(row[name])] = row[name]
        return out

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.asarray([row.get(name, 0) for row in rows] + [0] * (size - len(rows)), dtype)

    grid = (chunks, config.chunk_length)
    token_mask = stack("token_mask", grid, False, bool)
    lengths = np.asarray([len(row["target_ids"]) for row in rows] + [0] * (size - len(rows)))
    return {
        "input_ids": stack("input_ids", grid, pad, np.int32),
        "token_mask": token_mask,
        "chunk_mask": token_mask.any(axis=-1),
        "evidence_mask": stack("evidence_mask", grid, False, bool),
        "has_evidence": column("has_evidence", bool),
        "target_ids": stack("target_ids", (target,), pad, np.int32),
        "target_mask": np.arange(target) < lengths[:, None],
        "row_index": column("row_index", np.int64),
        "row_mask": np.arange(size) < len(rows),
        "cut_tokens": column("cut_tokens", np.int64),
        "cut_target": column("cut_target", np.int64),
    }


def pad_to(batch: Features, chunks: int, target: int, pad: int) -> Features:
    """The batch padded to at least `chunks` chunks and `target` target tokens."""

    def one(name: str, x: np.ndarray) -> np.ndarray:
        widths = {"input_ids": chunks, "token_mask": chunks, "chunk_mask": chunks, "evidence_mask": chunks}
        width = widths.get(name, target if name in ("target_ids", "target_mask") else 0)
        more = max(width - x.shape[1], 0) if width else 0
        fill = pad if name.endswith("_ids") else False
        return np.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)), constant_values=fill) if more else x

    return {name: one(name, x) for name, x in batch.items()}


def make_iterator(
    source: RowSource | Sequence[Row],
    tokenizer: Tokenizer,
    config: PipelineConfig,
    *,
    training: bool,
    start: int = 0,
    places: Sequence[int] | None = None,
    cache: FeatureCache | None = None,
) -> grain.DatasetIterator:
    """Padded batches. Training: endless, reshuffled each epoch. Else: one pass in order, the last batch padded.

    The batches are the same for any number of workers and processes, and from any `start`.

    Args:
      start: number of batches to skip, without reading them; where an interrupted run resumes.
      places: the rows of each batch of `config.batch_size` that this process reads; None: all. All processes get
        equally many batches.
      cache: features of these rows, read instead of tokenising; the batches are the same.

    Raises:
      UserError: a source without rows; bucket_batches without a cache; while iterating, a row that cannot be used.
    """
    if not len(source):
        raise UserError(f"{source!r}: no rows in it")
    light = LightTokenizer.of(tokenizer)
    size = config.batch_size
    places = range(size) if places is None else places
    if training:
        rows = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
        if config.bucket_batches:
            if cache is None:
                raise UserError(
                    "config.data.bucket_batches needs the number of chunks of every row, which the token cache has: "
                    "it needs config.data.cache=True, rows of files and no config.data.parts_at"
                )
            rows = rows.map_with_index(_Bucketed(rows, len(source), cache, config))
        featurized = rows.random_map(_FeaturizeForTraining(source, light, config, cache))
    else:
        rows = grain.MapDataset.range(-(-len(source) // size) * size)
        featurized = rows.map(_Featurize(source, light, config, cache))
    # Lazy: the slices read nothing.
    end = len(featurized) // size * size
    columns = [featurized[start * size + place : end : size] for place in places]
    batches = (
        grain.experimental.ZipMapDataset(columns)
        .map(_Pad(config, light.pad_token_id, len(places)))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD))
    )
    return iter(in_workers(batches, config.workers if training else 0))


def in_workers(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    """The same elements in the same order, prepared by `workers` processes; 0: by this one."""
    if not workers:
        return dataset
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads its own flags, which a caller without absl never parses
        flags.FLAGS.mark_as_parsed()
    # Pipes: a container has 64 MB of shared memory by default, and it is not freed at exit.
    pipes = grain.experimental.DatasetOptions(min_shm_size=2**62)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, pipes)
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _end_with_parent)


def _end_with_parent(index: int, count: int) -> None:
    """Lets a worker end when the process that it works for was killed; it would wait for that one for ever."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Bucketed(grain.transforms.MapWithIndex):
    """Position in the stream of shuffled rows -> row, so that batches hold rows of similar length.

    A window is the rows of `bucket_batches` batches, within one epoch. Its rows are sorted by chunks and cut into
    batches, which come in random order; rows of a batch that two epochs share stay where they were.
    """

    def __init__(self, rows: grain.MapDataset, epoch: int, cache: FeatureCache, config: PipelineConfig) -> None:
        self._rows, self._epoch, self._cache, self._config = rows, epoch, cache, config
        self._window: tuple[int, np.ndarray] = (0, np.zeros(0, np.int64))  # the latest: where it begins, its rows

    def map_with_index(self, index: int, element: Any) -> int:
        begin, rows = self._window
        if not begin <= index < begin + len(rows):
            size = self._config.bucket_batches * self._config.batch_size
            begin = max(index // size * size, index // self._epoch * self._epoch)
            end = min((index // size + 1) * size, (index // self._epoch + 1) * self._epoch)
            rows = self._sort(begin, end)
            self._window = (begin, rows)
        return int(rows[index - begin])

    def _sort(self, begin: int, end: int) -> np.ndarray:
        size = self._config.batch_size
        rows = np.asarray([self._rows[place] for place in range(begin, end)], np.int64)
        whole = slice(lead := min(-begin % size, end - begin), lead + (end - begin - lead) // size * size)
        batches = rows[whole][np.argsort(self._cache.chunks[rows[whole]], kind="stable")].reshape(-1, size)
        rows[whole] = np.random.default_rng([self._config.seed, begin]).permutation(batches).ravel()
        return rows


class _Featurize(grain.transforms.Map):
    """Row number -> features; {} for numbers beyond the last row, which fill the last batch, and for rows left out.

    Left out are rows with a token that the model has no embedding of; the first is a warning in each process.
    """

    def __init__(
        self,
        source: RowSource | Sequence[Row],
        tokenizer: Tokenizer,
        config: PipelineConfig,
        cache: FeatureCache | None,
    ) -> None:
        self._source, self._tokenizer, self._config, self._cache = source, tokenizer, config, cache
        self._left_out: set[int] = set()

    def map(self, index: Any) -> Features:
        return self._features(int(index), None) if int(index) < len(self._source) else {}

    def _features(self, index: int, rng: np.random.Generator | None) -> Features:
        features = None if self._cache is None else self._cache.read(index, rng)
        if features is None:
            features = featurize(self._source[index], self._tokenizer, self._config, rng)
        try:
            check_token_ids(features, self._tokenizer, self._config.embedding_rows, place_of(self._source, index))
        except UserError as error:
            self._leave_out(index, error)
            return {}
        return features | {"row_index": index}

    def _leave_out(self, index: int, reason: UserError) -> None:
        self._left_out.add(index)
        most = self._config.max_bad_rows
        if len(self._left_out) > most:
            rows = "a row is" if most == 0 else f"{most + 1} such rows are"
            raise UserError(f"{reason}; {rows} left out, more than config.data.max_bad_rows={most}")
        if len(self._left_out) == 1:
            warnings.warn(f"{reason}; such rows are left out", stacklevel=2)


class _FeaturizeForTraining(_Featurize, grain.transforms.RandomMap):
    """The same with one random generator per row and epoch."""

    def random_map(self, index: Any, rng: np.random.Generator) -> Features:
        return self._features(int(index), rng)


class _Pad(grain.transforms.Map):
    """The features of a batch's rows -> padded arrays."""

    def __init__(self, config: PipelineConfig, pad: int, size: int) -> None:
        self._config, self._pad, self._size = config, pad, size

    def map(self, rows: Sequence[Features]) -> Features:
        return pad_batch([row for row in rows if row], self._config, self._pad, self._size)


def as_example(features: Mapping[str, Any]) -> Example:
    """What the model sees of features: of one row, or of a padded batch."""
    return Example(
        Document(features["input_ids"], features["token_mask"], features["chunk_mask"]),
        Target(features["target_ids"], features["target_mask"]),
    )
