"""The synthetic task: generated documents whose answer lies far from their beginning, with known evidence.

A document asks about one topic in its first chunk. Among filler, its later chunks hold one fact for every slot of every
topic. The answer is the asked topic's values in the order of the slots; none of them is in the first chunk. The asked
topic's facts are the evidence; the other topics' facts look just the same. `wording` has other forms of this.

Configs call it "embedded" (`data.source`, `data.embedded`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jax_simcas.common import checks
from jax_simcas.common.errors import UserError
from jax_simcas.data import plain_english
from jax_simcas.data.plain_english import Story
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
    fillers: int = 100  # words that mean nothing; in English, things that sentences are about, 12 at most
    # facts do not name their slot: the answer is the asked topic's values in the document's order, so a model has to
    # know the order of the chunks
    ordered: bool = False
    # "codes": a fact is a word such as fact-0-1-5; "english": plain sentences that tell where people were born, live
    # and work; "table": a column (the topic) of a table, of which each chunk holds a row (a slot of each topic)
    wording: str = "codes"

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "seed", most=checks.LARGEST_SEED)
        sizes = ("rows", "held_out_rows", "chunks", "words_per_chunk", "topics", "slots", "values_per_slot", "fillers")
        checks.at_least(self, 1, *sizes)
        checks.one_of(self, "wording", WORDINGS)
        WORDINGS[self.wording].check(self)

    def topic(self, topic: int) -> str:
        return f"ask-{topic}"

    def fact(self, topic: int, slot: int, value: int) -> str:
        return f"fact-{topic}-{0 if self.ordered else slot}-{value}"

    def value(self, slot: int, value: int) -> str:
        return f"value-{0 if self.ordered else slot}-{value}"

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words of documents and answers."""
        return WORDINGS[self.wording].words(self)


def check_codes(config: SyntheticConfig) -> None:
    """Raises ValueError for facts that do not fit into a document."""
    facts, places = config.topics * config.slots, (config.chunks - 1) * config.words_per_chunk
    if facts > places:
        raise ValueError(
            f"topics={config.topics} x slots={config.slots} are {facts} facts, which do not fit into the {places} "
            "words after the first chunk: raise chunks or words_per_chunk"
        )


def words_of_codes(config: SyntheticConfig) -> tuple[str, ...]:
    topics, values = range(config.topics), range(config.values_per_slot)
    slots = range(1 if config.ordered else config.slots)
    return (
        *(f"word-{i}" for i in range(config.fillers)),
        *(config.topic(t) for t in topics),
        *(config.fact(t, s, v) for t in topics for s in slots for v in values),
        *(config.value(s, v) for s in slots for v in values),
    )


def draw_codes(c: SyntheticConfig, rng: np.random.Generator) -> Story:
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
    evidence = sorted(int(place) for (topic, _), place in zip(facts, places, strict=True) if topic == asked)
    answer = " ".join(c.value(slot, int(values[asked, slot])) for slot in range(c.slots))
    return Story(" ".join(words), answer, spans(words, evidence))


def spans(words: Sequence[str], places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where words stand in the text of all words: first character, and the one after the last."""
    starts = list(itertools.accumulate((len(word) + 1 for word in words), initial=0))
    return tuple((starts[place], starts[place] + len(words[place])) for place in places)


def check_english(config: SyntheticConfig) -> None:
    """Raises ValueError for more of something than there are words for, and for what does not fit into a document."""
    for name, most in plain_english.MOST.items():
        checks.at_least(config, 1, name, most=most)
    if config.ordered:
        raise ValueError("ordered=True: expected False, as sentences say which slot they fill (wording='english')")
    least = plain_english.shortest_chunk(config.slots)
    if config.words_per_chunk < least:
        raise ValueError(f"words_per_chunk={config.words_per_chunk}: expected at least {least}, to hold the question")
    facts, most = config.topics * config.slots, plain_english.facts_that_fit(config.chunks, config.words_per_chunk)
    if facts > most:
        raise ValueError(
            f"topics={config.topics} x slots={config.slots} are {facts} facts, of which {most} surely fit into the "
            "chunks after the first: raise chunks or words_per_chunk"
        )


def words_of_english(c: SyntheticConfig) -> tuple[str, ...]:
    return plain_english.vocabulary(c.slots, c.values_per_slot, c.fillers)


def draw_english(c: SyntheticConfig, rng: np.random.Generator) -> Story:
    shape = (c.chunks, c.words_per_chunk)
    return plain_english.story(rng, *shape, people=c.topics, kinds=c.slots, places=c.values_per_slot, things=c.fillers)


def check_table(config: SyntheticConfig) -> None:
    """Raises ValueError unless each chunk after the first is a row, and each of its words in a column of its own."""
    if config.ordered:
        raise ValueError("ordered=True: expected False, as words say in which row they stand (wording='table')")
    if config.slots != config.chunks - 1:
        raise ValueError(
            f"slots={config.slots}: expected {config.chunks - 1}, a row for each chunk after the first "
            "(wording='table')"
        )
    if config.topics != config.words_per_chunk:
        raise ValueError(
            f"topics={config.topics}: expected {config.words_per_chunk}, a column for each word of a chunk "
            "(wording='table')"
        )


def words_of_table(config: SyntheticConfig) -> tuple[str, ...]:
    return (
        *(f"word-{i}" for i in range(config.fillers)),
        *(config.topic(t) for t in range(config.topics)),
        *(config.value(s, v) for s in range(config.slots) for v in range(config.values_per_slot)),
    )


def draw_table(c: SyntheticConfig, rng: np.random.Generator) -> Story:
    """The first chunk asks for a column of a table, of which each other chunk is a row."""
    words = [f"word-{i}" for i in rng.integers(c.fillers, size=c.words_per_chunk)]
    asked = int(rng.integers(c.topics))
    words[rng.integers(c.words_per_chunk)] = c.topic(asked)
    cells = rng.integers(c.values_per_slot, size=(c.slots, c.topics))
    words += [c.value(row, int(value)) for row, values in enumerate(cells) for value in values]
    places = [row * c.words_per_chunk + asked for row in range(1, c.chunks)]
    return Story(" ".join(words), " ".join(words[place] for place in places), spans(words, places))


class Wording(NamedTuple):
    """How the task is put into words.

    check: raises ValueError for sizes that cannot be.
    words: all tokens of documents and answers.
    draw: one document.
    punctuated: tokens are words and punctuation marks; otherwise whatever stands between spaces.
    """

    check: Callable[[SyntheticConfig], None]
    words: Callable[[SyntheticConfig], tuple[str, ...]]
    draw: Callable[[SyntheticConfig, np.random.Generator], Story]
    punctuated: bool


WORDINGS = {
    "codes": Wording(check_codes, words_of_codes, draw_codes, punctuated=False),
    "english": Wording(check_english, words_of_english, draw_english, punctuated=True),
    "table": Wording(check_table, words_of_table, draw_table, punctuated=False),
}


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
        document, answer, evidence = WORDINGS[c.wording].draw(c, rng)
        return Row(id=f"{self._split}-{index}", document=document, summary=answer, evidence=evidence)

    def __repr__(self) -> str:
        # Evaluations record it, and experiments compare it with those of earlier versions: it has the names and the
        # fields of old, and later ones only where they say something.
        later = {"wording": "codes"}
        values = dataclasses.asdict(self._config)
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items() if later.get(name) != value)
        return f"EmbeddedSource({self._split!r}, EmbeddedConfig({shown}))"
