"""Chunk: a document's tokens, cut into rows of equal length. Host side, numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32


class Chunks(NamedTuple):
    """K chunks of S tokens. `token_index` points into the content, -1 at BOS, EOS and PAD."""

    input_ids: Int32[np.ndarray, "K S"]
    token_mask: Bool[np.ndarray, "K S"]
    token_index: Int32[np.ndarray, "K S"]


def chunk_tokens(ids: Int[np.ndarray, " n"], chunk_length: int, *, bos: int, eos: int, pad: int) -> Chunks:
    """Content of n tokens in K = max(1, ceil(n / (S - 2))) chunks `[BOS] content [EOS]`.

    The last chunk is filled with PAD between content and EOS. Source: method.md "Chunk", step 2.

    Raises:
      ValueError: a chunk_length that leaves no room between BOS and EOS.
    """
    return chunk_at(ids, range(0, max(len(ids), 1), _room(chunk_length)), chunk_length, bos=bos, eos=eos, pad=pad)


def chunk_sentences(
    ids: Int[np.ndarray, " n"],
    sentence_ends: Sequence[int],
    chunk_length: int,
    *,
    bos: int,
    eos: int,
    pad: int,
) -> Chunks:
    """Like `chunk_tokens`, but never splits inside a sentence unless it alone exceeds S - 2 tokens.

    Among all such cuts it makes as few chunks as possible. A sentence that alone exceeds S - 2 may be split
    anywhere. Source: method.md "Chunk", step 3 (the paper).

    Args:
      sentence_ends: ascending; sentence i is ids[ends[i - 1]:ends[i]]. What follows the last end is one more.
    """
    starts = sentence_starts(len(ids), sentence_ends, _room(chunk_length))
    return chunk_at(ids, starts, chunk_length, bos=bos, eos=eos, pad=pad)


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
    ids: Int[np.ndarray, " n"], starts: Sequence[int], chunk_length: int, *, bos: int, eos: int, pad: int
) -> Chunks:
    """Chunks that begin at `starts` (ascending from 0) of the content and end where the next begins."""
    room = _room(chunk_length)
    begin = np.asarray(starts, np.int64)[:, None]
    end = np.append(begin[1:, 0], len(ids))[:, None]
    index = begin + np.arange(room)
    content = index < end
    edge = lambda value, dtype: np.full((len(begin), 1), value, dtype)
    inner = np.full(index.shape, pad, np.int32)
    inner[content] = np.asarray(ids, np.int32)[index[content]]
    return Chunks(
        np.concatenate([edge(bos, np.int32), inner, edge(eos, np.int32)], axis=1),
        np.concatenate([edge(True, bool), content, edge(True, bool)], axis=1),
        np.concatenate([edge(-1, np.int32), np.where(content, index, -1).astype(np.int32), edge(-1, np.int32)], axis=1),
    )


def pad_rows(x: np.ndarray, rows: int, fill: int | bool) -> np.ndarray:
    """`x` with rows of `fill` added up to `rows`."""
    if len(x) > rows:
        raise ValueError(f"{len(x)} rows do not fit into {rows}")
    return np.concatenate([x, np.full((rows - len(x), *x.shape[1:]), fill, x.dtype)])


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


def most_chunks(count: int, chunk_length: int, *, sentences: bool = False) -> int:
    """An upper bound on the chunks that `count` tokens of content can make.

    fixed: ceil(n / (S - 2)). sentences: 2 ceil(n / (S - 1)), for two neighbours hold more than S - 2 tokens
    together, or they would be one.
    """
    room = _room(chunk_length)
    return max(1, 2 * -(-count // (room + 1)) if sentences else -(-count // room))


def _room(chunk_length: int) -> int:
    if chunk_length < 3:
        raise ValueError(f"chunk_length={chunk_length}: expected at least 3 (BOS, one token, EOS)")
    return chunk_length - 2
