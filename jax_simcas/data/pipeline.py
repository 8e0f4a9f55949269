"""From rows to padded batches of chunks: tokenise, chunk, pad to few shapes, shuffle, shard, resume."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from jax_simcas.chunk import Chunks, bucket, chunk_sentences, chunk_tokens, pad_rows
from jax_simcas.data.sources import Row
from jax_simcas.data.tokenizer import encode_text
from jax_simcas.errors import UserError

Features = dict[str, Any]
# A sentence ends at . ! or ? (and closing quotes or brackets) before white space, or at a line's end.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|\n")


@dataclass(frozen=True)
class PipelineConfig:
    """What a row is turned into; see SimcasConfig and DataConfig for the fields they share."""

    chunk_length: int
    max_input_len: int
    max_target_len: int
    chunking: str
    input_template: str
    batch_size: int
    chunk_buckets: tuple[int, ...]
    target_buckets: tuple[int, ...]
    seed: int
    workers: int
    decoder_start: int


def featurize(row: Row, tokenizer: Any, config: PipelineConfig) -> Features:
    """One row as numpy arrays, not yet padded to a bucket.

    input_ids, token_mask [K, S]; token_offsets [K, S, 2], characters of the document, -1 elsewhere;
    evidence_mask [K, S], tokens that overlap the row's evidence; target_ids [T]: decoder start, BOS, tokens,
    EOS; cut_tokens, cut_target: how many tokens the limits left out.

    Raises:
      UserError: a document without anything in it.
    """
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    if not row.document.strip():
        raise UserError(f"row {row.id}: its document is empty")
    before, after = config.input_template.split("{document}", 1)
    before, after = (part.replace("{query}", row.query or "") for part in (before, after))
    text = before + row.document + after
    encoded = encode_text(tokenizer, text)
    limit = config.max_input_len - 2
    ids, offsets = encoded.ids[:limit], encoded.offsets[:limit] - len(before)
    inside = (offsets[:, 0] >= 0) & (offsets[:, 1] <= len(row.document))
    offsets = np.where(inside[:, None], offsets, -1)
    if config.chunking == "sentences":
        ends = np.array([match.end() for match in SENTENCE_END.finditer(text)]) - len(before)
        # A sentence ends before the first token that starts at or after its last character.
        starts = encoded.offsets[:limit, 0] - len(before)
        chunks = chunk_sentences(ids, np.searchsorted(starts, ends).tolist(), config.chunk_length, **special)
    else:
        chunks = chunk_tokens(ids, config.chunk_length, **special)
    target = encode_text(tokenizer, row.summary).ids
    room = config.max_target_len - 3
    ends_with = [tokenizer.eos_token_id]
    return {
        "input_ids": chunks.input_ids,
        "token_mask": chunks.token_mask,
        "token_offsets": _of_tokens(chunks, offsets, -1),
        "evidence_mask": _of_tokens(chunks, _overlaps(offsets, row.evidence), False),
        "has_evidence": row.evidence is not None,
        "target_ids": np.asarray([config.decoder_start, tokenizer.bos_token_id, *target[:room], *ends_with], np.int32),
        "cut_tokens": len(encoded.ids) - len(ids),
        "cut_target": max(len(target) - room, 0),
    }


def _of_tokens(chunks: Chunks, values: np.ndarray, fill: Any) -> np.ndarray:
    padded = np.concatenate([values, np.full((1, *values.shape[1:]), fill, values.dtype)])
    return padded[chunks.token_index]  # -1 takes the fill


def _overlaps(offsets: np.ndarray, evidence: tuple[tuple[int, int], ...] | None) -> np.ndarray:
    out = np.zeros(len(offsets), bool)
    for start, end in evidence or ():
        out |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return out


def pad_batch(rows: list[Features], config: PipelineConfig, pad: int, size: int | None = None) -> Features:
    """Stacks rows, each padded to the bucket of the longest; `size` adds rows of pure padding."""
    chunks = bucket(max(len(row["input_ids"]) for row in rows), config.chunk_buckets)
    target = bucket(max(len(row["target_ids"]) for row in rows), config.target_buckets)
    size = size or len(rows)
    stack = lambda name, length, fill: pad_rows(
        np.stack([pad_rows(row[name], length, fill) for row in rows]), size, fill
    )
    token_mask = stack("token_mask", chunks, False)
    target_ids = stack("target_ids", target, pad)
    real = np.arange(size) < len(rows)
    lengths = np.array([len(row["target_ids"]) for row in rows] + [0] * (size - len(rows)))
    column = lambda name: pad_rows(np.array([row.get(name, 0) for row in rows]), size, 0)
    return {
        "input_ids": stack("input_ids", chunks, pad),
        "token_mask": token_mask,
        "chunk_mask": token_mask.any(axis=-1),
        "evidence_mask": stack("evidence_mask", chunks, False),
        "has_evidence": column("has_evidence").astype(bool),
        "target_ids": target_ids,
        "target_mask": np.arange(target) < lengths[:, None],
        "row_index": column("row_index").astype(np.int64),
        "row_mask": real,
        "cut_tokens": column("cut_tokens"),
        "cut_target": column("cut_target"),
    }


class _Featurize(grain.transforms.Map):
    """Row number -> features; a document without anything in it becomes None and is filtered out."""

    def __init__(self, source: Any, tokenizer: Any, config: PipelineConfig) -> None:
        self._source, self._tokenizer, self._config = source, tokenizer, config

    def map(self, index: Any) -> Features | None:
        row = self._source[int(index)]
        if not row.document.strip():
            return None
        return featurize(row, self._tokenizer, self._config) | {"row_index": int(index)}


def make_iterator(
    source: Any,
    tokenizer: Any,
    config: PipelineConfig,
    *,
    training: bool,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator:
    """Batches: endless, shuffled anew each epoch when training; else one pass in order, the last one padded.

    The iterator's state (`get_state`, or grain's checkpoint handlers) resumes it exactly, with the same number
    of workers. Rows whose document is empty are left out.

    Raises:
      UserError: fewer rows than shards.
    """
    if len(source) < shard_count:
        raise UserError(f"{source!r}: {len(source)} rows cannot be shared by {shard_count} processes")
    size, pad = config.batch_size, tokenizer.pad_token_id
    rows = grain.MapDataset.range(len(source))
    if training:
        rows = rows.seed(config.seed).shuffle()
    rows = rows[shard_index::shard_count]
    if training:
        rows = rows.repeat()
    rows = rows.map(_Featurize(source, tokenizer, config)).filter(lambda row: row is not None)
    dataset = rows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * size))
    batches = dataset.batch(
        size,
        drop_remainder=False,
        batch_fn=_Pad(config, pad, size),
    )
    if config.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return iter(batches)


class _Pad:
    """A batch's rows -> padded arrays; a class, so that it can be sent to workers."""

    def __init__(self, config: PipelineConfig, pad: int, size: int) -> None:
        self._config, self._pad, self._size = config, pad, size

    def __call__(self, rows: list[Features]) -> Features:
        return pad_batch(list(rows), self._config, self._pad, self._size)
