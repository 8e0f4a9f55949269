"""Buckets that fit rows: little padding, few programs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.buckets import MOST_SHAPES, Lengths, best_buckets, choose_buckets, measure
from jax_simcas.data.rows import ListSource, Row
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.method.chunk import bucket

CONFIG = PipelineConfig(chunk_length=8, max_input_len=402, max_target_len=200)


def lengths_of(chunks, target):
    chunks, target = np.array(chunks), np.array(target)
    return Lengths(chunks, 8 * chunks, 0 * chunks, target, 0 * target)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=15), st.integers(1, 4))
def test_no_other_buckets_of_as_many_lengths_pad_less(sizes, most):
    found = best_buckets(np.array(sizes), most)
    total = lambda buckets: sum(bucket(size, buckets) for size in sizes)
    assert len(found) == min(most, len(set(sizes)))
    for count, buckets in enumerate(found, 1):
        assert len(buckets) == count and set(buckets) <= set(sizes) and buckets[-1] == max(sizes)
        others = itertools.combinations(sorted(set(sizes)), count)
        assert total(buckets) == min(total(other) for other in others if other[-1] == max(sizes))


def test_padding_is_small_with_at_most_four_shapes():
    rng = np.random.default_rng(0)
    rows = lengths_of(rng.integers(1, 50, 200), rng.integers(10, 180, 200))
    chunks, target, padding = choose_buckets(rows, CONFIG)
    assert 1 < len(chunks) * len(target) <= MOST_SHAPES
    assert max(chunks) == rows.chunks.max() and max(target) >= rows.target.max()
    padded = sum(
        8 * bucket(int(k), chunks) + bucket(int(t), target) for k, t in zip(rows.chunks, rows.target, strict=True)
    )
    assert padding == pytest.approx(1 - (rows.tokens.sum() + rows.target.sum()) / padded)
    assert padding < choose_buckets(rows, CONFIG, chunks=(50,), target=(200,))[2] - 0.1


def test_rows_of_one_length_are_compiled_once():
    chunks, target, padding = choose_buckets(lengths_of([5, 5, 5], [16, 15, 16]), CONFIG)
    assert chunks == (5,) and target == (16,) and padding < 0.01


def test_given_buckets_are_kept_and_only_the_others_found():
    rows = lengths_of([1, 2, 9, 9], [10, 20, 30, 199])
    assert choose_buckets(rows, CONFIG, chunks=(4, 16))[0] == (4, 16)
    assert choose_buckets(rows, CONFIG, target=(200,))[1] == (200,)
    many = tuple(range(1, 10))
    assert len(choose_buckets(rows, CONFIG, chunks=many)[1]) == 1


def test_batches_are_as_long_as_their_longest_row():
    rows = lengths_of([1, 10] * 20, [16] * 40)
    batched = PipelineConfig(chunk_length=8, max_input_len=402, max_target_len=200, batch_size=20)
    assert choose_buckets(rows, batched)[0] == (10,)  # every batch has a long one
    sorted_first = PipelineConfig(
        chunk_length=8, max_input_len=402, max_target_len=200, batch_size=20, bucket_batches=2
    )
    assert choose_buckets(rows, sorted_first)[0] == (1, 10)


def test_lengths_are_those_of_the_rows_and_of_what_is_cut(tmp_path):
    word_level(("a", "b"), tmp_path / "words")
    tokenizer = load_tokenizer(tmp_path / "words")
    rows = ListSource(Row(str(i), "a " * count, "b " * count) for i, count in enumerate((3, 13, 500)))
    found = measure(rows, tokenizer, CONFIG, 10)
    assert found.chunks.tolist() == [1, 3, 67] and found.cut_tokens.tolist() == [0, 0, 100]
    assert found.tokens.tolist() == [5, 19, 534]
    assert found.target.tolist() == [6, 16, 200] and found.cut_target[2] == 303
    assert measure(rows, tokenizer, CONFIG, 2).chunks.tolist() == [1, 67]  # evenly spread
