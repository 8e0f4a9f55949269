"""Chunking: the layout of docs/method.md, nothing lost, and as few chunks as sentences allow (against brute force)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_simcas.method.chunk import bucket, chunk_sentences, chunk_tokens, most_chunks

SPECIAL = {"bos": 0, "eos": 2, "pad": 1}


def content_of(chunks):
    """The content tokens, chunk by chunk, by the index and by the mask."""
    content = chunks.token_index >= 0
    return chunks.input_ids[content], chunks.token_index[content]


def check_layout(chunks, ids, length):
    assert chunks.input_ids.shape == chunks.token_mask.shape == chunks.token_index.shape
    assert chunks.input_ids.shape[1] == length
    assert (chunks.input_ids[~chunks.token_mask] == 1).all()
    if len(chunks.input_ids) == 1:  # as the backbone alone reads it: PAD lies behind EOS
        np.testing.assert_array_equal(chunks.input_ids[0][chunks.token_mask[0]], [0, *ids, 2])
        assert chunks.token_mask[0, : len(ids) + 2].all()
    else:
        assert (chunks.input_ids[:, 0] == 0).all() and (chunks.input_ids[:, -1] == 2).all()
        assert chunks.token_mask[:, 0].all() and chunks.token_mask[:, -1].all()
        assert (chunks.token_index[:, [0, -1]] == -1).all()
        # PAD lies between content and EOS: content is a prefix of the inner positions.
        inner = chunks.token_mask[:, 1:-1]
        assert (inner[:, :-1] >= inner[:, 1:]).all()
    got, index = content_of(chunks)
    np.testing.assert_array_equal(got, ids)
    np.testing.assert_array_equal(index, np.arange(len(ids)))


@given(st.integers(0, 60), st.integers(3, 20))
def test_fixed(n, length):
    ids = np.arange(10, 10 + n)
    chunks = chunk_tokens(ids, length, **SPECIAL)
    check_layout(chunks, ids, length)
    assert len(chunks.input_ids) == max(1, -(-n // (length - 2))) == most_chunks(n, length)
    assert chunks.token_mask[:-1].all()  # only the last chunk has PAD


def test_by_hand():
    chunks = chunk_tokens(np.array([11, 12, 13, 14]), 5, **SPECIAL)
    np.testing.assert_array_equal(chunks.input_ids, [[0, 11, 12, 13, 2], [0, 14, 1, 1, 2]])
    np.testing.assert_array_equal(chunks.token_index, [[-1, 0, 1, 2, -1], [-1, 3, -1, -1, -1]])
    np.testing.assert_array_equal(chunks.token_mask, [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]])
    # Sentences of 2 and 2 tokens do not share three places.
    chunks = chunk_sentences(np.array([11, 12, 13, 14]), [2, 4], 5, **SPECIAL)
    np.testing.assert_array_equal(chunks.input_ids, [[0, 11, 12, 1, 2], [0, 13, 14, 1, 2]])
    # An over-long sentence begins in the room that is left and may be cut anywhere: two chunks, not three.
    chunks = chunk_sentences(np.array([11, 12, 13, 14, 15, 16]), [1, 6], 5, **SPECIAL)
    np.testing.assert_array_equal(chunks.input_ids, [[0, 11, 12, 13, 2], [0, 14, 15, 16, 2]])


def test_nothing():
    for chunks in (
        chunk_tokens(np.zeros(0, int), 6, **SPECIAL),
        chunk_sentences(np.zeros(0, int), [], 6, **SPECIAL),
    ):
        np.testing.assert_array_equal(chunks.input_ids, [[0, 2, 1, 1, 1, 1]])
        np.testing.assert_array_equal(chunks.token_mask, [[1, 1, 0, 0, 0, 0]])


def test_an_only_chunk_of_mbart_25_has_nothing_before_its_content():
    """`... </s> en_XX`: what fits with this frame is one chunk; each of several begins with a token of its own."""
    special = {"bos": (), "eos": (2, 9), "pad": 1, "chunk_bos": 0}
    for chunk in (chunk_tokens, lambda ids, length, **special: chunk_sentences(ids, [1, 3], length, **special)):
        np.testing.assert_array_equal(chunk(np.array([5, 6]), 6, **special).input_ids, [[5, 6, 2, 9, 1, 1]])
        np.testing.assert_array_equal(chunk(np.array([5, 6, 7, 8]), 6, **special).input_ids, [[5, 6, 7, 8, 2, 9]])
        several = chunk(np.array([5, 6, 7, 8, 8]), 6, **special)
        np.testing.assert_array_equal(several.input_ids, [[0, 5, 6, 7, 2, 9], [0, 8, 8, 1, 2, 9]])
    with pytest.raises(ValueError, match="chunk_bos and chunk_eos"):
        chunk_tokens(np.arange(9), 6, **(special | {"chunk_bos": None}))


def test_chunks_of_mbart_50_begin_with_the_language():
    """`en_XX ... </s>`."""
    special = {"bos": (9,), "eos": (2,), "pad": 1}
    np.testing.assert_array_equal(chunk_tokens(np.array([5, 6]), 5, **special).input_ids, [[9, 5, 6, 2, 1]])
    several = chunk_tokens(np.array([5, 6, 7, 8]), 5, **special)
    np.testing.assert_array_equal(several.input_ids, [[9, 5, 6, 7, 2], [9, 8, 1, 1, 2]])


def permitted(lengths, room):
    """Where a chunk may end: at sentence ends, and anywhere inside a sentence that exceeds a chunk."""
    cuts, start = {0}, 0
    for length in lengths:
        cuts |= {start + length} if length <= room else set(range(start, start + length + 1))
        start += length
    return sorted(cuts), start


def fewest(lengths, room):
    """Least number of chunks over all sequences of permitted cuts."""
    cuts, total = permitted(lengths, room)
    best = {0: 0}
    for cut in cuts[1:]:
        best[cut] = 1 + min(best[before] for before in cuts if cut - room <= before < cut)
    return max(best[total], 1)


@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 8))
def test_sentences_make_as_few_chunks_as_possible(lengths, room):
    ids = np.arange(10, 10 + sum(lengths))
    chunks = chunk_sentences(ids, np.cumsum(lengths).tolist(), room + 2, **SPECIAL)
    check_layout(chunks, ids, room + 2)
    ends = np.cumsum((chunks.token_index >= 0).sum(axis=1)).tolist()
    assert set(ends) <= set(permitted(lengths, room)[0])
    assert len(ends) == fewest(lengths, room)
    assert len(ends) <= most_chunks(len(ids), room + 2, sentences=True)


@given(st.integers(0, 40), st.integers(3, 9))
def test_sentences_of_one_token_are_fixed_chunks(n, length):
    """With a cut permitted everywhere, or nowhere but in one over-long sentence, it is the fixed chunking."""
    ids = np.arange(n)
    fixed = chunk_tokens(ids, length, **SPECIAL)
    for ends in (list(range(1, n + 1)), [n], []):
        for a, b in zip(fixed, chunk_sentences(ids, ends, length, **SPECIAL), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_room():
    with pytest.raises(ValueError, match="chunk_length=2"):
        chunk_tokens(np.arange(3), 2, **SPECIAL)


@given(st.integers(0, 5_000), st.lists(st.integers(1, 5_000), max_size=4))
def test_bucket(length, buckets):
    got = bucket(length, buckets)
    assert got >= length
    if any(size >= length for size in buckets):
        assert got in buckets and all(size >= got or size < length for size in buckets)
    else:
        assert got.bit_count() == 1 and (got == 1 or got < 2 * length)
    limit = length + 3
    assert length <= bucket(length, buckets, limit) <= got


def test_bucket_stops_at_the_limit():
    assert [bucket(n, (), 33) for n in (1, 3, 32, 33)] == [1, 4, 32, 33]
    assert bucket(34, (), 33) == 64  # a length over the limit is still held
    assert bucket(9, (8, 24), 33) == 24
