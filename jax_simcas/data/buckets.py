"""Lengths to pad batches to, so that few programs are compiled and little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jax_simcas.common.errors import UserError
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.features import featurize
from jax_simcas.data.rows import Row, RowSource
from jax_simcas.data.tokenizer import LightTokenizer, Tokenizer
from jax_simcas.method.chunk import bucket

Buckets = tuple[int, ...]

MOST_SHAPES = 4  # combinations of both buckets; each is compiled for every program
WORTH = 0.05  # another shape must save this share of the tokens
TARGET_STEP = 16  # buckets of targets are multiples of it, for rows that were not measured


class Lengths(NamedTuple):
    """Of some rows, each [R]: chunks; tokens of the document, read and cut; tokens of the target, read and cut."""

    chunks: Int[np.ndarray, " R"]
    tokens: Int[np.ndarray, " R"]
    cut_tokens: Int[np.ndarray, " R"]
    target: Int[np.ndarray, " R"]
    cut_target: Int[np.ndarray, " R"]

    def joined(self, other: Lengths) -> Lengths:
        """Those of these rows, and of others behind them."""
        return Lengths(*map(np.concatenate, zip(self, other, strict=True)))


def measure(source: RowSource | Sequence[Row], tokenizer: Tokenizer, config: PipelineConfig, most: int) -> Lengths:
    """The lengths of at most `most` rows, evenly spread over the source.

    Raises:
      UserError: a source without rows; a row that cannot be used.
    """
    if not len(source):
        raise UserError(f"{source!r}: no rows in it")
    light = LightTokenizer.of(tokenizer)
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int)

    def lengths(number: int) -> tuple[int, ...]:
        row = featurize(source[number], light, config)
        ids, target = row["input_ids"], row["target_ids"]
        return len(ids), int(row["token_mask"].sum()), row["cut_tokens"], len(target), row["cut_target"]

    return Lengths(*np.array([lengths(int(number)) for number in rows], np.int64).reshape(-1, 5).T)


def best_buckets(sizes: Int[np.ndarray, " N"], most: int) -> list[Buckets]:
    """With 1, 2, ... up to `most` buckets: those for which sizes, each raised to its bucket, have the smallest sum.

    Every bucket is one of the sizes, and the last one the largest. Fewer lists where fewer sizes differ.
    """
    values, counts = np.unique(sizes, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # how many sizes lie below each value
    # cost[j]: of the first j values, with the buckets used so far; ends[k][j]: where the bucket before the last ends.
    cost = np.concatenate([[0.0], np.full(len(values), np.inf)])
    ends, found = [], []
    for _ in range(min(most, len(values))):
        # Values i to j - 1 share the bucket values[j - 1].
        ways = np.full((len(values) + 1, len(values) + 1), np.inf)
        for j in range(1, len(values) + 1):
            ways[j, :j] = cost[:j] + values[j - 1] * (before[j] - before[:j])
        ends.append(ways.argmin(axis=1))
        cost = ways.min(axis=1)
        place, buckets = len(values), []
        for end in reversed(ends):
            buckets.append(int(values[place - 1]))
            place = int(end[place])
        found.append(tuple(reversed(buckets)))
    return found


def longest_of_batches(
    lengths: Lengths, config: PipelineConfig
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """(chunks, target tokens) of the longest row of each batch, in a random order of rows; rows of each batch."""
    order = np.random.default_rng(0).permutation(len(lengths.chunks))
    if config.bucket_batches:
        order = order[np.argsort(lengths.chunks[order], kind="stable")]
    starts = np.arange(0, len(order), config.batch_size)
    chunks, target = (np.maximum.reduceat(sizes[order], starts) for sizes in (lengths.chunks, lengths.target))
    return chunks, target, np.diff(np.append(starts, len(order)))


def choose_buckets(
    lengths: Lengths, config: PipelineConfig, chunks: Buckets = (), target: Buckets = ()
) -> tuple[Buckets, Buckets, float]:
    """Buckets of chunks and of target tokens for rows of such lengths, and the share of padding in their batches.

    At most `MOST_SHAPES` combinations, and no more than pay: the fewest whose batches have within `WORTH` as many
    tokens as the best.

    Args:
      chunks, target: those that are given; empty: to be found.
    """
    most_chunks, targets, rows = longest_of_batches(lengths, config)
    rounded = np.minimum(-(-targets // TARGET_STEP) * TARGET_STEP, config.max_target_len)

    def tokens(ways: tuple[Buckets, Buckets]) -> int:
        padded = [bucket(int(n), ways[0], config.most_chunks) * config.chunk_length for n in most_chunks]
        beside = [bucket(int(n), ways[1], config.max_target_len) for n in targets]
        return int(rows @ (np.array(padded) + np.array(beside)))

    pairs = [
        (one, other)
        for one in ([chunks] if chunks else best_buckets(most_chunks, MOST_SHAPES))
        for other in ([target] if target else best_buckets(rounded, MOST_SHAPES))
    ]
    shapes = lambda pair: len(pair[0]) * len(pair[1])
    pairs = [pair for pair in pairs if shapes(pair) <= MOST_SHAPES] or pairs[:1]
    padded = {pair: tokens(pair) for pair in pairs}
    enough = min(padded.values()) * (1 + WORTH)
    best = min((pair for pair in pairs if padded[pair] <= enough), key=lambda pair: (shapes(pair), padded[pair]))
    real = int(lengths.tokens.sum() + lengths.target.sum())
    return *best, 1 - real / padded[best]
