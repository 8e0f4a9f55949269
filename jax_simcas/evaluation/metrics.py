"""Scores of predictions and selections, on the host, and how sure they are.

Totals travel as (sum, count) pairs, so that documents, batches and processes can be added before dividing.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Number = float | int
Pair = tuple[Any, Any]  # (sum, count): Python, numpy or device scalars
Values = Sequence[Number] | np.ndarray

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
_BLOCK = 1 << 20  # elements of one block of resamples: 8 MiB


# Totals


def add(a: Pair, b: Pair) -> tuple[float, float]:
    """Adds two (sum, count) pairs in double precision; (0.0, 0.0) is nothing."""
    return float(a[0]) + float(b[0]), float(a[1]) + float(b[1])


def mean(pair: Pair) -> float:
    """sum / count; NaN when nothing was counted."""
    total, count = float(pair[0]), float(pair[1])
    return total / count if count else math.nan


# Text against references


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` in order, without the white space between them, by Punkt's English model, as nltk has them.

    Source: Kiss and Strunk, "Unsupervised Multilingual Sentence Boundary Detection", 2006.
    """
    from punkt import sent_tokenize  # its model comes with it; nltk would download one

    return sent_tokenize(text)


class _StemmingTokenizer:
    """rouge-score's own tokenizer and Porter stemmer; remembers stems, which are slow to find."""

    def __init__(self) -> None:
        from nltk.stem import porter
        from rouge_score import tokenize

        self.stem: Callable[[str], str] = lru_cache(maxsize=1 << 16)(porter.PorterStemmer().stem)
        self._tokenize = tokenize.tokenize

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text, self)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    # Here and not above: nltk takes two seconds to import.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=_StemmingTokenizer())


def _listed(texts: str | Sequence[str], name: str) -> Sequence[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if not listed:
        raise ValueError(f"{name}: expected at least one text, got none")
    return listed


def _a_sentence_a_line(text: str) -> str:
    """`text` if its lines say where sentences end, else one sentence a line."""
    text = text.strip()
    return text if "\n" in text else "\n".join(split_sentences(text))


def rouge(prediction: str, reference: str | Sequence[str]) -> dict[str, float]:
    """ROUGE-1, 2, L and Lsum F-measures x 100 (rouge-score, stemmer); each the maximum over references.

    Lsum compares sentence by sentence: the lines of a text that has several, else `split_sentences` of it.

    Raises:
      ValueError: no reference.
    """
    references = [_a_sentence_a_line(text) for text in _listed(reference, "reference")]
    scores = _rouge_scorer().score_multi(references, _a_sentence_a_line(prediction))
    return {name: 100.0 * float(scores[name].fmeasure) for name in ROUGE_TYPES}


@lru_cache(maxsize=1)
def _word_tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


def as_authors(text: str) -> str:
    """A text as the released code prepares it for scoring: nltk's words between spaces, a sentence a line.

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

    The caller decides how many: `average_words` of a data set's references, or the words of the document's
    own reference, which no summariser knows.
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
    """`name: which measure it is`, in words; a name that is not of ours comes back as it is."""
    if name.startswith(BERTSCORE):
        model, _, layer = name.removeprefix(BERTSCORE).rpartition("@")
        return f"{name}: BERTScore F1, {model}'s layer {layer}, no idf, not rescaled"
    plain = name.removeprefix(AUTHORS)
    how = "" if plain == name else ", texts prepared as in the released code"
    return f"{name}: {_WORDS[plain]}{how}" if plain in _WORDS else name


# How sure


class Score(NamedTuple):
    """A mean over `count` documents and its bootstrap interval; low and high are NaN below two documents."""

    mean: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody misses


class Difference(NamedTuple):
    """mean(a) - mean(b) over the same documents, its bootstrap interval, and its two-sided p."""

    mean: float
    low: float
    high: float
    p: float
    count: int  # type: ignore[assignment]


def _resampled_sums(table: Float[np.ndarray, "n m"], key_seed: int, samples: int) -> Float[np.ndarray, "s m"]:
    """Column sums of `samples` tables of n rows drawn from `table` with replacement."""
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least 1")
    n, m = table.shape
    rng = np.random.default_rng(key_seed)
    block = max(1, _BLOCK // (n * m))
    rows = (table[rng.integers(0, n, (min(block, samples - i), n))].sum(axis=1) for i in range(0, samples, block))
    return np.concatenate(list(rows))


def _interval(estimates: Float[np.ndarray, " s"], point: float, level: float) -> tuple[float, float]:
    """The central `level` of the estimates that are defined; never leaves out the point estimate itself."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level}: expected 0 < level < 1")
    ordered = np.sort(estimates[~np.isnan(estimates)])
    if not ordered.size:
        return math.nan, math.nan
    # Order statistics without interpolation, so that an infinite ratio stays one.
    cut = int((1.0 - level) / 2.0 * (ordered.size - 1))
    return min(float(ordered[cut]), point), max(float(ordered[-1 - cut]), point)


def _finite(values: Values, name: str) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers [n], got shape {list(array.shape)}")
    return array


def bootstrap_interval(
    values: Values, *, key_seed: int, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """(low, high): the percentile bootstrap interval of the mean; (NaN, NaN) below two values.

    Raises:
      ValueError: values that are not finite, samples < 1, level outside (0, 1).
    """
    array = _finite(values, "values")
    if array.size < 2:
        return math.nan, math.nan
    sums = _resampled_sums(array[:, None], key_seed, samples)[:, 0]
    return _interval(sums / array.size, float(array.mean()), level)


def paired_bootstrap(a: Values, b: Values, *, key_seed: int, samples: int = 2000, level: float = 0.95) -> Difference:
    """Compares two systems on the same documents: a[i] and b[i] are scores of document i, resampled together.

    p = min(1, 2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (1 + samples)) over resampled mean differences d*.

    Raises:
      ValueError: lengths that differ, values that are not finite.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.size != second.size:
        raise ValueError(f"a has {first.size} values, b has {second.size}: expected the same documents")
    n = first.size
    gap = first - second
    point = float(gap.mean()) if n else math.nan
    if n < 2:
        return Difference(point, math.nan, math.nan, math.nan, n)
    drawn = _resampled_sums(gap[:, None], key_seed, samples)[:, 0] / n
    tail = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(point, *_interval(drawn, point, level), min(1.0, 2 * tail / (1 + samples)), n)


def pool_scores(
    rows: Sequence[Mapping[str, Pair]],
    key_seed: int = 0,
    *,
    ratios: Mapping[str, tuple[str, str]] | None = None,
    differences: Mapping[str, tuple[str, str]] | None = None,
    samples: int = 2000,
    level: float = 0.95,
) -> dict[str, Score]:
    """sum of sums / sum of counts over documents, with intervals from resampling whole documents.

    Args:
      rows: the (sum, count) pairs of each document; a missing name is (0, 0).
      ratios: name -> (over, under): adds the quotient of two of the pooled means.
      differences: name -> (a, b): adds a - b, of documents that are drawn for both together.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return {}
    table = np.array([[row.get(name, (0.0, 0.0)) for name in names] for row in rows], np.float64)
    drawn = _resampled_sums(table.reshape(len(rows), -1), key_seed, samples).reshape(-1, len(names), 2)
    total, counted = table.sum(axis=0), table[..., 1] > 0

    def score(point: Any, estimates: np.ndarray, documents: np.ndarray) -> Score:
        count = int(documents.sum())
        low, high = _interval(estimates, float(point), level) if count > 1 else (math.nan, math.nan)
        return Score(float(point), low, high, count)

    with np.errstate(divide="ignore", invalid="ignore"):
        point, estimates = total[:, 0] / total[:, 1], drawn[..., 0] / drawn[..., 1]
        out = {name: score(point[i], estimates[:, i], counted[:, i]) for i, name in enumerate(names)}
        for combine, wanted in ((np.divide, ratios), (np.subtract, differences)):
            for name, (a, b) in (wanted or {}).items():
                i, j = names.index(a), names.index(b)
                both = counted[:, i] & counted[:, j]
                out[name] = score(combine(point[i], point[j]), combine(estimates[:, i], estimates[:, j]), both)
    return out


def summarize_scores(
    rows: Sequence[Mapping[str, Number]], key_seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> dict[str, Score]:
    """Mean and bootstrap interval of every score over documents; a row with NaN or without it has none."""
    pairs = [{k: (v, 1.0) if not math.isnan(v) else (0.0, 0.0) for k, v in row.items()} for row in rows]
    return pool_scores(pairs, key_seed, samples=samples, level=level)


# What the selection kept

# P(kept | evidence) / P(kept | not evidence)
EVIDENCE_RATIOS = {"likelihood_ratio": ("evidence_kept", "rest_kept")}


def evidence_scores(kept: Bool[np.ndarray, " n"], evidence: Bool[np.ndarray, " n"]) -> dict[str, Pair]:
    """How selection and evidence meet among the n real candidates of one document, as (sum, count) pairs.

    all_kept: share kept of all candidates; evidence_kept: of the evidence; rest_kept: of everything else;
    evidence_precision: share of what is kept that is evidence.
    """
    both = int((kept & evidence).sum())
    chosen, marked = int(kept.sum()), int(evidence.sum())
    return {
        "all_kept": (chosen, kept.size),
        "evidence_kept": (both, marked),
        "rest_kept": (chosen - both, kept.size - marked),
        "evidence_precision": (both, chosen),
    }


def evidence_summary(
    rows: Sequence[Mapping[str, Pair]], key_seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> dict[str, Score]:
    """`evidence_scores` of many documents pooled, and likelihood_ratio = P(kept | evidence) / P(kept | rest).

    The ratio is one of pooled shares, since that of a single document is often undefined. It is infinite when
    nothing but evidence is kept, and NaN when nothing is kept or there is no evidence.
    """
    ratios = EVIDENCE_RATIOS if any("evidence_kept" in row for row in rows) else {}
    return pool_scores(rows, key_seed, ratios=ratios, samples=samples, level=level)
