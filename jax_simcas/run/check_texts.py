"""The texts on which a checkpoint is checked: plain sentences of several lengths, or the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from jax_simcas.common.errors import UserError
from jax_simcas.data.tokenizer import Tokenizer, tokenize

TARGET_TOKENS = 32
LONG = 2.3  # chunks of content that the built-in long text has
SENTENCES = (
    "The bridge was closed on Monday.",
    "It opened in 1932, and about 14,000 people cross it every day; most of them walk.",
    "Engineers had found a crack, two metres long, in one of the four main cables.",
    '"We cannot say yet how long the work will take," said the head of the office, Maria Núñez.',
    "Repairs of this kind cost between 2.5 and 3 million euros, and need dry weather.",
    "Why did nobody see it earlier?",
    "The last inspection, in the spring, reported no damage, but it left out the northern side.",
    "Until the bridge opens again, a ferry leaves from the old harbour every twenty minutes.",
    "It is free for schoolchildren and for people over 65.",
    "Shops on both banks complain: the baker in Mill Street sells half of what she sold a week ago.",
    "The council meets on Thursday to decide whether a second bridge should be built after all.",
    "A similar plan was rejected in 1998 (by three votes) because of the noise that it would bring.",
)
# Sentences of each of the built-in short texts.
SHORT = (1, 2, 5, len(SENTENCES))


class Text(NamedTuple):
    """What the encoder reads, and a summary that stands for what the decoder is to write."""

    name: str
    document: str
    target: str


def fitting(text: str, tokenizer: Tokenizer, room: int) -> str:
    """The beginning of a text that has at most `room` tokens."""
    while len((found := tokenize(tokenizer, text)).ids) > room:
        text = text[: min(int(found.offsets[room - 1, 1]), len(text) - 1)]
    return text


def short_texts(tokenizer: Tokenizer, room: int, given: Iterable[tuple[str, str]] = ()) -> list[Text]:
    """Texts of at most `room` tokens, and targets, which are their beginnings.

    Args:
      given: (name, text) of the user's own; none: the built-in ones.

    Raises:
      UserError: a text without tokens.
    """
    own = list(given) or [(f"{count} sentences", " ".join(SENTENCES[:count])) for count in SHORT]
    return [_with_target(name, fitting(text, tokenizer, room), tokenizer) for name, text in own]


def long_texts(tokenizer: Tokenizer, room: int, most: int, given: Iterable[tuple[str, str]] = ()) -> list[Text]:
    """Texts of more than `room` and at most `most` tokens.

    Raises:
      UserError: none of those that were given is so long.
    """
    own = list(given)
    if not own:
        own = [("long text", _repeated(tokenizer, round(LONG * room)))]
    found = [(name, text) for name, text in own if len(tokenize(tokenizer, text).ids) > room]
    if not found:
        raise UserError(f"--long: no text of --text has more than {room} tokens; give a longer one, or none")
    return [_with_target(name, fitting(text, tokenizer, most), tokenizer) for name, text in found]


def _repeated(tokenizer: Tokenizer, tokens: int) -> str:
    """The sentences, numbered, as often as so many tokens need."""
    once = len(tokenize(tokenizer, " ".join(SENTENCES)).ids)
    rounds = math.ceil(tokens / once) if once else 1
    return " ".join(f"({number}) {SENTENCES[number % len(SENTENCES)]}" for number in range(rounds * len(SENTENCES)))


def _with_target(name: str, document: str, tokenizer: Tokenizer) -> Text:
    if not len(tokenize(tokenizer, document).ids):
        raise UserError(f"{name}: no tokens in it")
    return Text(name, document, fitting(document, tokenizer, TARGET_TOKENS))
