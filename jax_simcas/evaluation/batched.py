"""Documents in batches, the longest first; each gets what it would get alone. From features to token ids, on the host.

Generation reads all weights for every token, once for a whole batch. So a batch is one program of `generate_batch`; its
documents are encoded side by side on an accelerator, and one after another on a CPU, whose caches hold no more. While a
batch is generated, which keeps no CPU busy, the next one is encoded. The first batches need the most memory; few sizes
(`half_step`, and `quarter_step` of many documents) mean few programs to compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_simcas.data import batches
from jax_simcas.data.features import Features
from jax_simcas.data.tokenizer import special_id
from jax_simcas.evaluation.predict import (
    Predictor,
    attention_of,
    capacity_for,
    compact_batch,
    generate_batch,
    select_batch,
    source_tokens,
)
from jax_simcas.evaluation.written import PLACES
from jax_simcas.method.attention import Attended
from jax_simcas.method.beam_search import Generation
from jax_simcas.method.chunk import bucket, half_step, quarter_step
from jax_simcas.method.document import Document
from jax_simcas.method.select import Compacted, Selection

MOST_DOCUMENTS = 8  # of a batch: more gain little on a CPU
MOST_TOKENS = 1 << 16  # of a batch, padding included; a longer document is a batch of its own
FEW_DOCUMENTS = 16  # up to here compiling for finer steps costs more than the padding that it saves


class Predicted(NamedTuple):
    """What came out for one document of K chunks."""

    sequence: Int[np.ndarray, " T"]  # from the decoder start token on, without PAD
    score: float
    kept: Bool[np.ndarray, "K N"]
    keep_prob: Float[np.ndarray, "K N"]
    candidates: int
    overflow: int
    attended: Attended | None  # [T - 1, P], if asked for
    select_seconds: float  # wall time: its own, or its share of what documents are encoded with
    generate_seconds: float  # its share of the batch's, in which the next batch is encoded


def predict_in_batches(
    predictor: Predictor,
    documents: Sequence[Features],
    key: jax.Array,
    *,
    attention: bool = False,
    batch_size: int | None = None,
    on_note: Callable[[str], None],
) -> Iterator[tuple[int, Predicted]]:
    """(number, what came out) of every document, batch by batch.

    Args:
      key: for policies that draw: the same for each document, so that its place among others means nothing.
      attention: also find where the decoder looked.
      batch_size: documents at a time; None: up to MOST_DOCUMENTS, within MOST_TOKENS.
      on_note: told once if the device's memory holds only smaller batches, which then follow.
    """
    lengths = [int(features["token_mask"].sum()) for features in documents]
    step = half_step if len(documents) <= FEW_DOCUMENTS else quarter_step
    waiting = sorted(range(len(documents)), key=lambda number: -lengths[number])
    most = batch_size
    running: Running | None = None
    while waiting or running:
        numbers: list[int] = []
        started = None
        try:
            if waiting:
                size = batch_of(documents[waiting[0]]["input_ids"].size, batch_size)
                size = min(size, most or size)
                numbers, waiting = waiting[:size], waiting[size:]
                started = start_batch(predictor, documents, numbers, key, size, attention, step)
            if running:
                yield from running.results()
            running = started
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            failed = [*(running.numbers if running else ()), *numbers]
            if len(failed) == 1 or most == 1 or not is_out_of_memory(error):
                raise
            if most is None or most == batch_size:
                on_note(f"{size} documents at a time do not fit into memory: smaller batches from here on")
            most = max(size // 2, 1)
            waiting, running = failed + waiting, None


def batch_of(tokens: int, batch_size: int | None = None) -> int:
    """How many documents go together, none longer than `tokens`, padding included."""
    if batch_size is not None:
        return batch_size
    fitting = max(1, min(MOST_DOCUMENTS, MOST_TOKENS // max(tokens, 1)))
    return 1 << (fitting.bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the host's memory was too small."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def start_batch(
    predictor: Predictor,
    documents: Sequence[Features],
    numbers: list[int],
    key: jax.Array,
    size: int,
    attention: bool,
    step: Callable[[int], int],
) -> Running:
    """Encodes the documents of a batch that was meant for `size` of them, and lets their generation begin.

    Args:
      step: the chunks, and the states, that a number of them is padded to.
    """
    model, params = predictor.model, predictor.params
    together = 1 if jax.default_backend() == "cpu" else len(numbers)
    groups = [numbers[start : start + together] for start in range(0, len(numbers), together)]
    parts = [select_together(predictor, [documents[number] for number in group], key, step) for group in groups]
    most = max(int(part.selection.action.sum(axis=(1, 2)).max()) for part in parts)
    capacity = capacity_for(most, model.capacity, step)
    started, rows = time.monotonic(), min(size, bucket(len(numbers)))  # few sizes are compiled
    joined = joined_rows([part.compacted(capacity) for part in parts], size=rows)
    sources = joined_tokens([source_tokens(part.document, predictor.generate) for part in parts], size=rows)
    generation = generate_batch(params, joined, sources, model=model, config=predictor.generate)
    attended = attention_of(params, joined, generation, model=model, count=PLACES) if attention else None
    chosen = [
        (part.selection, row, len(documents[number]["input_ids"]), part.seconds)
        for group, part in zip(groups, parts, strict=True)
        for row, number in enumerate(group)
    ]
    return Running(numbers, started, generation, attended, chosen)


class Running(NamedTuple):
    """A batch whose summaries are being generated, while the next one is encoded."""

    numbers: list[int]  # of its documents
    started: float
    generation: Generation
    attended: Attended | None
    chosen: list[tuple[Selection, int, int, float]]  # of each: selection of several, its row there, chunks, seconds

    def results(self) -> list[tuple[int, Predicted]]:
        """Waits for them."""
        generation, every = jax.device_get((self.generation, self.attended))
        share = (time.monotonic() - self.started) / len(self.numbers)
        out = []
        for b, (selection, row, chunks, seconds) in enumerate(self.chosen):
            length = int(generation.length[b])
            predicted = Predicted(
                sequence=generation.sequence[b, :length],
                score=float(generation.score[b]),
                kept=np.asarray(selection.action[row, :chunks]),
                keep_prob=np.asarray(selection.keep_prob[row, :chunks]),
                candidates=int(selection.candidate_mask[row].sum()),
                overflow=0 if selection.overflow is None else int(selection.overflow[row]),
                attended=None if every is None else jax.tree.map(lambda x, b=b, n=length: x[b, : n - 1], every),
                select_seconds=seconds,
                generate_seconds=share,
            )
            out.append((self.numbers[b], predicted))
        return out


class Selected(NamedTuple):
    """Documents that were encoded together; the selection is on the host."""

    document: Document
    hidden: jax.Array  # [B, K, S, D]
    selection: Selection
    seconds: float  # per document

    def compacted(self, capacity: int) -> Compacted:
        return compact_batch(self.hidden, self.document.chunk_mask, self.selection, capacity=capacity)


def select_together(
    predictor: Predictor, documents: Sequence[Features], key: jax.Array, step: Callable[[int], int]
) -> Selected:
    """Encodes and selects, with all documents padded to the chunks of the longest."""
    started, model, size = time.monotonic(), predictor.model, bucket(len(documents))
    chunks = step(max(len(features["input_ids"]) for features in documents))
    reading = replace(predictor.reading, chunk_buckets=(min(chunks, predictor.reading.most_chunks),))
    batch = batches.pad_batch(documents, reading, special_id(predictor.tokenizer, "pad"), size)
    document = jax.tree.map(jnp.asarray, batches.as_example(batch).document)
    keys, budget = jnp.broadcast_to(key, (size,)), jnp.full(size, model.budget or 0, jnp.int32)
    hidden, selection = select_batch(predictor.params, document, keys, budget, model=model, policy=model.policy)
    selection = jax.device_get(selection)
    return Selected(document, hidden, selection, (time.monotonic() - started) / len(documents))


@partial(jax.jit, static_argnames=("size",))
def joined_rows(parts: Sequence[Compacted], *, size: int) -> Compacted:
    """One batch of `size` documents: the parts in equally many rows, and the last document again where they end.

    Rows that are added have index -1: what stands for none in a part depends on its number of candidates.
    """
    rows = max(part.states.shape[1] for part in parts)

    def padded(x: jax.Array, width: int, fill: int = 0) -> jax.Array:
        widths = ((0, 0), (0, width - x.shape[1]), *((0, 0),) * (x.ndim - 2))
        return jnp.pad(x, widths, constant_values=fill)

    even = [
        Compacted(padded(p.states, rows), padded(p.mask, rows), padded(p.index, rows - 1, -1), p.overflow)
        for p in parts
    ]
    return jax.tree.map(lambda *x: repeated(jnp.concatenate(x), size), *even)


@partial(jax.jit, static_argnames=("size",))
def joined_tokens(parts: Sequence[jax.Array | None], *, size: int) -> jax.Array | None:
    """The same of `source_tokens`."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    width = max(part.shape[1] for part in known)
    even = [jnp.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1) for part in known]
    return repeated(jnp.concatenate(even), size)


def repeated(x: jax.Array, size: int) -> jax.Array:
    """The first `size` rows; where there are fewer, the last one again."""
    return x[jnp.minimum(jnp.arange(size), len(x) - 1)]
