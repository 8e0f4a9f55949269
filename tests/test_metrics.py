"""Scores against hand-worked numbers, rouge-score itself, and what must hold for any text or sample."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common import pairs
from jax_simcas.evaluation import metrics

NAN = math.nan
texts = st.text(alphabet="ab .!?\n\"'(ACD019é", max_size=60)
vocabulary = ("running", "runs", "summary", "summaries", "the", "of", "study", "1999", "cells")
words = st.lists(st.sampled_from(vocabulary), max_size=20)
scores = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


# ROUGE


def test_rouge_of_hand_worked_texts():
    # Unigrams: 2 of 3 shared both ways; bigrams: 1 of 2; the longest common subsequence has 2 words.
    got = metrics.rouge("red cat sat", "red cat ran")
    assert got == pytest.approx({"rouge1": 200 / 3, "rouge2": 50, "rougeL": 200 / 3, "rougeLsum": 200 / 3})


def test_rouge_stems():
    assert metrics.rouge("the summaries", "the summary")["rouge1"] == 100


def test_rouge_is_the_maximum_over_references_of_each_measure():
    got = metrics.rouge("one two three", ["one three two", "nothing here", "one two four"])
    assert got["rouge1"] == 100
    assert got["rouge2"] == 50


@pytest.mark.parametrize(
    "prediction, reference", [("", "a text"), ("a text", ""), ("", ""), ("...", "!?"), (" \n", "x")]
)
def test_rouge_of_nothing_is_zero(prediction, reference):
    assert set(metrics.rouge(prediction, reference).values()) == {0.0}


@settings(max_examples=40, deadline=None)
@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=1, max_size=4))
def test_rouge_equals_rouge_score(prediction, reference):
    from rouge_score.rouge_scorer import RougeScorer

    prediction, reference = ("\n".join(" ".join(s) for s in text if s).strip() for text in (prediction, reference))
    direct = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True).score(reference, prediction)
    got = metrics.rouge(prediction, reference)
    assert got == {name: 100 * score.fmeasure for name, score in direct.items()}


def test_lsum_of_one_line_is_that_of_its_sentences():
    prediction, reference = "One came. Two went.", "Two went. One came."
    assert metrics.rouge(prediction, reference)["rougeLsum"] == 100
    assert metrics.rouge(prediction, reference)["rougeL"] == 50
    # Lines that are there are kept: of "two one" only one word is in order, of "two" and "one" both would be.
    assert metrics.rouge("Two. One\nmore", "One two.")["rougeLsum"] == pytest.approx(2 * 1 / 5 * 100)
    assert metrics.rouge("Two. One more", "One two.")["rougeLsum"] == pytest.approx(2 * 2 / 5 * 100)


def test_rouge_of_long_texts_is_quick():
    rng = np.random.default_rng(0)
    draw = lambda: "\n".join(" ".join(f"word{i}" for i in rng.integers(0, 500, 25)) for _ in range(20))
    metrics.rouge(draw(), draw())
    started = time.process_time()
    metrics.rouge(draw(), draw())
    assert time.process_time() - started < 5  # a tenth of a second on an idle core


# As the released code prepares texts


def test_texts_as_the_authors_prepare_them():
    got = metrics.as_authors(" He can't go,\nor \"so\" they say. They cannot; we'll see (at 3:30)!\n")
    assert got == "He ca n't go , or `` so '' they say .\nThey can not ; we 'll see ( at 3:30 ) !"
    assert metrics.as_authors("") == metrics.as_authors(" \n") == ""


def test_summary_scores_of_hand_worked_texts():
    # As they are: i, can, t and i, can, not. As the authors': i, ca, n, t and i, can, not.
    got = metrics.summary_scores("I can't", "I can not")
    assert tuple(got) == metrics.SUMMARY_SCORES
    assert got["rouge1"] == pytest.approx(200 / 3) and got["authors/rouge1"] == pytest.approx(200 / 7)
    # they, cannot and they, can, not: 2 * 1 / 5.
    got = metrics.summary_scores("They cannot", "They can not")
    assert got["rouge1"] == pytest.approx(40) and got["authors/rouge1"] == got["authors/rougeL"] == 100
    # Lines are sentences as they stand, and only white space to the authors: "one two" is in order, "one" "two" is not.
    got = metrics.summary_scores("two\none", "one two")
    assert got["rougeLsum"] == 100 and got["authors/rougeLsum"] == 50 == got["authors/rougeL"]
    with pytest.raises(ValueError, match="at least one text"):
        metrics.summary_scores("x", [])


@settings(max_examples=40, deadline=None)
@given(words, words)
def test_plain_words_score_the_same_either_way(prediction, reference):
    got = metrics.summary_scores(" ".join(prediction), " ".join(reference))
    assert [got[name] for name in metrics.ROUGE_TYPES] == [got[f"authors/{name}"] for name in metrics.ROUGE_TYPES]


def test_every_score_is_told_in_words():
    for name in metrics.SUMMARY_SCORES + metrics.ANSWER_SCORES:
        assert metrics.labelled(name).startswith(f"{name}: ")
        assert ("released code" in metrics.labelled(name)) == name.startswith("authors/")
    assert len({metrics.labelled(name) for name in metrics.SUMMARY_SCORES}) == 8
    assert metrics.labelled("bertscore/a/b@7") == "bertscore/a/b@7: BERTScore F1, a/b's layer 7, no idf, not rescaled"
    assert metrics.labelled("bleu") == "bleu" and metrics.labelled("authors/bleu") == "authors/bleu"


# Sentences


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("it rose by 3.5 percent. then it fell.", ["it rose by 3.5 percent.", "then it fell."]),
        ('He said "No." She left.', ['He said "No."', "She left."]),
        ("Dr. J. Smith of Acme Inc. agreed.", ["Dr. J. Smith of Acme Inc. agreed."]),
        ("we ask . they answer .", ["we ask .", "they answer ."]),
        ("", []),
    ],
)
def test_split_sentences(text, expected):
    assert metrics.split_sentences(text) == expected


@given(texts)
def test_sentences_lose_nothing_but_white_space(text):
    sentences = metrics.split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())


@pytest.mark.parametrize("unit", [".", ". ", "A. ", ".'", "' ", "x"])
def test_splitting_takes_linear_time(unit):
    started = time.process_time()
    metrics.split_sentences(unit * 30_000)
    assert time.process_time() - started < 5


# Answers


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Cat, sat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("theme", "theme"),
        ("it's", "its"),
        ("A", ""),
    ],
)
def test_normalize_answer(text, expected):
    assert metrics.normalize_answer(text) == expected


def test_exact_match_over_answers():
    assert metrics.exact_match("the Cat.", "cat") == 100
    assert metrics.exact_match("cat", ["dog", "A cat!"]) == 100
    assert metrics.exact_match("cat", ["dog", "cats"]) == 0
    assert metrics.exact_match("", "cat") == 0


def test_f1_of_hand_worked_answers():
    # 2 shared words (one "b" only), 3 predicted, 4 expected: 2 * 2 / 7.
    assert metrics.token_f1("b b c", "b c d e") == pytest.approx(400 / 7)
    assert metrics.token_f1("b b c", ["x", "b c d e", "b c"]) == pytest.approx(80)
    assert metrics.token_f1("x", "y") == 0
    assert metrics.token_f1("", "y") == 0
    assert metrics.token_f1("the", "an") == 100  # nothing is left of either


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["Carolina Panthers", "the Denver Broncos!"], 100, 100),
        ("the Broncos of Denver", ["Denver Broncos", "Denver"], 0, 80),  # 2 shared of 3 and 2; 1 of 3 and 1: 50
        ("in 1990", ["the 1990s", "1990"], 0, 200 / 3),
        ("A cat and a dog.", ["an owl", "cat  and dog"], 100, 100),
        ("New York City", ["new-york city", "NYC"], 0, 40),  # a hyphen leaves no space: newyork
        ("to to be", ["be", "be to to"], 0, 100),  # a bag has no order
        ("yes", ["no", "never"], 0, 0),
        ("", ["no", "the"], 100, 100),  # of the second answer nothing is left
        ("x", ["", "a"], 0, 0),
    ],
)
def test_squad_scores_of_hand_worked_rows(prediction, answers, exact, f1):
    got = metrics.answer_scores(prediction, answers)
    assert tuple(got) == metrics.ANSWER_SCORES
    assert got["exact_match"] == exact and got["f1"] == pytest.approx(f1)
    # None of these has words that the released code takes apart.
    assert got["authors/exact_match"] == exact and got["authors/f1"] == pytest.approx(f1)
    assert metrics.answer_scores(prediction, answers[::-1]) == got


def test_squad_scores_as_the_authors_compute_them():
    # dont, know and do, not, know: 2 * 1 / 5. do, nt, know and do, not, know: 2 * 2 / 6.
    got = metrics.answer_scores("don't know", ["do not know", "unknown"])
    assert got["f1"] == pytest.approx(40) and got["authors/f1"] == pytest.approx(200 / 3)
    got = metrics.answer_scores("They cannot", "they can not")
    assert (got["exact_match"], got["authors/exact_match"]) == (0, 100)


def test_no_answer_is_an_error():
    for score in (metrics.exact_match, metrics.token_f1, metrics.rouge, metrics.answer_scores):
        with pytest.raises(ValueError, match="at least one text"):
            score("x", [])


@given(texts, texts)
def test_answer_scores_see_only_what_normalisation_leaves(a, b):
    plain = metrics.normalize_answer(a)
    for score in (metrics.exact_match, metrics.token_f1):
        assert score(a, b) == score(plain, b) == score(b, a)
        assert score(a, a.upper()) == 100
    assert metrics.exact_match(a, b) <= metrics.token_f1(a, b) <= 100


# Lead


def test_lead_keeps_the_first_words_and_their_spacing():
    document = "  One two.\n\nThree  four five "
    assert metrics.lead(document, 3) == "One two.\n\nThree"
    assert metrics.lead(document, 4) == "One two.\n\nThree  four"
    assert metrics.lead(document, 99) == document.strip()
    assert metrics.lead(document, 0) == metrics.lead(" \n", 3) == ""


@given(texts, st.integers(0, 30))
def test_lead_has_so_many_words(text, count):
    assert metrics.lead(text, count).split() == text.split()[:count]


def test_average_words():
    assert metrics.average_words(["one two three", "one two three four five"]) == 4
    assert metrics.average_words([]) == 1


# Evidence


def bits(text):
    return np.array([c == "1" for c in text])


def test_evidence_of_a_hand_worked_document():
    #    evidence at 0, 1, 2; kept 1, 2, 5 of 8
    got = metrics.evidence_scores(bits("01100100"), bits("11100000"))
    assert got == {
        "all_kept": (3, 8),
        "evidence_kept": (2, 3),
        "rest_kept": (1, 5),
        "evidence_precision": (2, 3),
    }
    summary = metrics.evidence_summary([got])
    assert summary["likelihood_ratio"].mean == pytest.approx((2 / 3) / (1 / 5))
    assert summary["all_kept"].mean == 3 / 8 and math.isnan(summary["all_kept"].low)


def test_attention_to_evidence_is_a_share_of_that_to_what_is_kept():
    kept, evidence = bits("01100100"), bits("11100000")
    got = metrics.evidence_scores(kept, evidence, np.array([0, 0.2, 0.1, 0, 0, 0.3, 0, 0]))
    assert got["evidence_attended"] == pytest.approx((1.5, 3)) and got["evidence_precision"] == (2, 3)
    nothing = metrics.evidence_scores(np.zeros(8, bool), evidence, np.zeros(8))
    assert "evidence_attended" not in nothing  # not a share of 0


def test_evidence_is_pooled_over_documents():
    rows = [
        metrics.evidence_scores(bits("1100"), bits("1000")),
        metrics.evidence_scores(bits("01"), bits("00")),  # no evidence: counts for the rest only
        metrics.evidence_scores(bits("000"), bits("110")),
    ]
    got = metrics.evidence_summary(rows, samples=200)
    assert got["evidence_kept"].mean == pytest.approx(1 / 3) and got["evidence_kept"].count == 2
    assert got["rest_kept"].mean == pytest.approx(2 / 6)
    assert got["all_kept"].mean == pytest.approx(3 / 9)
    assert got["evidence_precision"].mean == pytest.approx(1 / 3)
    ratio = got["likelihood_ratio"]
    assert ratio.mean == pytest.approx(1) and ratio.low <= 1 <= ratio.high


def test_likelihood_ratio_without_a_denominator():
    only = [metrics.evidence_scores(bits("10"), bits("10"))] * 3
    got = metrics.evidence_summary(only)["likelihood_ratio"]
    assert got[:3] == (math.inf,) * 3
    nothing = [metrics.evidence_scores(bits("00"), bits("10"))] * 3
    assert math.isnan(metrics.evidence_summary(nothing)["likelihood_ratio"].mean)
    assert metrics.evidence_summary([]) == {}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_evidence_and_rest_make_all(document):
    kept, evidence = (np.array([d[i] for d in document], bool) for i in (0, 1))
    got = metrics.evidence_scores(kept, evidence)
    assert pairs.add(got["evidence_kept"], got["rest_kept"]) == got["all_kept"]
    assert got["evidence_precision"][1] == got["all_kept"][0]


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 5))
def test_random_selection_has_a_ratio_near_one(documents, seed):
    rng = np.random.default_rng(seed)
    rows = [metrics.evidence_scores(rng.random(4000) < 0.3, rng.random(4000) < 0.1) for _ in range(documents)]
    assert metrics.evidence_summary(rows, samples=50)["likelihood_ratio"].mean == pytest.approx(1, abs=0.25)
