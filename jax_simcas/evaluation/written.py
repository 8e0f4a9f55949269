"""A summary's tokens, and the places of the document that the decoder attended to as it wrote each. Host side."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers.decoders import DecodeStream

from jax_simcas.data.tokenizer import TextTokenizer, Tokenizer, frame_of
from jax_simcas.method.attention import Attended

PLACES = 5  # of each token


class WrittenTokens(NamedTuple):
    """The n tokens of a summary in order, and for each the P kept places with the most of its attention, most first.

    Attention is averaged over layers and heads; with what is not listed the shares of a token sum to 1.
    """

    span: Int[np.ndarray, "n 2"]  # characters [start, end) of the summary
    chunk: Int[np.ndarray, "n P"]  # of each place
    place: Int[np.ndarray, "n P 2"]  # its characters [start, end) of the document; -1: a query's, or a chunk's end
    weight: Float[np.ndarray, "n P"]  # share of the attention; 0 where fewer places were kept
    document_state: Float[np.ndarray, " n"]  # share of the document state g


def written_tokens(
    tokenizer: TextTokenizer,
    sequence: Int[np.ndarray, " T"],
    summary: str,
    attended: Attended,
    offsets: Int[np.ndarray, "K S 2"],
) -> WrittenTokens:
    """The tokens of a summary that have characters in it, with the places of each.

    Args:
      sequence: from the decoder start token on; `attended` has a row for each of its steps.
      summary: what the sequence decodes to, without special tokens and white space around it.
      offsets: characters [start, end) of every token of the document, -1 where it is not of the document.
    """
    spans = token_spans(tokenizer, sequence, summary)[1:]  # nothing was attended to for the start token
    shown = spans[:, 0] < spans[:, 1]
    candidate, weight, document_state = (np.asarray(x)[: len(spans)][shown] for x in attended)
    chunks, per_chunk = len(offsets), offsets.shape[1] - 1
    chunk = np.minimum(candidate // per_chunk, chunks - 1)  # beyond the end, where nothing is: its weight is 0
    return WrittenTokens(
        spans[shown], chunk, offsets[chunk, candidate % per_chunk + 1], weight.astype(np.float64), document_state
    )


def token_spans(tokenizer: TextTokenizer, sequence: Int[np.ndarray, " T"], text: str) -> Int[np.ndarray, "T 2"]:
    """Characters [start, end) of each token in `text`, the decoded sequence; start == end where it has none of its own.

    A character of several tokens (byte-level vocabularies) belongs to the last of them.
    """
    ends: list[int] = []
    shown = ""
    for count in range(1, len(sequence) + 1):
        # Decoding may take back what ended the text so far: a half character, a space before a full stop.
        longer = str(tokenizer.decode(sequence[:count], skip_special_tokens=True)).rstrip("\ufffd")
        if not longer.startswith(shown):
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shown, longer, strict=False)))
            ends = [min(end, same) for end in ends]
        ends.append(len(longer))
        shown = longer
    leading = len(shown) - len(shown.lstrip())
    bounds = np.maximum.accumulate(np.array([0, *ends]) - leading).clip(0, len(text))
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


def spelled_out(
    tokenizer: Tokenizer, ids: Int[np.ndarray, "K S"], mask: Bool[np.ndarray, "K S"]
) -> tuple[str, Int[np.ndarray, "K S 2"]]:
    """The text of chunks that came as token ids, a line for each chunk, and the characters of each token in it."""
    pieces: list[str] = []
    offsets, end = np.full((*ids.shape, 2), -1, np.int64), 0
    frame = frame_of(tokenizer)
    several = mask.any(axis=1).sum() > 1
    before = len(frame.chunk_prefix if several else frame.prefix)
    after = len(frame.chunk_suffix if several else frame.suffix)
    for k, chunk in enumerate(ids):
        stream = DecodeStream(skip_special_tokens=False)
        real = np.flatnonzero(mask[k])
        for s in real[before : len(real) - after]:
            piece = stream.step(tokenizer.backend_tokenizer, int(chunk[s])) or ""  # None within a character
            pieces.append(piece)
            offsets[k, s] = end, end + len(piece)
            end += len(piece)
        pieces.append("\n")
        end += 1
    return "".join(pieces), offsets
