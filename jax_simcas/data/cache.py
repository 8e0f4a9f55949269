"""Tokenised rows on disk: made once, in worker processes, then read by number.

A folder for each content of rows, tokenizer and settings that change tokens: `rows`, a record a row, and `index`, where
each ends, its chunks and its checksum. It gets its name when it is whole; what a killed run left is gone on with. What
training draws anew in each epoch is not in it: which of a row's answers (all are kept) and the order of a document's
parts (such sets are not cached).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tokenizers

from jax_simcas.common.errors import UserError
from jax_simcas.data.batches import (
    Features,
    PipelineConfig,
    arranged,
    featurize,
    in_workers,
    special_ids,
    target_content,
    target_ids,
)
from jax_simcas.data.tokenizer import TextEncoder
from jax_simcas.method.chunk import chunk_at

FORMAT = 1  # of records; another number, other folders
ROWS, INDEX = "rows", "index"
ENTRY = np.dtype([("end", "<i8"), ("chunks", "<i4"), ("checksum", "<u4")])
# Fields of PipelineConfig that change how rows are batched, not their tokens.
BATCHING = ("batch_size", "chunk_buckets", "target_buckets", "seed", "workers", "bucket_batches")
ROWS_BETWEEN_LOOKS = 256  # at the disk's free space


class TokenCache:
    """The rows of a folder that `token_cache` made; cheap to send to worker processes, and holds no row."""

    def __init__(self, folder: Path, encoder: TextEncoder, config: PipelineConfig) -> None:
        self.folder, self._encoder, self._config = folder, encoder, config

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self.folder, self._encoder, self._config)

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def _index(self) -> np.ndarray:
        # Mapped into memory: a few bytes a row, shared by the workers.
        return np.memmap(self.folder / INDEX, ENTRY, "r")

    @property
    def chunks(self) -> np.ndarray:
        """How many chunks each row has."""
        return self._index["chunks"]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def read(self, number: int, rng: np.random.Generator | None = None) -> Features | None:
        """What `featurize` gives but token_offsets; None for a row that is damaged or gone, which is to be made anew.

        With an `rng` (training) and `draw_answer` the target is the answer that `arranged` would draw.
        """
        try:
            entry, begin = self._index[number], int(self._index["end"][number - 1]) if number else 0
            with (self.folder / ROWS).open("rb", buffering=0) as file:
                file.seek(begin)
                record = file.read(int(entry["end"]) - begin)
        except OSError:
            return None
        if _checksum(record, number) != entry["checksum"]:
            return None
        return unpack(record, self._encoder, self._config, rng)


def find(source: Any, tokenizer: Any, config: PipelineConfig, folder: Path) -> TokenCache | None:
    """The tokens of a source's rows if `folder` has them."""
    encoder = TextEncoder.of(tokenizer)
    target = folder / key_of(source, encoder, config)
    return TokenCache(target, encoder, config) if _whole(target, len(source)) else None


def token_cache(
    source: Any, tokenizer: Any, config: PipelineConfig, folder: Path, on_rows: Callable[[int], None] | None = None
) -> TokenCache:
    """The tokens of a source's rows, in a folder within `folder`: made first, by `config.workers`, if need be.

    The source has a `fingerprint` of its content; training on one that is `joined_anew` cannot read from the cache.
    Of processes that want the same at once one makes it and the others wait. `on_rows` is told how many rows were
    there, then of each that is tokenised.

    Raises:
      UserError: a row that cannot be used.
      OSError: the folder cannot be written, or the disk has no room for the tokens of all rows.
    """
    encoder = TextEncoder.of(tokenizer)
    target = folder / key_of(source, encoder, config)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if not _whole(target, len(source)):
            _make(target, source, encoder, config, on_rows or (lambda count: None))
    return TokenCache(target, encoder, config)


def joined_anew(source: Any, config: PipelineConfig) -> bool:
    """Whether training sees other documents in each epoch, which no cache can hold."""
    return bool(config.parts_at) and source[0].chunks is None


def key_of(source: Any, encoder: TextEncoder, config: PipelineConfig) -> str:
    """Stands for all that tokens depend on: rows, tokenizer and its library, settings."""
    tokenizer = (encoder.backend_tokenizer.to_str(), special_ids(encoder), tokenizers.__version__)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in BATCHING}
    parts = (FORMAT, source.fingerprint, tokenizer, sorted(settings.items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def pack(features: Features, targets: list[tuple[np.ndarray, int]], dtype: np.dtype) -> bytes:
    """A row's record: counts, then chunks' lengths, tokens, marked tokens as bits, targets.

    Args:
      targets: of the summary and of each answer that may be drawn: its content, and how many tokens were cut.
    """
    inner = features["token_mask"][:, 1:-1]
    ids = features["input_ids"][:, 1:-1][inner]
    marked = features["evidence_mask"][:, 1:-1][inner] if features["has_evidence"] else np.zeros(0, bool)
    head = [len(inner), len(targets), features["cut_tokens"], features["has_evidence"], *inner.sum(axis=1)]
    for content, cut in targets:
        head += [len(content), cut]
    parts = [ids.astype(dtype), np.packbits(marked), *(content.astype(dtype) for content, _ in targets)]
    return b"".join([np.asarray(head, "<i4").tobytes(), *(part.tobytes() for part in parts)])


def unpack(record: bytes, tokenizer: Any, config: PipelineConfig, rng: np.random.Generator | None) -> Features:
    """A record -> features; see `TokenCache.read`."""
    place = 0

    def take(count: int, dtype: Any) -> np.ndarray:
        nonlocal place
        out = np.frombuffer(record, dtype, count, place)
        place += out.nbytes
        return out

    token = token_dtype(tokenizer)
    chunks, targets, cut, has_evidence = take(4, "<i4").tolist()
    lengths, target_sizes = take(chunks, "<i4"), take(2 * targets, "<i4").reshape(targets, 2)
    count = int(lengths.sum())
    ids = take(count, token).astype(np.int32)
    bits = take(-(-count // 8) if has_evidence else 0, np.uint8)
    contents = [take(int(size), token).astype(np.int32) for size in target_sizes[:, 0]]
    made = chunk_at(ids, (np.cumsum(lengths) - lengths).tolist(), config.chunk_length, **special_ids(tokenizer))
    evidence = np.zeros(made.token_mask.shape, bool)
    if has_evidence:
        evidence[made.token_index >= 0] = np.unpackbits(bits, count=count)
    drawn = 1 + rng.integers(targets - 1) if rng is not None and targets > 1 else 0
    return {
        "input_ids": made.input_ids,
        "token_mask": made.token_mask,
        "evidence_mask": evidence,
        "has_evidence": bool(has_evidence),
        "target_ids": target_ids(contents[drawn], tokenizer, config),
        "cut_tokens": cut,
        "cut_target": int(target_sizes[drawn, 1]),
    }


def token_dtype(tokenizer: Any) -> np.dtype:
    """Two bytes a token where the vocabulary fits."""
    return np.dtype("<u2" if tokenizer.backend_tokenizer.get_vocab_size() <= 2**16 else "<i4")


class _Record(grain.transforms.Map):
    """Row number -> (record, number of chunks)."""

    def __init__(self, source: Any, encoder: TextEncoder, config: PipelineConfig) -> None:
        self._source, self._encoder, self._config = source, encoder, config

    def map(self, index: Any) -> tuple[bytes, int]:
        row = arranged(self._source[int(index)], self._config)
        features = featurize(row, self._encoder, self._config)
        texts = (row.summary, *(row.answers if self._config.draw_answer else ()))
        targets = [target_content(text, self._encoder, self._config) for text in texts]
        return pack(features, targets, token_dtype(self._encoder)), len(features["input_ids"])


def _make(
    target: Path, source: Any, encoder: TextEncoder, config: PipelineConfig, on_rows: Callable[[int], None]
) -> None:
    shutil.rmtree(target, ignore_errors=True)  # damaged, or it would be whole
    partial = target.with_name(f".{target.name}")
    partial.mkdir(exist_ok=True)
    try:
        _append(partial, source, encoder, config, on_rows)
        partial.rename(target)
    except (OSError, UserError):
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _append(
    folder: Path, source: Any, encoder: TextEncoder, config: PipelineConfig, on_rows: Callable[[int], None]
) -> None:
    """Writes the rows that are missing: all of them, or what came after a run was killed."""
    ahead = grain.ReadOptions(num_threads=0 if config.workers else 1, prefetch_buffer_size=0 if config.workers else 16)
    with (folder / ROWS).open("ab") as out, (folder / INDEX).open("ab") as index:
        done, size = _continued(out, index)
        on_rows(done)
        rows = grain.MapDataset.range(done, len(source)).map(_Record(source, encoder, config))
        records = iter(in_workers(rows.to_iter_dataset(ahead), config.workers)) if done < len(source) else iter(())
        try:
            for number, (record, chunks) in enumerate(records, done):
                size += len(record)
                out.write(record)
                index.write(np.array((size, chunks, _checksum(record, number)), ENTRY).tobytes())
                if (number + 1) % ROWS_BETWEEN_LOOKS == 0:
                    _check_room(folder, size * (len(source) - number - 1) // (number + 1))
                on_rows(1)
        finally:
            if hasattr(records, "close"):
                records.close()
        for file in (out, index):
            file.flush()
            os.fsync(file.fileno())


def _continued(out: Any, index: Any) -> tuple[int, int]:
    """Cuts off what is not whole at the ends of both files: (rows, bytes of their records) that are there."""
    entries = np.fromfile(index.name, ENTRY)
    entries = entries[entries["end"] <= os.path.getsize(out.name)]
    size = int(entries["end"][-1]) if len(entries) else 0
    out.truncate(size)
    index.truncate(entries.nbytes)
    return len(entries), size


def _check_room(folder: Path, wanted: int) -> None:
    """Before the disk is full, which would hurt others too."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(errno.ENOSPC, f"about {wanted / 1e9:.1f} GB more are needed, {free / 1e9:.1f} GB are free")


def _checksum(record: bytes, number: int) -> int:
    return zlib.crc32(record, number + 1)  # that of another row's record is another


def _whole(folder: Path, rows: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        index = np.memmap(folder / INDEX, ENTRY, "r")
        return len(index) == rows and os.path.getsize(folder / ROWS) == int(index["end"][-1])
    return False


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process of this machine at a time; the lock of one that is killed is free again."""
    with target.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
