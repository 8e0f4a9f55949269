"""From rows to padded batches of chunks: tokenise, chunk, pad to few shapes, shuffle, shard, resume."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int, Int32

from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import TextEncoder, encode_text
from jax_simcas.method.chunk import Chunks, bucket, chunk_at, chunk_sentences, chunk_tokens, most_chunks
from jax_simcas.method.document import Document, Example, Target

Features = dict[str, Any]
# A sentence ends at . ! or ? (and closing quotes or brackets) before white space, at their full-width forms, or
# at a line's end. An abbreviation's full stop counts too: one more place where a chunk may end does no harm.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*+(?=\s)|[。！？][”’」』）]*+|\n")
TEMPLATE_FIELD = re.compile(r"\{(query|context)\}")
SPECIALS_OF_TARGET = 3  # decoder start, BOS, EOS
BATCHES_AHEAD = 4


@dataclass(frozen=True)
class PipelineConfig:
    """What a row is turned into; see SimcasConfig and DataConfig for the fields they share.

    max_input_len counts the document's own BOS and EOS, max_target_len the decoder's start token too.
    chunk_buckets, target_buckets: lengths that batches are padded to; beyond them, powers of two.
    workers: processes that prepare training batches; evaluation needs none.
    parts_at: where documents of several parts are split ("" for none); the parts are joined by `join_parts`.
    draw_answer: training takes a random one of a row's answers, not always the first.
    bucket_batches: training batches hold rows of about as many chunks: the shuffled rows of so many batches are
      sorted; 0: rows come as they are shuffled.
    """

    chunk_length: int
    max_input_len: int
    max_target_len: int
    chunking: str = "fixed"
    input_template: str = "{document}"
    batch_size: int = 1
    chunk_buckets: tuple[int, ...] = ()
    target_buckets: tuple[int, ...] = ()
    seed: int = 0
    workers: int = 0
    decoder_start: int = 2
    parts_at: str = ""
    join_parts: str = "</s>"
    draw_answer: bool = False
    bucket_batches: int = 0

    def __post_init__(self) -> None:
        if self.input_template.count("{document}") != 1:
            raise ValueError(f"input_template={self.input_template!r}: expected '{{document}}' in it, once")
        if self.chunking not in ("fixed", "sentences"):
            raise ValueError(f"chunking={self.chunking!r}: expected one of fixed, sentences")
        least = (("chunk_length", 3), ("max_input_len", 3), ("max_target_len", SPECIALS_OF_TARGET), ("batch_size", 1))
        for name, value in (*least, ("bucket_batches", 0)):
            if getattr(self, name) < value:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {value}")

    @property
    def most_chunks(self) -> int:
        """No document has more."""
        return most_chunks(self.max_input_len - 2, self.chunk_length, sentences=self.chunking == "sentences")


def arranged(row: Row, config: PipelineConfig, rng: np.random.Generator | None = None) -> Row:
    """The row as the model is shown it: a document's parts joined anew, in random order if there is an `rng`.

    With an `rng` (training) and `draw_answer` a random one of its answers is the summary. Marked evidence is lost
    where parts move; ready-made chunks stay. Source: method.md "Published settings". Deviation: evaluation keeps the
    order of the parts.
    """
    if config.parts_at and row.chunks is None:
        parts = row.document.split(config.parts_at)
        order = range(len(parts)) if rng is None else rng.permutation(len(parts))
        document = config.join_parts.join(parts[i] for i in order)
        row = dataclasses.replace(row, document=document, evidence=None)
    if config.draw_answer and rng is not None and row.answers:
        row = dataclasses.replace(row, summary=row.answers[rng.integers(len(row.answers))])
    return row


def featurize(row: Row, tokenizer: Any, config: PipelineConfig) -> Features:
    """One row as numpy arrays, not yet padded to a bucket. Chunks that a row brings along are taken as they are.

    input_ids, token_mask [K, S]; token_offsets [K, S, 2], characters of the document, -1 elsewhere;
    evidence_mask [K, S], tokens that overlap the row's evidence; target_ids [T]: decoder start, BOS, tokens,
    EOS; cut_tokens, cut_target: how many tokens the limits left out.

    Raises:
      UserError: a document without anything in it; a template that asks for a query that the row lacks; chunks
        of another length than the model's, or that the tokenizer cannot have made.
    """
    content = (_from_text if row.chunks is None else _from_chunks)(row, tokenizer, config)
    target, cut_target = target_content(row.summary, tokenizer, config)
    return {
        "input_ids": content.chunks.input_ids,
        "token_mask": content.chunks.token_mask,
        "token_offsets": _of_tokens(content.chunks, content.offsets, -1),
        "evidence_mask": _of_tokens(content.chunks, _overlaps(content.offsets, row.evidence or ()), False),
        "has_evidence": row.evidence is not None,
        "target_ids": target_ids(target, tokenizer, config),
        "cut_tokens": content.cut,
        "cut_target": cut_target,
    }


def target_content(text: str, tokenizer: Any, config: PipelineConfig) -> tuple[Int32[np.ndarray, " n"], int]:
    """A target's tokens without specials, and how many the limit left out."""
    ids, room = encode_text(tokenizer, text).ids, config.max_target_len - SPECIALS_OF_TARGET
    return ids[:room], max(len(ids) - room, 0)


def target_ids(content: Int[np.ndarray, " n"], tokenizer: Any, config: PipelineConfig) -> Int32[np.ndarray, " T"]:
    """Decoder start, BOS, content, EOS."""
    begin, end = (config.decoder_start, tokenizer.bos_token_id), (tokenizer.eos_token_id,)
    return np.concatenate([begin, content, end]).astype(np.int32)


class _Content(NamedTuple):
    """What the encoder reads; the document's characters [start, end) of each token, -1 where unknown; tokens cut."""

    chunks: Chunks
    offsets: Int[np.ndarray, "n 2"]
    cut: int


def _from_text(row: Row, tokenizer: Any, config: PipelineConfig) -> _Content:
    if not row.document.strip():
        raise UserError(f"row {row.id}: its document is empty")
    shown = {"query": row.query, "context": row.context}
    for name, value in shown.items():
        if value is None and f"{{{name}}}" in config.input_template:
            raise UserError(
                f"row {row.id}: no {name}, which input_template={config.input_template!r} asks for; "
                f"name its field in config.data.fields.{name}"
            )
    before, after = (
        TEMPLATE_FIELD.sub(lambda match: shown[match[1]] or "", part)
        for part in config.input_template.split("{document}")
    )
    text = before + row.document + after
    encoded = encode_text(tokenizer, text)
    limit = config.max_input_len - 2
    ids, offsets = encoded.ids[:limit], encoded.offsets[:limit]
    special = special_ids(tokenizer)
    if config.chunking == "sentences":
        ends = np.array([match.end() for match in SENTENCE_END.finditer(text)], np.int64)
        # A sentence ends before the first token that starts at or after the character that follows it.
        chunks = chunk_sentences(ids, np.searchsorted(offsets[:, 0], ends).tolist(), config.chunk_length, **special)
    else:
        chunks = chunk_tokens(ids, config.chunk_length, **special)
    return _Content(chunks, _within(offsets - len(before), len(row.document)), len(encoded.ids) - len(ids))


def _from_chunks(row: Row, tokenizer: Any, config: PipelineConfig) -> _Content:
    """Chunks `[BOS] content [PAD] [EOS]` of the model's length; the last, and so an only one, may be shorter.

    Deviation: cut at max_input_len tokens of content, where the released code keeps max_input_len // S chunks.
    """
    special, length = special_ids(tokenizer), config.chunk_length
    known = tokenizer.backend_tokenizer.get_vocab_size()
    contents = []
    for k, chunk in enumerate(row.chunks or ()):
        where = f"row {row.id}: chunk {k} of its token ids (config.data.fields.chunks)"
        if len(chunk) > length or (len(chunk) < length and k + 1 < len(row.chunks or ())):
            raise UserError(
                f"{where} has {len(chunk)} tokens, expected {length}: config.simcas.chunk_length must be what the set "
                "was cut at"
            )
        if len(chunk) < 2 or (chunk[0], chunk[-1]) != (special["bos"], special["eos"]):
            raise UserError(
                f"{where} is {chunk[:1]} ... {chunk[-1:]}, expected BOS {special['bos']} ... EOS {special['eos']}: "
                "does the tokenizer belong to the set?"
            )
        ids = np.asarray(chunk[1:-1], np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < known:
            raise UserError(
                f"{where} has {ids.min()} to {ids.max()}, but the tokenizer has {known} tokens: "
                "does it belong to the set?"
            )
        contents.append(ids[ids != special["pad"]].astype(np.int32))
    if not sum(map(len, contents)):
        raise UserError(f"row {row.id}: its chunks (config.data.fields.chunks) have no token in them")
    ids = np.concatenate(contents)
    read = ids[: config.max_input_len - 2]
    starts = np.cumsum([0, *map(len, contents[:-1])])
    chunks = chunk_at(read, starts[starts < len(read)].tolist(), length, **special)
    return _Content(chunks, np.full((len(read), 2), -1, np.int64), len(ids) - len(read))


def special_ids(tokenizer: Any) -> dict[str, int]:
    """BOS, EOS and PAD, as chunk.py's functions take them."""
    return {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}


def _within(offsets: Int[np.ndarray, "n 2"], length: int) -> Int[np.ndarray, "n 2"]:
    """Offsets cut to [0, length]; -1 for tokens of which nothing lies there."""
    start, end = offsets[:, 0], offsets[:, 1]
    empty = start == end  # a lone space: its offsets leave the space out
    inside = np.where(empty, (start >= 0) & (end <= length), (end > 0) & (start < length))
    return np.where(inside[:, None], offsets.clip(0, length), -1)


def _overlaps(offsets: Int[np.ndarray, "n 2"], spans: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " n"]:
    out = np.zeros(len(offsets), bool)
    for start, end in spans:
        out |= (offsets[:, 0] < end) & (offsets[:, 1] > start) & (start < end)
    return out


def _of_tokens(chunks: Chunks, values: np.ndarray, fill: Any) -> np.ndarray:
    padded = np.concatenate([values, np.full((1, *values.shape[1:]), fill, values.dtype)])
    return padded[chunks.token_index]  # -1 takes the fill


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


def widen(batch: Features, chunks: int, target: int, pad: int) -> Features:
    """The batch with at least so many chunks and target tokens, the new ones padding."""

    def one(name: str, x: np.ndarray) -> np.ndarray:
        widths = {"input_ids": chunks, "token_mask": chunks, "chunk_mask": chunks, "evidence_mask": chunks}
        wanted = widths.get(name, target if name in ("target_ids", "target_mask") else 0)
        more = max(wanted - x.shape[1], 0) if wanted else 0
        fill = pad if name.endswith("_ids") else False
        return np.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)), constant_values=fill) if more else x

    return {name: one(name, x) for name, x in batch.items()}


def make_iterator(
    source: Any,
    tokenizer: Any,
    config: PipelineConfig,
    *,
    training: bool,
    start: int = 0,
    places: Sequence[int] | None = None,
    cache: Any = None,
) -> grain.DatasetIterator:
    """Batches: endless, shuffled anew each epoch when training; else one pass in order, the last one padded.

    The batches are the same for any number of workers and processes, and from any `start`.

    Args:
      start: how many batches to pass over, without reading them: where an interrupted run goes on.
      places: of several processes, the places in each batch of `config.batch_size` rows that this one reads;
        None: all. All get equally many batches.
      cache: a TokenCache of these rows, read in place of tokenising; the batches are the same.

    Raises:
      UserError: a source without rows; bucket_batches without a cache; while iterating, a row that cannot be used.
    """
    if not len(source):
        raise UserError(f"{source!r}: no rows in it")
    encoder = TextEncoder.of(tokenizer)
    size = config.batch_size
    places = range(size) if places is None else places
    if training:
        rows = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
        if config.bucket_batches:
            if cache is None:
                raise UserError(
                    "config.data.bucket_batches needs the number of chunks of every row, which the cache of tokens "
                    "knows: it needs config.data.cache=True, rows of files and no config.data.parts_at"
                )
            rows = rows.map_with_index(_Bucketed(rows, len(source), cache, config))
        featurized = rows.random_map(_FeaturizeForTraining(source, encoder, config, cache))
    else:
        rows = grain.MapDataset.range(-(-len(source) // size) * size)
        featurized = rows.map(_Featurize(source, encoder, config, cache))
    # Nothing is read before it is asked for, so that these slices cost nothing.
    end = len(featurized) // size * size
    columns = [featurized[start * size + place : end : size] for place in places]
    batches = (
        grain.experimental.ZipMapDataset(columns)
        .map(_Pad(config, encoder.pad_token_id, len(places)))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD))
    )
    return iter(in_workers(batches, config.workers if training else 0))


def in_workers(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    """The same elements in the same order, prepared by so many processes; 0: by this one."""
    if not workers:
        return dataset
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain asks for its own flags, which a caller without absl never parses
        flags.FLAGS.mark_as_parsed()
    # Elements come through pipes: shared memory is 64 MB in a container by default, and is left over at exit.
    pipes = grain.experimental.DatasetOptions(min_shm_size=2**62)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, pipes)
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


class _Bucketed(grain.transforms.MapWithIndex):
    """Place in the stream of shuffled rows -> row, so that batches hold rows of about as many chunks.

    The rows of `bucket_batches` batches at a time, but never of two epochs, are sorted by chunks and cut into batches,
    which come in random order. In a batch that two epochs share, rows stay where they were.
    """

    def __init__(self, rows: grain.MapDataset, epoch: int, cache: Any, config: PipelineConfig) -> None:
        self._rows, self._epoch, self._cache, self._config = rows, epoch, cache, config
        self._sorted: tuple[int, np.ndarray] = (
            0,
            np.zeros(0, np.int64),
        )  # the latest window: where it begins, its rows

    def map_with_index(self, index: int, element: Any) -> int:
        begin, rows = self._sorted
        if not begin <= index < begin + len(rows):
            window = self._config.bucket_batches * self._config.batch_size
            begin = max(index // window * window, index // self._epoch * self._epoch)
            end = min((index // window + 1) * window, (index // self._epoch + 1) * self._epoch)
            rows = self._sort(begin, end)
            self._sorted = (begin, rows)
        return int(rows[index - begin])

    def _sort(self, begin: int, end: int) -> np.ndarray:
        size = self._config.batch_size
        rows = np.asarray([self._rows[place] for place in range(begin, end)], np.int64)
        whole = slice(lead := min(-begin % size, end - begin), lead + (end - begin - lead) // size * size)
        batches = rows[whole][np.argsort(self._cache.chunks[rows[whole]], kind="stable")].reshape(-1, size)
        rows[whole] = np.random.default_rng([self._config.seed, begin]).permutation(batches).ravel()
        return rows


class _Featurize(grain.transforms.Map):
    """Row number -> features; nothing for the numbers beyond the last row, which fill the last batch."""

    def __init__(self, source: Any, encoder: TextEncoder, config: PipelineConfig, cache: Any) -> None:
        self._source, self._encoder, self._config, self._cache = source, encoder, config, cache

    def map(self, index: Any) -> Features:
        return self._features(int(index), None) if int(index) < len(self._source) else {}

    def _features(self, index: int, rng: np.random.Generator | None) -> Features:
        features = None if self._cache is None else self._cache.read(index, rng)
        if features is None:
            features = featurize(arranged(self._source[index], self._config, rng), self._encoder, self._config)
        return features | {"row_index": index}


class _FeaturizeForTraining(_Featurize, grain.transforms.RandomMap):
    """The same with a generator of its own for every row of every epoch."""

    def random_map(self, index: Any, rng: np.random.Generator) -> Features:
        return self._features(int(index), rng)


class _Pad(grain.transforms.Map):
    """A batch's rows -> padded arrays."""

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
