"""Chunk: a document's tokens, cut into rows of equal length. Host side, numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

Special = int | Sequence[int]  # one token or several


class Chunks(NamedTuple):
    """K chunks of S tokens. `token_index` points into the content, -1 at special tokens and PAD."""

    input_ids: Int32[np.ndarray, "K S"]
    token_mask: Bool[np.ndarray, "K S"]
    token_index: Int32[np.ndarray, "K S"]


def chunk_tokens(
    ids: Int[np.ndarray, " n"],
    chunk_length: int,
    *,
    bos: Special,
    eos: Special,
    pad: int,
    chunk_bos: Special | None = None,
    chunk_eos: Special | None = None,
) -> Chunks:
    """Content of n tokens in K = max(1, ceil(n / (S - 2))) chunks `[BOS] content [EOS]`.

    A document that fits one chunk is framed as the backbone alone reads it, with PAD behind EOS. In longer ones the
    last chunk is filled with PAD between content and EOS. Source: docs/method.md, "Chunk".

    Args:
      bos, eos: what the tokenizer puts before and after a text; of several tokens, the outer ones are the boundaries.
      chunk_bos, chunk_eos: what begins and ends each of several chunks; None: `bos`, `eos`.

    Raises:
      ValueError: a chunk_length that leaves no room between BOS and EOS; several chunks with nothing at either end.
    """
    starts: Sequence[int] = (0,)
    if len(ids) > _room(chunk_length, bos, eos):
        starts = range(0, len(ids), _room(chunk_length, *_ends(bos, eos, chunk_bos, chunk_eos)))
    return chunk_at(ids, starts, chunk_length, bos=bos, eos=eos, pad=pad, chunk_bos=chunk_bos, chunk_eos=chunk_eos)


def chunk_sentences(
    ids: Int[np.ndarray, " n"],
    sentence_ends: Sequence[int],
    chunk_length: int,
    *,
    bos: Special,
    eos: Special,
    pad: int,
    chunk_bos: Special | None = None,
    chunk_eos: Special | None = None,
) -> Chunks:
    """Like `chunk_tokens`, but never splits inside a sentence unless it alone exceeds S - 2 tokens.

    Among all such cuts it makes as few chunks as possible. A sentence that alone exceeds S - 2 may be split
    anywhere. Source: docs/method.md, "Chunk" (the paper).

    Args:
      sentence_ends: ascending; sentence i is ids[ends[i - 1]:ends[i]]. What follows the last end is one more.
    """
    starts = [0]
    if len(ids) > _room(chunk_length, bos, eos):
        room = _room(chunk_length, *_ends(bos, eos, chunk_bos, chunk_eos))
        starts = sentence_starts(len(ids), sentence_ends, room)
    return chunk_at(ids, starts, chunk_length, bos=bos, eos=eos, pad=pad, chunk_bos=chunk_bos, chunk_eos=chunk_eos)


def sentence_starts(count: int, sentence_ends: Sequence[int], room: int) -> list[int]:
    """Where each chunk starts: every chunk reaches to the last permitted cut within `room` tokens.

    Reaching as far as possible is optimal: the permitted cuts are given, and what remains after a later cut
    never needs more chunks than what remains after an earlier one.
    """
    ends = [end for end in sorted({*sentence_ends, count}) if 0 < end <= count]
    starts, begin, first = [0], 0, 0  # ends[first] is the end of the sentence that `begin` lies in
    sentence_begins = [0, *ends[:-1]]
    while count - begin > room:
        reach = begin + room
        last = first
        while ends[last] <= reach:
            last += 1
        # `last` is the sentence that does not fit whole; an over-long one may be cut at `reach` itself.
        begin = reach if ends[last] - sentence_begins[last] > room else sentence_begins[last]
        first = last
        starts.append(begin)
    return starts


def chunk_at(
    ids: Int[np.ndarray, " n"],
    starts: Sequence[int],
    chunk_length: int,
    *,
    bos: Special,
    eos: Special,
    pad: int,
    chunk_bos: Special | None = None,
    chunk_eos: Special | None = None,
) -> Chunks:
    """Chunks that begin at `starts` (ascending from 0) of the content and end where the next begins."""
    alone = len(starts) == 1
    before, after = (_tokens(bos), _tokens(eos)) if alone else _ends(bos, eos, chunk_bos, chunk_eos)
    begin = np.asarray(starts, np.int64)[:, None]
    end = np.append(begin[1:, 0], len(ids))[:, None]
    index = begin + np.arange(_room(chunk_length, before, after))
    content = index < end
    inner = np.full(index.shape, pad, np.int32)
    inner[content] = np.asarray(ids, np.int32)[index[content]]
    rows = len(begin)
    edges = lambda values, dtype: np.tile(np.asarray(values, dtype), (rows, 1))
    filled = lambda value, middle, dtype: np.concatenate(
        [edges([value] * len(before), dtype), middle, edges([value] * len(after), dtype)], axis=1
    )
    chunks = Chunks(
        np.concatenate([edges(before, np.int32), inner, edges(after, np.int32)], axis=1),
        filled(True, content, bool),
        filled(-1, np.where(content, index, -1).astype(np.int32), np.int32),
    )
    if not alone:
        return chunks
    order = np.argsort(~chunks.token_mask, axis=1, kind="stable")  # PAD last
    return Chunks(*(np.take_along_axis(x, order, axis=1) for x in chunks))


def bucket(length: int, buckets: Sequence[int] = (), limit: int | None = None) -> int:
    """The smallest of `buckets` that holds `length`; where there is none the next power of two, or `limit` if less.

    Args:
      limit: more than any length can be; without it a table of 33 rows would be asked for 64.
    """
    fitting = [size for size in buckets if size >= length]
    if fitting:
        return min(fitting)
    power = 1 << max(length - 1, 0).bit_length()
    return power if limit is None or limit < length else min(power, limit)


def half_step(length: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that holds `length`: less than a third of it is padding."""
    power = bucket(length)
    return power * 3 // 4 if power >= 4 and length <= power * 3 // 4 else power


def quarter_step(length: int) -> int:
    """The smallest of 1 to 8, 10, 12, 14, 16, 20, ... that holds `length`: less than a fifth of it is padding."""
    step = max(bucket(length) // 8, 1)
    return -(-length // step) * step


def most_chunks(count: int, chunk_length: int, *, sentences: bool = False) -> int:
    """An upper bound on the chunks that `count` tokens of content can make, with two special tokens in each.

    fixed: ceil(n / (S - 2)). sentences: 2 ceil(n / (S - 1)), for two neighbours hold more than S - 2 tokens
    together, or they would be one.
    """
    room = _room(chunk_length, 0, 0)
    return max(1, 2 * -(-count // (room + 1)) if sentences else -(-count // room))


def _tokens(special: Special) -> tuple[int, ...]:
    return tuple(special) if isinstance(special, Sequence) else (special,)


def _ends(
    bos: Special, eos: Special, chunk_bos: Special | None, chunk_eos: Special | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What begins and ends each of several chunks: alignment exchanges the states of the outer tokens."""
    before = _tokens(bos if chunk_bos is None else chunk_bos)
    after = _tokens(eos if chunk_eos is None else chunk_eos)
    if not before or not after:
        raise ValueError("several chunks need a token without content at both ends: give chunk_bos and chunk_eos")
    return before, after


def _room(chunk_length: int, bos: Special, eos: Special) -> int:
    """Tokens of content in a chunk of that length."""
    special = len(_tokens(bos)) + len(_tokens(eos))
    if chunk_length <= special:
        raise ValueError(f"chunk_length={chunk_length}: expected at least {special + 1} (BOS, one token, EOS)")
    return chunk_length - special
