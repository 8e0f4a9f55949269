"""Scores of predictions and of selections, on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jax_simcas.common.pairs import Pair
from jax_simcas.common.tables import Measure
from jax_simcas.evaluation.bootstrap import Score, pool_scores
from jax_simcas.evaluation.words import ROUGE_SCORE, Words, named
from jax_simcas.evaluation.words import normalize_answer as normalize_answer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
AUTHORS = "authors/"  # before the name of a score of texts that `as_authors` prepared
SUMMARY_SCORES = (*ROUGE_TYPES, *(AUTHORS + name for name in ROUGE_TYPES))
ANSWER_SCORES = ("exact_match", "f1", f"{AUTHORS}exact_match", f"{AUTHORS}f1")
BERTSCORE = "bertscore/"  # before MODEL@LAYER
STANDARD = named(ROUGE_SCORE)
_WORDS = {
    "rouge1": "ROUGE-1 F1, {rouge}",
    "rouge2": "ROUGE-2 F1, {rouge}",
    "rougeL": "ROUGE-L F1, {rouge}, the text as one sequence",
    "rougeLsum": "ROUGE-Lsum F1, {rouge}, sentence by sentence",
    "exact_match": "SQuAD exact match, best of the answers{answers}",
    "f1": "SQuAD F1, best of the answers{answers}",
}
_OTHERS = {
    "nll": Measure("Negative log-likelihood", "nats per token"),
    "kept %": Measure("Kept candidates", "%", 100.0),
    "evidence recall %": Measure("Evidence recall", "%", 100.0),
    "others kept %": Measure("Other tokens kept", "%", 100.0),
    "evidence precision %": Measure("Evidence precision", "%", 100.0),
    "evidence attended %": Measure("Attention to evidence", "%", 100.0),
    "times as likely": Measure("Evidence kept, times as likely as other tokens"),
}


# Text against references


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` in order, without the white space between them, by Punkt's English model, as nltk has them.

    Source: Kiss and Strunk, "Unsupervised Multilingual Sentence Boundary Detection", 2006.
    """
    from punkt import sent_tokenize  # its model comes with it; nltk would download one

    return sent_tokenize(text)


class _Tokenizer:
    """Words as rouge-score takes a tokenizer."""

    def __init__(self, words: Words) -> None:
        self.tokenize = words.of_text


@lru_cache(maxsize=8)
def _rouge_scorer(words: Words) -> Any:
    # Imported here because nltk takes two seconds to import.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=_Tokenizer(words))


def _listed(texts: str | Sequence[str], name: str) -> Sequence[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if not listed:
        raise ValueError(f"{name}: expected at least one text, got none")
    return listed


def one_sentence_per_line(text: str, words: Words = STANDARD) -> str:
    """The text itself if it has several lines, else one line per sentence."""
    text = text.strip()
    return text if "\n" in text else "\n".join(words.sentences(split_sentences(text)))


def rouge(prediction: str, reference: str | Sequence[str], words: Words = STANDARD) -> dict[str, float]:
    """ROUGE-1, 2, L and Lsum F-measures x 100 (rouge-score, by default with its stemmer), the best over references.

    Lsum compares sentence by sentence: the lines of a text with several lines, else its `split_sentences`.

    Raises:
      ValueError: no reference.
    """
    references = [one_sentence_per_line(text, words) for text in _listed(reference, "reference")]
    scores = _rouge_scorer(words).score_multi(references, one_sentence_per_line(prediction, words))
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


def exact_match(prediction: str, answers: str | Sequence[str], words: Words = STANDARD) -> float:
    """100 if the prediction has the words of one of the answers, by default those of SQuAD's normalisation, else 0.

    Raises:
      ValueError: no answer.
    """
    given = words.of_answer(prediction)
    return 100.0 * any(given == words.of_answer(answer) for answer in _listed(answers, "answers"))


def token_f1(prediction: str, answers: str | Sequence[str], words: Words = STANDARD) -> float:
    """F1 x 100 of the bags of normalised words; the maximum over answers. Empty matches only empty, as in SQuAD 2.

    Raises:
      ValueError: no answer.
    """
    given = words.of_answer(prediction)
    return 100.0 * max(_bag_f1(given, words.of_answer(answer)) for answer in _listed(answers, "answers"))


def _bag_f1(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    return 2.0 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def average_words(texts: Iterable[str], words: Words = STANDARD) -> int:
    """Mean number of words, by default those between white space, rounded, at least 1."""
    counts = [words.count(text) for text in texts]
    return max(1, round(sum(counts) / max(1, len(counts))))


def lead(document: str, length_words: int, words: Words = STANDARD) -> str:
    """The lead baseline: the document's first `length_words` words, its own white space between them kept.

    The caller chooses the length: `average_words` of a data set's references, or that of the document's own reference,
    which no summariser knows.
    """
    return words.first(document, max(0, length_words))


# Scores by name


def summary_scores(prediction: str, reference: str | Sequence[str], words: Words = STANDARD) -> dict[str, float]:
    """SUMMARY_SCORES: `rouge` of the texts as they are, and under `authors/` as the released code prepares them.

    Raises:
      ValueError: no reference.
    """
    theirs = [as_authors(text) for text in _listed(reference, "reference")]
    prepared = rouge(as_authors(prediction), theirs, words)
    return rouge(prediction, reference, words) | {AUTHORS + name: value for name, value in prepared.items()}


def answer_scores(prediction: str, answers: str | Sequence[str], words: Words = STANDARD) -> dict[str, float]:
    """ANSWER_SCORES: of the texts as they are, and under `authors/` as the released code prepares them.

    Raises:
      ValueError: no answer.
    """
    theirs = [as_authors(text) for text in _listed(answers, "answers")]
    prepared = as_authors(prediction)
    given = ((prediction, answers), (prepared, theirs))
    values = (measure(*texts, words) for texts in given for measure in (exact_match, token_f1))
    return dict(zip(ANSWER_SCORES, values, strict=True))


def labelled(name: str, words: Words = STANDARD) -> str:
    """`name: the measure in words`, with what it counts; a name that is not of a measure here is returned unchanged."""
    description = _in_words(name, words)
    return f"{name}: {description}" if description else name


def measure_of(name: str) -> Measure:
    """The title, unit and maximum of a score or of another measure of an evaluation."""
    if name in _OTHERS:
        return _OTHERS[name]
    description = _in_words(name, STANDARD)
    if not description:
        return Measure(name)
    prepared = ", released preparation" if name.startswith(AUTHORS) else ""
    return Measure(description.split(",")[0] + prepared, "%", 100.0)


def _in_words(name: str, words: Words) -> str:
    if name.startswith(BERTSCORE):
        model, _, layer = name.removeprefix(BERTSCORE).rpartition("@")
        return f"BERTScore F1, {model}'s layer {layer}, no idf, not rescaled"
    plain = name.removeprefix(AUTHORS)
    prepared = "" if plain == name else ", texts prepared as in the released code"
    return _WORDS[plain].format(rouge=words.rouge, answers=words.answers) + prepared if plain in _WORDS else ""


# What the selection kept

# P(kept | evidence) / P(kept | not evidence)
EVIDENCE_RATIOS = {"likelihood_ratio": ("evidence_kept", "rest_kept")}


def evidence_scores(
    kept: Bool[np.ndarray, " n"], evidence: Bool[np.ndarray, " n"], attention: Float[np.ndarray, " n"] | None = None
) -> dict[str, Pair]:
    """Overlap of selection and evidence among the n real candidates of one document, as (sum, count) pairs.

    all_kept: share kept of all candidates; evidence_kept: of the evidence; rest_kept: of everything else;
    evidence_precision: share of what is kept that is evidence; evidence_attended, where there is any `attention`: share
    of it that evidence gets.
    """
    both = int((kept & evidence).sum())
    kept_count, marked = int(kept.sum()), int(evidence.sum())
    out: dict[str, Pair] = {
        "all_kept": (kept_count, kept.size),
        "evidence_kept": (both, marked),
        "rest_kept": (kept_count - both, kept.size - marked),
        "evidence_precision": (both, kept_count),
    }
    if attention is not None and attention.any():
        # A document counts as often as its kept tokens do, as in the precision, which this is compared with.
        out["evidence_attended"] = (kept_count * float(attention[evidence].sum() / attention.sum()), kept_count)
    return out


def evidence_summary(
    rows: Sequence[Mapping[str, Pair]], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> dict[str, Score]:
    """`evidence_scores` of many documents pooled, and likelihood_ratio = P(kept | evidence) / P(kept | rest).

    The ratio is one of pooled shares, since that of a single document is often undefined. It is infinite when
    nothing but evidence is kept, and NaN when nothing is kept or there is no evidence.
    """
    ratios = EVIDENCE_RATIOS if any("evidence_kept" in row for row in rows) else {}
    return pool_scores(rows, seed, ratios=ratios, samples=samples, level=level)
