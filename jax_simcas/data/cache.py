"""Tokenised rows on disk: made once, in worker processes, then read by number.

One folder per content of rows, tokenizer and settings that change tokens. `rows` holds one record per row, `index` its
end, number of chunks and checksum. A folder gets its name when it is whole; an interrupted build resumes. What training
draws in each epoch is left to reading: which of a row's answers (all are kept) and the order of a document's parts
(such sets are not cached).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import grain
import numpy as np
import tokenizers

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import locked
from jax_simcas.data.batches import PipelineConfig, in_workers
from jax_simcas.data.features import (
    FeatureConfig,
    Features,
    featurize,
    special_ids,
    target_content,
    target_ids,
)
from jax_simcas.data.rows import RowSource
from jax_simcas.data.tokenizer import LightTokenizer, Tokenizer, cutters
from jax_simcas.method.chunk import chunk_at

FORMAT = 2  # of records and of how they are framed; a new number makes new folders
ROWS, INDEX = "rows", "index"
ENTRY = np.dtype([("end", "<i8"), ("chunks", "<i4"), ("checksum", "<u4")])
ROWS_PER_CHECK = 256  # of the disk's free space


class TokenCache:
    """The rows of a folder that `token_cache` made; holds no row in memory and pickles to a few bytes."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, config: FeatureConfig) -> None:
        self.folder, self._tokenizer, self._config = folder, tokenizer, config

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self.folder, self._tokenizer, self._config)

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def index(self) -> np.ndarray:
        """One `ENTRY` per row, mapped into memory: a few bytes per row, shared by the workers."""
        return np.memmap(self.folder / INDEX, ENTRY, "r")

    @property
    def chunks(self) -> np.ndarray:
        """Number of chunks of each row."""
        return self.index["chunks"]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def read(self, number: int, rng: np.random.Generator | None = None) -> Features | None:
        """What `featurize` gives, but without token_offsets; None for a row that is damaged or gone.

        With an `rng` (training) and `draw_answer` the target is the answer that `featurize` would draw.
        """
        try:
            entry, begin = self.index[number], int(self.index["end"][number - 1]) if number else 0
            with (self.folder / ROWS).open("rb", buffering=0) as file:
                file.seek(begin)
                record = file.read(int(entry["end"]) - begin)
        except OSError:
            return None
        if _checksum(record, number) != entry["checksum"]:
            return None
        return unpack(record, self._tokenizer, self._config, rng)


def find(source: RowSource, tokenizer: Tokenizer, config: FeatureConfig, folder: Path) -> TokenCache | None:
    """The tokens of a source's rows if `folder` has them."""
    light = LightTokenizer.of(tokenizer)
    target = folder / key_of(source, light, config)
    return TokenCache(target, light, config) if _is_whole(target, len(source)) else None


def token_cache(
    source: RowSource,
    tokenizer: Tokenizer,
    config: PipelineConfig,
    folder: Path,
    on_rows: Callable[[int], None] | None = None,
) -> TokenCache:
    """The tokens of a source's rows in a folder within `folder`, which `config.workers` processes make if need be.

    The source has a fingerprint. Training on one that `reshuffles_parts` cannot read from the cache. If several
    processes need the same cache, one makes it while the others wait.

    Args:
      on_rows: called with the number of rows that an interrupted build left, then with 1 per row tokenised.

    Raises:
      UserError: a row that cannot be used.
      OSError: the folder cannot be written, or the disk has no room for the tokens of all rows.
    """
    light = LightTokenizer.of(tokenizer)
    target = folder / key_of(source, light, config)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")):
        if not _is_whole(target, len(source)):
            _make(target, source, light, config, on_rows or (lambda count: None))
    return TokenCache(target, light, config)


def reshuffles_parts(source: RowSource, config: FeatureConfig) -> bool:
    """Whether training joins the parts of documents in a new order each epoch, which no cache can hold."""
    return bool(config.parts_at) and source[0].chunks is None


def key_of(source: RowSource, tokenizer: Tokenizer, config: FeatureConfig) -> str:
    """A hash of all that tokens depend on: rows, tokenizer and its library, settings."""
    tokens = (tokenizer.backend_tokenizer.to_str(), special_ids(tokenizer, config), tokenizers.__version__)
    settings = sorted((field.name, getattr(config, field.name)) for field in dataclasses.fields(FeatureConfig))
    parts: tuple[Any, ...] = (FORMAT, source.fingerprint, tokens, settings)
    if config.input_template.partition("{document}")[2].strip():
        parts += ("what stands behind a document is kept",)  # it was cut once
    if any(own := cutters(tokenizer)):
        parts += ([cutter and (type(cutter).__name__, cutter.backend.to_str()) for cutter in own],)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


FIRST_SETTINGS = (
    *("chunk_length", "chunking", "decoder_start", "draw_answer", "input_template", "join_parts", "max_input_len"),
    *("max_target_len", "parts_at"),
)


def of_first_format(source: RowSource, tokenizer: Tokenizer, config: FeatureConfig, folder: Path) -> Path | None:
    """The folder in which version 0.2.0 kept the tokens of these rows, framed otherwise; None if there is none."""
    light = LightTokenizer.of(tokenizer)
    special = {"bos": light.bos_token_id, "eos": light.eos_token_id, "pad": light.pad_token_id}
    tokens = (light.backend_tokenizer.to_str(), special, tokenizers.__version__)
    parts = (1, source.fingerprint, tokens, [(name, getattr(config, name)) for name in FIRST_SETTINGS])
    path = folder / hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
    return path if path.is_dir() else None


def pack(features: Features, targets: list[tuple[np.ndarray, int]], dtype: np.dtype) -> bytes:
    """A row's record: counts, lengths of chunks, tokens, evidence as one bit per token, targets.

    Args:
      targets: (content, number of tokens cut) of the summary and of each answer that may be drawn.
    """
    inner = features["content_mask"]
    ids = features["input_ids"][inner]
    marked = features["evidence_mask"][inner] if features["has_evidence"] else np.zeros(0, bool)
    head = [len(inner), len(targets), features["cut_tokens"], features["has_evidence"], *inner.sum(axis=1)]
    for content, cut in targets:
        head += [len(content), cut]
    parts = [ids.astype(dtype), np.packbits(marked), *(content.astype(dtype) for content, _ in targets)]
    return b"".join([np.asarray(head, "<i4").tobytes(), *(part.tobytes() for part in parts)])


def unpack(record: bytes, tokenizer: Tokenizer, config: FeatureConfig, rng: np.random.Generator | None) -> Features:
    """A record -> what `TokenCache.read` returns."""
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
    made = chunk_at(ids, (np.cumsum(lengths) - lengths).tolist(), config.chunk_length, **special_ids(tokenizer, config))
    evidence = np.zeros(made.token_mask.shape, bool)
    if has_evidence:
        evidence[made.token_index >= 0] = np.unpackbits(bits, count=count)
    drawn = 1 + rng.integers(targets - 1) if rng is not None and targets > 1 else 0
    return {
        "input_ids": made.input_ids,
        "token_mask": made.token_mask,
        "content_mask": made.token_index >= 0,
        "evidence_mask": evidence,
        "has_evidence": bool(has_evidence),
        "target_ids": target_ids(contents[drawn], tokenizer, config),
        "cut_tokens": cut,
        "cut_target": int(target_sizes[drawn, 1]),
    }


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Two bytes per token where the vocabulary fits."""
    return np.dtype("<u2" if tokenizer.backend_tokenizer.get_vocab_size() <= 2**16 else "<i4")


class _Pack(grain.transforms.Map):
    """Row number -> (record, number of chunks)."""

    def __init__(self, source: RowSource, tokenizer: Tokenizer, config: PipelineConfig) -> None:
        self._source, self._tokenizer, self._config = source, tokenizer, config

    def map(self, index: Any) -> tuple[bytes, int]:
        row = self._source[int(index)]
        features = featurize(row, self._tokenizer, self._config)
        texts = (row.summary, *(row.answers if self._config.draw_answer else ()))
        targets = [target_content(text, self._tokenizer, self._config) for text in texts]
        return pack(features, targets, token_dtype(self._tokenizer)), len(features["input_ids"])


def _make(
    target: Path, source: RowSource, tokenizer: Tokenizer, config: PipelineConfig, on_rows: Callable[[int], None]
) -> None:
    shutil.rmtree(target, ignore_errors=True)  # it exists only if it is damaged
    partial = target.with_name(f".{target.name}")
    partial.mkdir(exist_ok=True)
    try:
        _append(partial, source, tokenizer, config, on_rows)
        partial.rename(target)
    except (OSError, UserError):
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _append(
    folder: Path, source: RowSource, tokenizer: Tokenizer, config: PipelineConfig, on_rows: Callable[[int], None]
) -> None:
    """Writes the missing rows: all of them, or those after the last one of an interrupted build."""
    ahead = grain.ReadOptions(num_threads=0 if config.workers else 1, prefetch_buffer_size=0 if config.workers else 16)
    with (folder / ROWS).open("ab") as out, (folder / INDEX).open("ab") as index:
        done, size = _truncate_to_whole_rows(out, index)
        on_rows(done)
        rows = grain.MapDataset.range(done, len(source)).map(_Pack(source, tokenizer, config))
        records = iter(in_workers(rows.to_iter_dataset(ahead), config.workers)) if done < len(source) else iter(())
        try:
            for number, (record, chunks) in enumerate(records, done):
                size += len(record)
                out.write(record)
                index.write(np.array((size, chunks, _checksum(record, number)), ENTRY).tobytes())
                if (number + 1) % ROWS_PER_CHECK == 0:
                    _check_space(folder, size * (len(source) - number - 1) // (number + 1))
                on_rows(1)
        finally:
            if hasattr(records, "close"):
                records.close()
        for file in (out, index):
            file.flush()
            os.fsync(file.fileno())


def _truncate_to_whole_rows(out: IO[bytes], index: IO[bytes]) -> tuple[int, int]:
    """Cuts both files to the rows that both hold whole; (rows, bytes of their records)."""
    entries = np.fromfile(index.name, ENTRY)
    entries = entries[entries["end"] <= os.path.getsize(out.name)]
    size = int(entries["end"][-1]) if len(entries) else 0
    out.truncate(size)
    index.truncate(entries.nbytes)
    return len(entries), size


def _check_space(folder: Path, needed: int) -> None:
    """Raises before the disk is full, which would harm other programs too."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"about {needed / 1e9:.1f} GB more are needed, {free / 1e9:.1f} GB are free")


def _checksum(record: bytes, number: int) -> int:
    return zlib.crc32(record, number + 1)  # the same record has another checksum in another row


def _is_whole(folder: Path, rows: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        index = np.memmap(folder / INDEX, ENTRY, "r")
        return len(index) == rows and os.path.getsize(folder / ROWS) == int(index["end"][-1])
    return False
