"""The synthetic task: generated documents whose answer lies far from their beginning, with known evidence.

A document asks about one topic in its first chunk. Among filler words, its later chunks hold one fact for every slot
of every topic. The answer is the asked topic's values in the order of the slots; none of these words is in the first
chunk. The asked topic's facts are the evidence; the other topics' facts look just the same.

Configs call it "embedded" (`data.source`, `data.embedded`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jax_simcas.common import checks
from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import Row

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the synthetic task.

    Raises:
      ValueError: a value out of range, or facts that do not fit into a document.
    """

    seed: int = 0  # of the documents
    rows: int = 100_000  # documents of the training split
    held_out_rows: int = 500  # documents of each other split
    chunks: int = 8  # per document
    words_per_chunk: int = 30  # should be the model's chunk_length - 2
    topics: int = 4  # a document asks about one of them
    slots: int = 3  # facts per topic
    values_per_slot: int = 8  # words that may fill a slot
    fillers: int = 100  # words that mean nothing
    # facts do not name their slot: the answer is the asked topic's values in the document's order, so a model has to
    # know the order of the chunks
    ordered: bool = False

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "seed", most=checks.LARGEST_SEED)
        sizes = ("rows", "held_out_rows", "chunks", "words_per_chunk", "topics", "slots", "values_per_slot", "fillers")
        checks.at_least(self, 1, *sizes)
        facts, places = self.topics * self.slots, (self.chunks - 1) * self.words_per_chunk
        if facts > places:
            raise ValueError(
                f"topics={self.topics} x slots={self.slots} are {facts} facts, which do not fit into the {places} "
                "words after the first chunk: raise chunks or words_per_chunk"
            )

    def topic(self, topic: int) -> str:
        return f"ask-{topic}"

    def fact(self, topic: int, slot: int, value: int) -> str:
        return f"fact-{topic}-{0 if self.ordered else slot}-{value}"

    def value(self, slot: int, value: int) -> str:
        return f"value-{0 if self.ordered else slot}-{value}"

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words of documents and answers."""
        topics, values = range(self.topics), range(self.values_per_slot)
        slots = range(1 if self.ordered else self.slots)
        return (
            *(f"word-{i}" for i in range(self.fillers)),
            *(self.topic(t) for t in topics),
            *(self.fact(t, s, v) for t in topics for s in slots for v in values),
            *(self.value(s, v) for s in slots for v in values),
        )


class SyntheticSource:
    """Row i of a split is a function of (seed, split, i) alone; cheap to make, so it has no fingerprint to cache by.

    Raises:
      UserError: a split other than train, validation and test.
    """

    fingerprint = None
    notes: tuple[str, ...] = ()

    def __init__(self, split: str, config: SyntheticConfig) -> None:
        if split not in SPLITS:
            raise UserError(f"split {split!r}: the synthetic task has {', '.join(SPLITS)}")
        self._split, self._config = split, config

    def __len__(self) -> int:
        return self._config.rows if self._split == "train" else self._config.held_out_rows

    def __getitem__(self, index: int) -> Row:
        c = self._config
        rng = np.random.default_rng([c.seed, SPLITS.index(self._split), int(index)])
        words = [f"word-{i}" for i in rng.integers(c.fillers, size=c.chunks * c.words_per_chunk)]
        asked = int(rng.integers(c.topics))
        values = rng.integers(c.values_per_slot, size=(c.topics, c.slots))
        facts = [(t, s) for t in range(c.topics) for s in range(c.slots)]
        places = c.words_per_chunk + rng.permutation((c.chunks - 1) * c.words_per_chunk)[: len(facts)]
        if c.ordered:
            places = np.sort(places.reshape(c.topics, c.slots), axis=1).ravel()
        words[rng.integers(c.words_per_chunk)] = c.topic(asked)
        for (topic, slot), place in zip(facts, places, strict=True):
            words[place] = c.fact(topic, slot, int(values[topic, slot]))
        starts = np.cumsum([0] + [len(word) + 1 for word in words])
        evidence = sorted(
            (int(starts[place]), int(starts[place]) + len(words[place]))
            for (topic, _), place in zip(facts, places, strict=True)
            if topic == asked
        )
        return Row(
            id=f"{self._split}-{index}",
            document=" ".join(words),
            summary=" ".join(c.value(slot, int(values[asked, slot])) for slot in range(c.slots)),
            evidence=tuple(evidence),
        )

    def __repr__(self) -> str:
        # Evaluations record it, and experiments compare it with those of earlier versions, so the old names stay.
        return f"EmbeddedSource({self._split!r}, {repr(self._config).replace('Synthetic', 'Embedded', 1)})"
