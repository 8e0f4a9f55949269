"""Scores against hand-worked numbers, rouge-score itself, and what must hold for any text or sample."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.evaluation import metrics

NAN = math.nan
texts = st.text(alphabet="ab .!?\n\"'(ACD019é", max_size=60)
vocabulary = ("running", "runs", "summary", "summaries", "the", "of", "study", "1999", "cells")
words = st.lists(st.sampled_from(vocabulary), max_size=20)
scores = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


def test_pairs_add_and_divide():
    total = metrics.add(metrics.add((0.0, 0.0), (np.float32(3), np.int32(2))), (5, 2))
    assert total == (8.0, 4.0)
    assert metrics.mean(total) == 2.0
    assert math.isnan(metrics.mean((0, 0)))


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
    started = time.monotonic()
    metrics.rouge(draw(), draw())
    assert time.monotonic() - started < 5  # a tenth of a second on an idle core


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
    started = time.monotonic()
    metrics.split_sentences(unit * 30_000)
    assert time.monotonic() - started < 5


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


# Bootstrap


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 9))
def test_interval_holds_the_mean_and_lies_within_the_values(values, seed):
    low, high = metrics.bootstrap_interval(values, key_seed=seed, samples=200)
    mean = float(np.mean(values))
    assert low <= mean <= high
    assert min(values) - 1e-9 <= low and high <= max(values) + 1e-9
    assert (low, high) == metrics.bootstrap_interval(np.array(values), key_seed=seed, samples=200)


def test_interval_is_that_of_the_normal_for_many_values():
    values = np.random.default_rng(1).normal(10, 2, 2000)
    low, high = metrics.bootstrap_interval(values, key_seed=0)
    error = values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = metrics.bootstrap_interval(values, key_seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_of_two_values_is_both():
    # A resample is all one value with probability 1/2.
    assert metrics.bootstrap_interval([0.0, 1.0], key_seed=0) == (0, 1)
    assert metrics.bootstrap_interval([3, 3, 3], key_seed=0) == (3, 3)


def test_no_interval_without_two_values():
    for values in ([], [5.0]):
        assert all(math.isnan(x) for x in metrics.bootstrap_interval(values, key_seed=0))


def test_blocks_do_not_change_the_draw(monkeypatch):
    values = list(range(7))
    whole = metrics.bootstrap_interval(values, key_seed=3, samples=100)
    monkeypatch.setattr(metrics, "_BLOCK", 1)
    assert metrics.bootstrap_interval(values, key_seed=3, samples=100) == whole


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"values": [1.0, math.inf]}, "values: expected finite"),
        ({"values": np.zeros((2, 2))}, r"shape \[2, 2\]"),
        ({"values": [1.0, 2.0], "samples": 0}, "samples=0"),
        ({"values": [1.0, 2.0], "level": 1.0}, "level=1.0"),
    ],
)
def test_bootstrap_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(**arguments, key_seed=0)


def test_paired_bootstrap_sees_a_small_constant_gain_in_noisy_scores():
    rng = np.random.default_rng(0)
    b = rng.normal(50, 20, 100)
    a = b + 1 + rng.normal(0, 0.5, 100)
    better = metrics.paired_bootstrap(a, b, key_seed=0)
    assert better.mean == pytest.approx(1, abs=0.2) and 0 < better.low < better.high
    assert better.p == pytest.approx(2 / 2001) and better.count == 100
    worse = metrics.paired_bootstrap(b, a, key_seed=0)
    assert (worse.mean, worse.low, worse.high) == pytest.approx((-better.mean, -better.high, -better.low))
    same = metrics.paired_bootstrap(a, a, key_seed=0)
    assert same[:4] == (0, 0, 0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=20))
def test_paired_p_is_a_probability_and_agrees_with_the_interval(pairs):
    a, b = zip(*pairs, strict=True)
    got = metrics.paired_bootstrap(a, b, key_seed=0, samples=300)
    assert 0 < got.p <= 1
    if got.low > 0 or got.high < 0:
        assert got.p < 0.1
    assert got.low <= got.mean <= got.high


def test_paired_bootstrap_of_little():
    assert math.isnan(metrics.paired_bootstrap([], [], key_seed=0).mean)
    one = metrics.paired_bootstrap([3.0], [1.0], key_seed=0)
    assert one.mean == 2 and math.isnan(one.p) and one.count == 1
    with pytest.raises(ValueError, match="a has 1 values, b has 2"):
        metrics.paired_bootstrap([1.0], [1.0, 2.0], key_seed=0)


def test_summarize_scores():
    rows = [{"f1": 10.0, "em": 0.0}, {"f1": 20.0, "em": NAN}, {"f1": 60.0, "rare": 7.0}]
    got = metrics.summarize_scores(rows, 1, samples=500)
    assert got["f1"].mean == 30 and got["f1"].count == 3 and 10 <= got["f1"].low <= 30 <= got["f1"].high <= 60
    assert got["em"].mean == 0 and got["em"].count == 1 and math.isnan(got["em"].low)
    assert got["rare"].mean == 7 and got["rare"].count == 1
    assert metrics.summarize_scores([]) == {}
    assert metrics.summarize_scores(rows, 1, samples=500)["f1"] == got["f1"]


def test_summarize_scores_is_the_bootstrap_of_each_score():
    values = np.random.default_rng(0).normal(size=50).tolist()
    got = metrics.summarize_scores([{"x": v} for v in values], 4)["x"]
    low, high = metrics.bootstrap_interval(values, key_seed=4)
    assert (got.low, got.high) == pytest.approx((low, high))


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
    assert metrics.add(got["evidence_kept"], got["rest_kept"]) == got["all_kept"]
    assert got["evidence_precision"][1] == got["all_kept"][0]


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 5))
def test_random_selection_has_a_ratio_near_one(documents, seed):
    rng = np.random.default_rng(seed)
    rows = [metrics.evidence_scores(rng.random(4000) < 0.3, rng.random(4000) < 0.1) for _ in range(documents)]
    assert metrics.evidence_summary(rows, samples=50)["likelihood_ratio"].mean == pytest.approx(1, abs=0.25)
