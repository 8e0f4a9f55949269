"""From a row to the features of one document: tokens in chunks, marked evidence, target ids."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from jax_simcas.common import checks
from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import (
    SETTLED,
    LightTokenizer,
    Tokenized,
    Tokenizer,
    frame_of,
    tokenize,
    tokenize_start,
)
from jax_simcas.method.chunk import Chunks, chunk_at, chunk_sentences, chunk_tokens, most_chunks

Features = dict[str, Any]
# A sentence ends at . ! or ? (and closing quotes or brackets) before white space, at their full-width forms, or
# at a line's end. An abbreviation's full stop counts too: one more place where a chunk may end does no harm.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*+(?=\s)|[。！？][”’」』）]*+|\n")
TEMPLATE_FIELD = re.compile(r"\{(query|context)\}")
SHORTEST_TARGET = 3  # decoder start, BOS, EOS


@dataclass(frozen=True)
class FeatureConfig:
    """All that changes the features of a row; a cache of them is valid for one value of it.

    chunk_length: tokens of a chunk, BOS and EOS included.
    max_input_len: tokens of a document, one BOS and EOS included.
    max_target_len: tokens of a target, decoder start, BOS and EOS included.
    chunking: "fixed" cuts at every chunk_length - 2 tokens, "sentences" at sentence ends.
    input_template: what the encoder reads; `{document}`, and `{query}` and `{context}` of rows that have them.
    decoder_start: token id that starts every target; None: the target's last token, as mBART wraps it around.
    parts_at: separator of the parts of a document ("": one part), which `join_parts` replaces.
    draw_answer: training takes a random one of a row's answers, not always the first.
    chunk_start, chunk_end: ids of the outer tokens of each of several chunks; None: those of the tokenizer's `Frame`.
    """

    chunk_length: int
    max_input_len: int
    max_target_len: int
    chunking: str = "fixed"
    input_template: str = "{document}"
    decoder_start: int | None = 2
    parts_at: str = ""
    join_parts: str = "</s>"
    draw_answer: bool = False
    chunk_start: int | None = None
    chunk_end: int | None = None

    def __post_init__(self) -> None:
        check_template(self.input_template)
        checks.one_of(self, "chunking", ("fixed", "sentences"))
        checks.at_least(self, 3, "chunk_length", "max_input_len")  # BOS, one token, EOS
        checks.at_least(self, SHORTEST_TARGET, "max_target_len")

    @property
    def most_chunks(self) -> int:
        """The most chunks that a document can have, where two special tokens frame each."""
        return most_chunks(self.max_input_len - 2, self.chunk_length, sentences=self.chunking == "sentences")


def check_template(template: str) -> None:
    """Raises ValueError for an input template that does not have `{document}` exactly once."""
    if template.count("{document}") != 1:
        raise ValueError(f"input_template={template!r}: expected '{{document}}' in it, once")


def shuffle_parts(row: Row, config: FeatureConfig, rng: np.random.Generator | None = None) -> Row:
    """Joins the document's parts by `join_parts`, in random order if there is an `rng`.

    Marked evidence is dropped, as parts move; ready-made chunks stay. Source: docs/method.md, "Published settings".
    Deviation: evaluation keeps the order of the parts.
    """
    if not config.parts_at or row.chunks is not None:
        return row
    parts = row.document.split(config.parts_at)
    order = range(len(parts)) if rng is None else rng.permutation(len(parts))
    return dataclasses.replace(row, document=config.join_parts.join(parts[i] for i in order), evidence=None)


def draw_answer(row: Row, config: FeatureConfig, rng: np.random.Generator | None = None) -> Row:
    """The row with a random one of its answers as summary, if `draw_answer` is set and there is an `rng`."""
    if not config.draw_answer or rng is None or not row.answers:
        return row
    return dataclasses.replace(row, summary=row.answers[rng.integers(len(row.answers))])


def featurize(
    row: Row, tokenizer: Tokenizer, config: FeatureConfig, rng: np.random.Generator | None = None
) -> Features:
    """One document as numpy arrays, not yet padded to a bucket. A row's ready-made chunks are taken as they are.

    input_ids, token_mask [K, S]; content_mask [K, S], tokens that are neither special nor PAD; token_offsets [K, S, 2],
    characters of the document, -1 elsewhere; evidence_mask [K, S], tokens that overlap the row's evidence; target_ids
    [T]: decoder start, and the target as the tokenizer frames it; cut_tokens, cut_target: number of tokens beyond the
    limits, an estimate for texts of more than half a million characters.

    Args:
      rng: training's random choices, see `shuffle_parts` and `draw_answer`; None for evaluation.

    Raises:
      UserError: an empty document; a template with a query that the row lacks; chunks of another length than the
        model's, or that the tokenizer cannot have made.
    """
    tokenizer = LightTokenizer.of(tokenizer)
    row = draw_answer(shuffle_parts(row, config, rng), config, rng)
    content = (_from_text if row.chunks is None else _from_chunks)(row, tokenizer, config)
    target, cut_target = target_content(row.summary, tokenizer, config)
    return {
        "input_ids": content.chunks.input_ids,
        "token_mask": content.chunks.token_mask,
        "content_mask": content.chunks.token_index >= 0,
        "token_offsets": _per_token(content.chunks, content.offsets, -1),
        "evidence_mask": _per_token(content.chunks, _overlaps(content.offsets, row.evidence or ()), False),
        "has_evidence": row.evidence is not None,
        "target_ids": target_ids(target, tokenizer, config),
        "cut_tokens": content.cut,
        "cut_target": cut_target,
    }


def check_token_ids(features: Features, tokenizer: Tokenizer, rows: int | None, where: str) -> None:
    """Raises UserError for a token beyond the model's `rows` embeddings, such as `<mask>` for BART-large-CNN.

    Args:
      rows: None: not known.
      where: names the row; "" for the only one.
    """
    for part, name in (("document", "input_ids"), ("target", "target_ids")):
        largest = int(features[name].max())
        if rows is not None and largest >= rows:
            token = tokenizer.backend_tokenizer.id_to_token(largest)
            whose = f"{where}: its" if where else "the"
            raise UserError(
                f"{whose} {part} has the token {token!r} (id {largest}), which the weights ({rows} tokens) have "
                "not: remove it from the text, or use the tokenizer that the weights were trained with"
            )


def target_content(text: str, tokenizer: Tokenizer, config: FeatureConfig) -> tuple[Int32[np.ndarray, " n"], int]:
    """A target's tokens without specials, and how many the limit cuts."""
    frame = frame_of(tokenizer)
    room = config.max_target_len - 1 - len(frame.target_prefix) - len(frame.target_suffix)
    tokenized, cut = tokenize_start(tokenizer, text, max(room, 0), target=True)
    return tokenized.ids, cut


def target_ids(content: Int[np.ndarray, " n"], tokenizer: Tokenizer, config: FeatureConfig) -> Int32[np.ndarray, " T"]:
    """Decoder start, then the content as the tokenizer frames a target: what follows each token is what it predicts.

    Source: `shift_tokens_right` of transformers' BART, and that of its mBART and PLBart, which wraps the last token.
    """
    frame = frame_of(tokenizer)
    label = np.concatenate([frame.target_prefix, content, frame.target_suffix]).astype(np.int32)
    start = label[-1] if config.decoder_start is None else config.decoder_start
    return np.concatenate([[start], label]).astype(np.int32)


class _Content(NamedTuple):
    """Chunks; the document's characters [start, end) of each token, -1 where unknown; number of tokens cut."""

    chunks: Chunks
    offsets: Int[np.ndarray, "n 2"]
    cut: int


def _from_text(row: Row, tokenizer: Tokenizer, config: FeatureConfig) -> _Content:
    if not row.document.strip():
        raise UserError(f"row {row.id}: its document is empty")
    before, after = _around_document(row, config.input_template)
    text = before + row.document + after
    (ids, offsets), cut = _cut_before(after, text, tokenizer, config.max_input_len - 2)
    special = special_ids(tokenizer, config)
    if config.chunking == "sentences":
        read = text[: offsets[-1, 1] + SETTLED] if cut else text
        ends = np.array([match.end() for match in SENTENCE_END.finditer(read)], np.int64)
        # A sentence ends before the first token that starts at or after the character that follows it.
        chunks = chunk_sentences(ids, np.searchsorted(offsets[:, 0], ends).tolist(), config.chunk_length, **special)
    else:
        chunks = chunk_tokens(ids, config.chunk_length, **special)
    return _Content(chunks, _within(offsets - len(before), len(row.document)), cut)


def _cut_before(after: str, text: str, tokenizer: Tokenizer, limit: int) -> tuple[Tokenized, int]:
    """`limit` tokens of a text, and how many are cut: those in front of `after`, its end, such as a question.

    An `after` that leaves no room is cut itself, as it comes last.
    """
    start, cut = tokenize_start(tokenizer, text, limit)
    if not cut or not after.strip():
        return start, cut
    end = tokenize(tokenizer, after)
    room = limit - len(end.ids)
    if room <= 0:
        return start, cut
    offsets = end.offsets + len(text) - len(after)
    ids = np.concatenate([start.ids[:room], end.ids])
    return Tokenized(ids, np.concatenate([start.offsets[:room], offsets])), cut


def _around_document(row: Row, template: str) -> list[str]:
    """What the template puts before and after the document, in one pass: braces in a query are text."""
    texts = {"query": row.query, "context": row.context}
    for name, value in texts.items():
        if value is None and f"{{{name}}}" in template:
            raise UserError(
                f"row {row.id}: no {name}, which input_template={template!r} asks for; "
                f"name its field in config.data.fields.{name}"
            )
    return [TEMPLATE_FIELD.sub(lambda match: texts[match[1]] or "", part) for part in template.split("{document}")]


def _from_chunks(row: Row, tokenizer: Tokenizer, config: FeatureConfig) -> _Content:
    """The set's chunks `[BOS] content [PAD] [EOS]` of the model's length; the last, so an only one, may be shorter.

    Deviation: cut at max_input_len tokens of content, where the released code keeps max_input_len // S chunks.
    """
    special, length, ready = special_ids(tokenizer, config), config.chunk_length, row.chunks or ()
    whole = ("bos", "eos") if len(ready) == 1 else ("chunk_bos", "chunk_eos")
    ends = special[whole[0]], special[whole[1]]
    vocabulary = tokenizer.backend_tokenizer.get_vocab_size()
    contents = []
    for k, chunk in enumerate(ready):
        where = f"row {row.id}: chunk {k} of its token ids (config.data.fields.chunks)"
        while len(ready) == 1 and chunk[-1:] == (special["pad"],):  # PAD stands behind EOS in an only chunk
            chunk = chunk[:-1]
        _check_ready_chunk(chunk, length, k + 1 == len(ready), ends, vocabulary, where)
        ids = np.asarray(chunk[len(ends[0]) : len(chunk) - len(ends[1])], np.int32)
        contents.append(ids[ids != special["pad"]])
    if not sum(map(len, contents)):
        raise UserError(f"row {row.id}: its chunks (config.data.fields.chunks) have no token in them")
    ids = np.concatenate(contents)
    read = ids[: config.max_input_len - 2]
    starts = np.cumsum([0, *map(len, contents[:-1])])
    chunks = chunk_at(read, starts[starts < len(read)].tolist(), length, **special)
    return _Content(chunks, np.full((len(read), 2), -1, np.int64), len(ids) - len(read))


def _check_ready_chunk(
    chunk: Sequence[int],
    length: int,
    last: bool,
    frame: tuple[tuple[int, ...], tuple[int, ...]],
    vocabulary: int,
    where: str,
) -> None:
    if len(chunk) > length or (len(chunk) < length and not last):
        raise UserError(
            f"{where} has {len(chunk)} tokens, expected {length}: config.simcas.chunk_length must be what the set "
            "was cut at"
        )
    before, after = frame
    ends = len(chunk) - len(after)
    if ends < len(before) or (tuple(chunk[: len(before)]), tuple(chunk[ends:])) != (before, after):
        expected = f"BOS {' '.join(map(str, before))} ... EOS {' '.join(map(str, after))}"
        raise UserError(
            f"{where} is {chunk[:1]} ... {chunk[-1:]}, expected {expected}: does the tokenizer belong to the set?"
        )
    content = chunk[len(before) : ends]
    if content and not 0 <= min(content) <= max(content) < vocabulary:
        raise UserError(
            f"{where} has {min(content)} to {max(content)}, but the tokenizer has {vocabulary} tokens: "
            "does it belong to the set?"
        )


def special_ids(tokenizer: Tokenizer, config: FeatureConfig) -> dict[str, Any]:
    """What frames a document of one chunk and each of several, as keyword arguments of chunk.py's functions."""
    frame = frame_of(tokenizer)
    before, after = frame.chunk_prefix, frame.chunk_suffix
    if config.chunk_start is not None:
        before = (config.chunk_start, *before[1:])
    if config.chunk_end is not None:
        after = (*after[:-1], config.chunk_end)
    return {"bos": frame.prefix, "eos": frame.suffix, "pad": frame.pad, "chunk_bos": before, "chunk_eos": after}


def _within(offsets: Int[np.ndarray, "n 2"], length: int) -> Int[np.ndarray, "n 2"]:
    """Offsets cut to [0, length]; -1 for tokens outside it."""
    start, end = offsets[:, 0], offsets[:, 1]
    empty = start == end  # a lone space: its offsets leave the space out
    inside = np.where(empty, (start >= 0) & (end <= length), (end > 0) & (start < length))
    return np.where(inside[:, None], offsets.clip(0, length), -1)


def _overlaps(offsets: Int[np.ndarray, "n 2"], spans: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " n"]:
    out = np.zeros(len(offsets), bool)
    for start, end in spans:
        out |= (offsets[:, 0] < end) & (offsets[:, 1] > start) & (start < end)
    return out


def _per_token(chunks: Chunks, values: np.ndarray, fill: Any) -> np.ndarray:
    padded = np.concatenate([values, np.full((1, *values.shape[1:]), fill, values.dtype)])
    return padded[chunks.token_index]  # -1 takes the fill
