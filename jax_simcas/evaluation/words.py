"""The words that scores count: rouge-score's and SQuAD's own, or Unicode's for texts that those cannot read.

rouge-score keeps a to z and 0 to 9, so that a text in another script has no word and scores 0 whatever a summary says,
and a word with an accent is cut at it. SQuAD's scores take what stands between spaces for a word, so that a Chinese
answer is one word. Unicode's words are runs of letters, marks and digits in compatibility composition (NFKC) without
case; scripts that put no spaces between words (Han, kana, Thai, Lao, Khmer, Burmese) count by character.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import regex

from jax_simcas.common.tables import plural

AUTO, ROUGE_SCORE, UNICODE = "auto", "rouge-score", "unicode"
MANY_UNREAD = 0.03  # of the words: loan words and Greek letters in English are less, accents in French or Spanish more
# Line_Break=SA: scripts of South East Asia whose lines break by dictionary. The mark that lengthens kana has no script.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Line_Break=SA}ー]"
_WORDY = r"[\p{L}\p{M}\p{N}]"
_WORD = regex.compile(rf"(?V1)[{_UNSPACED}&&{_WORDY}]\p{{M}}*|[{_WORDY}--{_UNSPACED}]+")
_PIECE = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[\S--{_UNSPACED}]+")  # of an answer, which keeps its symbols
_HAS_UNSPACED = regex.compile(f"(?V1){_UNSPACED}")
_INVISIBLE = regex.compile(r"(?V1)[\p{Cf}--\u200b]")  # joiners, soft hyphens; a space of no width parts words
_SENTENCE_END = regex.compile(r"(?<=[。！？｡؟۔।॥።။།][\p{Pe}\p{Pf}\"']*+)\s*(?=\S)(?![\p{Pe}\p{Pf}])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ANY_PUNCTUATION = regex.compile(rf"[\p{{P}}{re.escape(string.punctuation)}]")
_NOT_SPACE = regex.compile(r"\S+")

Tokenize = Callable[[str], list[str]]


@dataclass(frozen=True)
class Words:
    """One way to divide texts into the words that scores count.

    name: as `named` takes it; rouge: the words of ROUGE in words.
    of_text: the words of a text for ROUGE; of_answer: for exact match and F1, articles and punctuation left out.
    sentences: parts a text without line breaks into sentences further than Punkt does.
    pattern: finds words in a text as it is written, for its first n of them.
    """

    name: str
    rouge: str
    of_text: Tokenize = field(compare=False)
    of_answer: Tokenize = field(compare=False)
    sentences: Callable[[list[str]], list[str]] = field(compare=False)
    pattern: Any = field(compare=False)

    @property
    def answers(self) -> str:
        """What the label of a SQuAD score adds to its name."""
        return "" if self.name == ROUGE_SCORE else f", {UNICODE} tokenizer"

    def count(self, text: str) -> int:
        """Words of a text as it is written."""
        return sum(1 for _ in self.pattern.finditer(text))

    def first(self, text: str, count: int) -> str:
        """The text from its first to its count-th word, all between them kept; "" where it has none."""
        start = end = -1
        for number, match in enumerate(self.pattern.finditer(text)):
            if number == count:
                break
            start, end = match.start() if start < 0 else start, match.end()
        return text[start:end] if start >= 0 else ""


def named(name: str) -> Words:
    """`rouge-score`, `unicode` (no stems) or `unicode:LANGUAGE` (stems of nltk's Snowball, such as `unicode:german`).

    Raises:
      ValueError: another name, or a language that Snowball has no stemmer for.
    """
    kind, _, language = name.partition(":")
    if name == ROUGE_SCORE:
        return _rouge_score()
    if kind != UNICODE or (":" in name and language not in stemmed_languages()):
        raise ValueError(
            f"{name!r}: expected {AUTO}, {ROUGE_SCORE}, {UNICODE} or {UNICODE}:LANGUAGE with one of "
            f"{', '.join(stemmed_languages())}"
        )
    return _unicode(language)


def check_name(name: str) -> None:
    """Raises ValueError for what is neither `auto` nor one that `named` takes."""
    if name != AUTO:
        named(name)


@cache
def stemmed_languages() -> tuple[str, ...]:
    """The languages that nltk's Snowball stems."""
    from nltk.stem.snowball import SnowballStemmer  # nltk takes two seconds to import

    return tuple(language for language in SnowballStemmer.languages if language != "porter")


def choose(name: str, references: Iterable[str], task: str) -> Words:
    """The words of a whole data set: `auto` takes the standard ones if they read its references, else Unicode's."""
    if name != AUTO:
        return named(name)
    return named(UNICODE if unread_share(references, task) > MANY_UNREAD else ROUGE_SCORE)


def unread_share(texts: Iterable[str], task: str) -> float:
    """The share of the Unicode words of texts that the standard scores of a task lose, cut or take for one.

    For `answers` (SQuAD's), these are the characters of scripts without spaces; for summaries (rouge-score's), all
    words with a character beyond a to z and 0 to 9.
    """
    lost = total = 0
    for text in texts:
        if text.isascii():
            total += len(text.split())
        elif task == "answers":
            words = unicode_answer(text)
            lost, total = lost + sum(map(bool, map(_HAS_UNSPACED.search, words))), total + len(words)
        else:
            words = unicode_words(text)
            read = Counter(words) & Counter(_ascii_words(text))
            lost, total = lost + len(words) - read.total(), total + len(words)
    return lost / total if total else 0.0


def uncounted(references: Iterable[Sequence[str]], words: Words, task: str) -> int:
    """How many documents have no reference with a word in it, so that ROUGE is 0 whatever a summary says.

    Answers have none: exact match and F1 of a reference without words are 100 for a prediction without any.
    """
    if task == "answers":
        return 0
    return sum(not any(map(words.of_text, texts)) for texts in references)


def warnings(references: Sequence[Sequence[str]], words: Words, task: str) -> Iterator[str]:
    """What the scores of these references cannot show."""
    share = unread_share((text for texts in references for text in texts), task)
    if words.name == ROUGE_SCORE and share > MANY_UNREAD:
        what = "SQuAD's words stand between spaces" if task == "answers" else "rouge-score reads a to z and 0 to 9"
        yield (
            f"{what}: {100 * share:.0f} % of the references' words are lost, cut or taken for one; "
            f"--rouge-tokenizer={UNICODE} counts them"
        )
    if lost := uncounted(references, words, task):
        verb = "has" if lost == 1 else "have"
        yield (
            f"{lost} of {plural(len(references), 'document')} {verb} no reference with a word that the {words.name} "
            "tokenizer counts: ROUGE is 0 there whatever the summary says"
        )


# rouge-score's and SQuAD's own


def _ascii_words(text: str) -> list[str]:
    from rouge_score import tokenize

    return tokenize.tokenize(text, None)


class _Porter:
    """Porter's stemmer with a cache of stems, which are slow to compute."""

    def __init__(self) -> None:
        from nltk.stem import porter

        self.stem: Callable[[str], str] = lru_cache(maxsize=1 << 16)(porter.PorterStemmer().stem)


@cache
def _rouge_score() -> Words:
    def of_text(text: str) -> list[str]:
        from rouge_score import tokenize

        return tokenize.tokenize(text, _porter())

    return Words(
        ROUGE_SCORE, "stemmed, rouge-score tokenizer", of_text, _squad_words, lambda sentences: sentences, _NOT_SPACE
    )


@cache
def _porter() -> _Porter:
    return _Porter()


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _squad_words(text: str) -> list[str]:
    return normalize_answer(text).split()


# Unicode's


def folded(text: str) -> str:
    """The text in NFKC without case and without invisible characters: what looks alike is alike."""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFKC", text.casefold())


def unicode_words(text: str) -> list[str]:
    """Runs of letters, marks and digits; characters of scripts without spaces."""
    return _WORD.findall(folded(text))


def unicode_answer(text: str) -> list[str]:
    """SQuAD's words of a text without any punctuation; of ASCII text the same as SQuAD's own."""
    bare = _ARTICLES.sub(" ", _ANY_PUNCTUATION.sub("", folded(text)))
    return _PIECE.findall(bare)


@cache
def _unicode(language: str) -> Words:
    stem: Callable[[str], str] = (lambda word: word) if not language else _snowball(language)

    def of_text(text: str) -> list[str]:
        # Short words as they are, as rouge-score has it.
        return [stem(word) if len(word) > 3 else word for word in unicode_words(text)]

    return Words(
        f"{UNICODE}:{language}" if language else UNICODE,
        f"stemmed ({language}), unicode tokenizer" if language else "not stemmed, unicode tokenizer",
        of_text,
        unicode_answer,
        lambda sentences: [part for sentence in sentences for part in _SENTENCE_END.split(sentence) if part],
        _WORD,
    )


def _snowball(language: str) -> Callable[[str], str]:
    from nltk.stem.snowball import SnowballStemmer

    return lru_cache(maxsize=1 << 16)(SnowballStemmer(language).stem)
