"""The synthetic task in plain English: a question about a person, and a few facts among sentences that do not matter.

The first chunk asks where somebody was born, lives and works; the answers are strewn over the later chunks, in one
sentence each. Every word is a token, and so are comma, period and question mark. Chunks are filled to the last token,
so none ends within a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

NAMES = ("Anna", "Omar", "Lena", "Hugo", "Mary", "Ivan", "Nora", "Paul", "Rosa", "Sven", "Tara", "Yuri")
PRONOUNS = ("she", "he")  # of the names, in turn


class Kind(NamedTuple):
    """A kind of fact: how it is asked for, the sentence that tells it, and the places that it may name."""

    question: str
    fact: str
    places: tuple[str, ...]


KINDS = (
    Kind(
        "where was {who} born",
        "{name} was born in {place}.",
        ("Peru", "Kenya", "Japan", "Chile", "Egypt", "India", "Norway", "Spain", "Ghana", "Nepal", "Cuba", "Poland"),
    ),
    Kind(
        "where does {who} live",
        "{name} lives in {place}.",
        ("Oslo", "Cairo", "Lima", "Paris", "Quito", "Tokyo", "Delhi", "Rome", "Accra", "Seoul", "Berlin", "Havana"),
    ),
    Kind(
        "where does {who} work",
        "{name} works at the {place}.",
        ("bakery", "school", "harbour", "bank", "museum", "farm", "hotel", "mill", "theatre", "clinic", "zoo", "mine"),
    ),
)
THINGS = ("river", "dog", "train", "garden", "cat", "wind", "clock", "window", "horse", "street", "lamp", "boat")
FILLERS = (  # of three tokens and more
    ("Snow falls.", "Night falls.", "Rain falls.", "Leaves fall.", "Bells ring.", "Birds sing."),
    ("The {thing} waits.", "The {thing} moves.", "A {thing} rests."),
    ("The old {thing} rests.", "A small {thing} moves.", "The grey {thing} waits."),
    ("The small {thing} moves slowly.", "A {thing} waits all night.", "The old {thing} rests again."),
    ("The {thing} waits near the {other}.", "A {thing} rests behind the {other}."),
    ("The {thing} moves behind the old {other}.", "A grey {thing} waits near the {other}."),
)
TOKEN = re.compile(r"\w+|[^\w\s]")


def length(sentence: str) -> int:
    """In tokens."""
    return len(TOKEN.findall(sentence))


FILLERS_OF = {length(some[0].format(thing="dog", other="cat")): some for some in FILLERS}
SHORTEST_FILLER = min(FILLERS_OF)
LONGEST_FACT = max(length(kind.fact.format(name="Anna", place="Oslo")) for kind in KINDS)
# What a config may ask for.
MOST = {"topics": len(NAMES), "slots": len(KINDS), "values_per_slot": len(KINDS[0].places)}


class Story(NamedTuple):
    """A document, the answer to its question, and the characters [start, end) of the places that are the answer."""

    document: str
    answer: str
    evidence: tuple[tuple[int, int], ...]


def question(name: str, slots: int) -> str:
    """What the first chunk asks about a person."""
    who = (name, *[PRONOUNS[NAMES.index(name) % 2]] * (slots - 1))
    parts = [kind.question.format(who=who) for kind, who in zip(KINDS[:slots], who, strict=True)]
    asked = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"{asked[0].upper()}{asked[1:]}?"


def vocabulary(kinds: int, places: int, things: int) -> tuple[str, ...]:
    """All tokens of documents and answers with so many kinds of facts, places of each kind, and things."""
    texts = [question(name, kinds) for name in NAMES]
    texts += [kind.fact.format(name="", place=place) for kind in KINDS[:kinds] for place in kind.places[:places]]
    texts += [filler.format(thing=t, other=t) for some in FILLERS for filler in some for t in THINGS[:things]]
    return tuple(dict.fromkeys(token for text in (*texts, ",") for token in TOKEN.findall(text)))


def shortest_chunk(kinds: int) -> int:
    """Tokens of a chunk that holds the question and a filler."""
    return length(question(NAMES[0], kinds)) + SHORTEST_FILLER


def facts_that_fit(chunks: int, tokens_per_chunk: int) -> int:
    """How many facts surely find room behind the first chunk."""
    return (chunks - 1) * max(0, (tokens_per_chunk - SHORTEST_FILLER) // LONGEST_FACT)


def story(
    rng: np.random.Generator,
    chunks: int,
    tokens_per_chunk: int,
    *,
    people: int,
    kinds: int,
    places: int,
    things: int,
) -> Story:
    """Draws a document of exactly `chunks` times `tokens_per_chunk` tokens, with facts of all kinds about `people`."""
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:people]]
    drawn = rng.integers(places, size=(people, kinds))
    asked = int(rng.integers(people))
    asking = question(names[asked], kinds)
    opening = f"{asking} {' '.join(_fillers(rng, tokens_per_chunk - length(asking), things))}"
    parts: list[list[str]] = [[] for _ in range(chunks - 1)]
    room = [tokens_per_chunk] * (chunks - 1)
    evidence = {}
    for person, kind in rng.permutation([(p, k) for p in range(people) for k in range(kinds)]).tolist():
        place = KINDS[kind].places[drawn[person, kind]]
        fact = KINDS[kind].fact.format(name=names[person], place=place)
        chunk = _one_of(rng, [i for i, left in enumerate(room) if left >= LONGEST_FACT + SHORTEST_FILLER])
        parts[chunk].append(fact)
        room[chunk] -= length(fact)
        if person == asked:
            evidence[fact] = place
    for part, left in zip(parts, room, strict=True):
        part += _fillers(rng, left, things)
        rng.shuffle(part)
    document = " ".join([opening, *(sentence for part in parts for sentence in part)])
    ends = sorted((document.index(fact) + len(fact) - 1, place) for fact, place in evidence.items())
    answer = ", ".join(KINDS[kind].places[drawn[asked, kind]] for kind in range(kinds))
    return Story(document, answer, tuple((end - len(place), end) for end, place in ends))


def _one_of(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]  # rng.choice takes ten times as long


def _fillers(rng: np.random.Generator, tokens: int, things: int) -> list[str]:
    """Sentences of exactly so many tokens."""
    one_of = partial(_one_of, rng)
    fillers = []
    while tokens:
        size = one_of([n for n in FILLERS_OF if n == tokens or n + SHORTEST_FILLER <= tokens])
        fillers.append(one_of(FILLERS_OF[size]).format(thing=one_of(THINGS[:things]), other=one_of(THINGS[:things])))
        tokens -= size
    return fillers
