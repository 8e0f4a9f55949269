"""Scores of predictions and of selections, on the host."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_simcas.common.pairs import Pair
from jax_simcas.common.tables import Measure
from jax_simcas.evaluation.bootstrap import Score, pool_scores

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
AUTHORS = "authors/"  # before the name of a score of texts that `as_authors` prepared
SUMMARY_SCORES = (*ROUGE_TYPES, *(AUTHORS + name for name in ROUGE_TYPES))
ANSWER_SCORES = ("exact_match", "f1", f"{AUTHORS}exact_match", f"{AUTHORS}f1")
BERTSCORE = "bertscore/"  # before MODEL@LAYER
_WORDS = {
    "rouge1": "ROUGE-1 F1, stemmed",
    "rouge2": "ROUGE-2 F1, stemmed",
    "rougeL": "ROUGE-L F1, stemmed, the text as one sequence",
    "rougeLsum": "ROUGE-Lsum F1, stemmed, sentence by sentence",
    "exact_match": "SQuAD exact match, best of the answers",
    "f1": "SQuAD F1, best of the answers",
}
_OTHERS = {
    "nll": Measure("Negative log-likelihood", "nats per token"),
    "kept %": Measure("Kept candidates", "%", 100.0),
    "evidence recall %": Measure("Evidence recall", "%", 100.0),
    "evidence precision %": Measure("Evidence precision", "%", 100.0),
}


# Text against references


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` in order, without the white space between them, by Punkt's English model, as nltk has them.

    Source: Kiss and Strunk, "Unsupervised Multilingual Sentence Boundary Detection", 2006.
    """
    from punkt import sent_tokenize  # its model comes with it; nltk would download one

    return sent_tokenize(text)


class _StemmingTokenizer:
    """rouge-score's own tokenizer and Porter stemmer, with a cache of stems, which are slow to compute."""

    def __init__(self) -> None:
        from nltk.stem import porter
        from rouge_score import tokenize

        self.stem: Callable[[str], str] = lru_cache(maxsize=1 << 16)(porter.PorterStemmer().stem)
        self._tokenize = tokenize.tokenize

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text, self)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    # Imported here because nltk takes two seconds to import.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=_StemmingTokenizer())


def _listed(texts: str | Sequence[str], name: str) -> Sequence[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if not listed:
        raise ValueError(f"{name}: expected at least one text, got none")
    return listed


def one_sentence_per_line(text: str) -> str:
    """The text itself if it has several lines, else one line per sentence."""
    text = text.strip()
    return text if "\n" in text else "\n".join(split_sentences(text))


def rouge(prediction: str, reference: str | Sequence[str]) -> dict[str, float]:
    """ROUGE-1, 2, L and Lsum F-measures x 100 (rouge-score, stemmer); each the maximum over references.

    Lsum compares sentence by sentence: the lines of a text with several lines, else its `split_sentences`.

    Raises:
      ValueError: no reference.
    """
    references = [one_sentence_per_line(text) for text in _listed(reference, "reference")]
    scores = _rouge_scorer().score_multi(references, one_sentence_per_line(prediction))
    return {name: 100.0 * float(scores[name].fmeasure) for name in ROUGE_TYPES}


@lru_cache(maxsize=1)
def _word_tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


def as_authors(text: str) -> str:
    """A text as the released code prepares it for scoring: nltk's words between spaces, one sentence per line.

    Line breaks become spaces; then sentences, their words ("don't" is "do n't", "cannot" is "can not"), and sentences
    of these again. Source: released main.py, `process`.
    """
    sentences = split_sentences(text.replace("\n", " ").strip())
    words = (word for sentence in sentences for word in _word_tokenizer()(sentence))
    return "\n".join(split_sentences(" ".join(words)))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: str | Sequence[str]) -> float:
    """100 if the prediction equals one of the answers after `normalize_answer`, else 0.

    Raises:
      ValueError: no answer.
    """
    given = normalize_answer(prediction)
    return 100.0 * any(given == normalize_answer(answer) for answer in _listed(answers, "answers"))


def token_f1(prediction: str, answers: str | Sequence[str]) -> float:
    """F1 x 100 of the bags of normalised words; the maximum over answers. Empty matches only empty, as in SQuAD 2.

    Raises:
      ValueError: no answer.
    """
    given = normalize_answer(prediction).split()
    return 100.0 * max(_bag_f1(given, normalize_answer(a).split()) for a in _listed(answers, "answers"))


def _bag_f1(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    return 2.0 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def average_words(texts: Iterable[str]) -> int:
    """Mean number of white-space separated words, rounded, at least 1."""
    words = texts_seen = 0
    for text in texts:
        words, texts_seen = words + len(text.split()), texts_seen + 1
    return max(1, round(words / max(1, texts_seen)))


def lead(document: str, length_words: int) -> str:
    """The lead baseline: the document's first `length_words` words, its own white space between them kept.

    The caller chooses the length: `average_words` of a data set's references, or that of the document's own reference,
    which no summariser knows.
    """
    words = list(islice(re.finditer(r"\S+", document), max(0, length_words)))
    return document[words[0].start() : words[-1].end()] if words else ""


# Scores by name


def summary_scores(prediction: str, reference: str | Sequence[str]) -> dict[str, float]:
    """SUMMARY_SCORES: `rouge` of the texts as they are, and under `authors/` as the released code prepares them.

    Raises:
      ValueError: no reference.
    """
    theirs = [as_authors(text) for text in _listed(reference, "reference")]
    prepared = rouge(as_authors(prediction), theirs)
    return rouge(prediction, reference) | {AUTHORS + name: value for name, value in prepared.items()}


def answer_scores(prediction: str, answers: str | Sequence[str]) -> dict[str, float]:
    """ANSWER_SCORES: of the texts as they are, and under `authors/` as the released code prepares them.

    Raises:
      ValueError: no answer.
    """
    theirs = [as_authors(text) for text in _listed(answers, "answers")]
    prepared = as_authors(prediction)
    given = ((prediction, answers), (prepared, theirs))
    values = (measure(*texts) for texts in given for measure in (exact_match, token_f1))
    return dict(zip(ANSWER_SCORES, values, strict=True))


def labelled(name: str) -> str:
    """`name: the measure in words`; a name that is not of a measure here is returned unchanged."""
    words = _in_words(name)
    return f"{name}: {words}" if words else name


def measure_of(name: str) -> Measure:
    """The title, unit and maximum of a score or of another measure of an evaluation."""
    if name in _OTHERS:
        return _OTHERS[name]
    words = _in_words(name)
    if not words:
        return Measure(name)
    prepared = ", released preparation" if name.startswith(AUTHORS) else ""
    return Measure(words.split(",")[0] + prepared, "%", 100.0)


def _in_words(name: str) -> str:
    if name.startswith(BERTSCORE):
        model, _, layer = name.removeprefix(BERTSCORE).rpartition("@")
        return f"BERTScore F1, {model}'s layer {layer}, no idf, not rescaled"
    plain = name.removeprefix(AUTHORS)
    prepared = "" if plain == name else ", texts prepared as in the released code"
    return _WORDS[plain] + prepared if plain in _WORDS else ""


# What the selection kept

# P(kept | evidence) / P(kept | not evidence)
EVIDENCE_RATIOS = {"likelihood_ratio": ("evidence_kept", "rest_kept")}


def evidence_scores(kept: Bool[np.ndarray, " n"], evidence: Bool[np.ndarray, " n"]) -> dict[str, Pair]:
    """Overlap of selection and evidence among the n real candidates of one document, as (sum, count) pairs.

    all_kept: share kept of all candidates; evidence_kept: of the evidence; rest_kept: of everything else;
    evidence_precision: share of what is kept that is evidence.
    """
    both = int((kept & evidence).sum())
    kept_count, marked = int(kept.sum()), int(evidence.sum())
    return {
        "all_kept": (kept_count, kept.size),
        "evidence_kept": (both, marked),
        "rest_kept": (kept_count - both, kept.size - marked),
        "evidence_precision": (both, kept_count),
    }


def evidence_summary(
    rows: Sequence[Mapping[str, Pair]], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> dict[str, Score]:
    """`evidence_scores` of many documents pooled, and likelihood_ratio = P(kept | evidence) / P(kept | rest).

    The ratio is one of pooled shares, since that of a single document is often undefined. It is infinite when
    nothing but evidence is kept, and NaN when nothing is kept or there is no evidence.
    """
    ratios = EVIDENCE_RATIOS if any("evidence_kept" in row for row in rows) else {}
    return pool_scores(rows, seed, ratios=ratios, samples=samples, level=level)
