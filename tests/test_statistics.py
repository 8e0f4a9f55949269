"""Statistics over documents and seeds, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from jax_simcas.evaluation import bootstrap
from jax_simcas.experiments import statistics
from jax_simcas.experiments.statistics import Results


def results(by_seed, documents="d", **more):
    """Results with one score, f1, given as seed -> values of the documents."""
    pairs = lambda values: [{"f1": (value, 1.0), **more} for value in values]
    return Results(documents, {seed: pairs(values) for seed, values in by_seed.items()})


A = results({0: [100.0, 0.0, 50.0, 50.0], 1: [100.0, 100.0, 50.0, 50.0]})
B = results({0: [90.0, 0.0, 40.0, 50.0], 1: [90.0, 100.0, 40.0, 50.0], 2: [0.0, 0.0, 0.0, 0.0]})


def test_mean_deviation_and_interval():
    got = statistics.compute(A, None)["f1"]
    assert got.seeds == {0: 50.0, 1: 75.0} and got.score.mean == 62.5 and got.score.count == 4
    assert got.deviation == pytest.approx(math.sqrt(2 * 12.5**2))  # (n - 1) below
    assert got.difference is None
    # Documents are drawn with both of their seeds: their means are what a bootstrap of the mean is given.
    expected = bootstrap.summarize_scores([{"mean": value} for value in (100, 50, 50, 50)])["mean"]
    assert got.score[1:3] == expected[1:3]
    assert math.isnan(statistics.compute(results({0: [1.0, 2.0]}), None)["f1"].deviation)


def test_differences_are_paired_over_the_seeds_of_both():
    got = statistics.compute(B, A)["f1"]
    assert got.seeds[2] == 0.0 and got.score.mean == pytest.approx(460 / 12)
    assert got.difference.mean == -5.0 and got.difference.count == 4
    # -10, 0, -10, 0 in each seed: far surer than either mean.
    expected = bootstrap.paired_difference([90, 50, 40, 50], [100, 50, 50, 50], seed=0)
    assert (got.difference.low, got.difference.high) == (expected.low, expected.high) == (-10.0, 0.0)
    none_shared = statistics.compute(results({7: [1.0, 2.0, 3.0, 4.0]}), A)["f1"]
    assert none_shared.difference is None and none_shared.over_seeds is None


def test_differences_over_seeds_have_a_t_interval():
    base = {0: [10.0, 20.0], 1: [30.0, 40.0], 2: [50.0, 60.0]}
    other = {0: [11.0, 21.0], 1: [34.0, 44.0], 2: [54.0, 64.0], 3: [0.0, 0.0]}  # 1, 4 and 4 more
    got = statistics.compute(results(other), results(base))["f1"].over_seeds
    half = 4.302653 * math.sqrt(3) / math.sqrt(3)  # t of 2 degrees of freedom; the deviation of 1, 4, 4 is sqrt(3)
    assert got == pytest.approx((3.0, 3.0 - half, 3.0 + half, 3))
    one = statistics.compute(results({0: [1.0, 2.0]}), results(base))["f1"].over_seeds
    assert one.count == 1 and math.isnan(one.low)


def test_shares_are_of_all_documents_together():
    record = {"scores": {"f1": 50.0, "broken": None}, "kept": 2, "candidates": 8, "nll": [3.0, 2]}
    evidence = {"evidence_kept": [1, 4], "evidence_precision": [1, 2], "all_kept": [2, 8], "rest_kept": [1, 4]}
    first = statistics.measures_of(record | {"evidence": evidence})
    assert first == {
        "f1": (50.0, 1.0),
        "nll": (3.0, 2.0),
        "kept %": (200.0, 8.0),
        "evidence recall %": (100.0, 4.0),
        "others kept %": (100.0, 4.0),
        "evidence precision %": (100.0, 2.0),
    }
    attended = statistics.measures_of(record | {"evidence": evidence | {"evidence_attended": [0.5, 2]}})
    assert attended == first | {"evidence attended %": (50.0, 2.0)}
    second = statistics.measures_of(record | {"kept": 8, "evidence": None, "nll": None})
    got = statistics.compute(Results("d", {0: [first, second]}), None)
    assert {name: s.score.mean for name, s in got.items()} == {
        "f1": 50.0,
        "nll": 1.5,
        "kept %": 62.5,
        "evidence recall %": 25.0,
        "others kept %": 25.0,
        "evidence precision %": 50.0,
        "times as likely": 1.0,
    }
    assert got["nll"].score.count == 1 and got["kept %"].score.count == 2
    assert list(statistics.compute(Results("d", {0: [first]}), None, ("nll", "f1", "rouge1"))) == ["nll", "f1"]


def test_how_much_likelier_evidence_is_kept_is_a_ratio_of_pooled_shares():
    document = lambda evidence, others: {"evidence recall %": evidence, "others kept %": others}
    one = [document((200.0, 4.0), (100.0, 10.0)), document((100.0, 4.0), (200.0, 20.0))]
    two = [document((400.0, 4.0), (100.0, 10.0)), document((200.0, 4.0), (200.0, 20.0))]
    got = statistics.compute(Results("d", {0: one, 1: two}), Results("d", {0: two, 1: one}))["times as likely"]
    assert got.seeds == pytest.approx({0: 3.75, 1: 7.5}) and got.deviation == pytest.approx(3.75 / math.sqrt(2))
    assert got.score.mean == pytest.approx(5.625) and got.score.low < 5.625 < got.score.high
    assert got.difference is None and got.over_seeds is None
    nothing_else = Results("d", {0: [document((200.0, 4.0), (0.0, 10.0))]})
    assert statistics.compute(nothing_else, None)["times as likely"].seeds == {0: math.inf}


def test_a_ratio_without_anything_in_it_is_left_out():
    got = statistics.compute(Results("d", {0: [{"evidence recall %": (0.0, 0.0)}]}), None)
    assert got == {}


def test_pooled_differences_equal_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    rows = [{"a": (x, 1.0), "b": (y, 1.0)} for x, y in zip(a, b, strict=True)]
    got = bootstrap.pool_scores(rows, 3, differences={"gap": ("a", "b")})["gap"]
    expected = bootstrap.paired_difference(a, b, seed=3)
    assert got.mean == pytest.approx(expected.mean) and got.count == 40
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
