"""Bootstrap intervals against hand-worked numbers, the normal distribution, and what must hold for any sample."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.evaluation import bootstrap

NAN = math.nan
scores = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


def interval(values, **options):
    """The interval of the mean of one score."""
    got = bootstrap.summarize_scores([{"x": float(value)} for value in values], **options)
    return (got["x"].low, got["x"].high) if got else (NAN, NAN)


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 9))
def test_interval_holds_the_mean_and_lies_within_the_values(values, seed):
    low, high = interval(values, seed=seed, samples=200)
    mean = float(np.mean(values))
    assert low <= mean <= high
    assert min(values) - 1e-9 <= low and high <= max(values) + 1e-9
    assert (low, high) == interval(np.array(values), seed=seed, samples=200)


def test_interval_is_that_of_the_normal_for_many_values():
    values = np.random.default_rng(1).normal(10, 2, 2000)
    low, high = interval(values, seed=0)
    error = values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = interval(values, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_of_two_values_is_both():
    # A resample is all one value with probability 1/2.
    assert interval([0.0, 1.0], seed=0) == (0, 1)
    assert interval([3, 3, 3], seed=0) == (3, 3)


def test_no_interval_without_two_values():
    for values in ([], [5.0]):
        assert all(math.isnan(x) for x in interval(values, seed=0))


def test_blocks_do_not_change_the_draw(monkeypatch):
    values = list(range(7))
    whole = interval(values, seed=3, samples=100)
    monkeypatch.setattr(bootstrap, "_BLOCK", 1)
    assert interval(values, seed=3, samples=100) == whole


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"values": [1.0, 2.0], "samples": 0}, "samples=0"),
        ({"values": [1.0, 2.0], "level": 1.0}, "level=1.0"),
    ],
)
def test_bootstrap_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        interval(**arguments)


def test_paired_bootstrap_sees_a_small_constant_gain_in_noisy_scores():
    rng = np.random.default_rng(0)
    b = rng.normal(50, 20, 100)
    a = b + 1 + rng.normal(0, 0.5, 100)
    better = bootstrap.paired_difference(a, b, seed=0)
    assert better.mean == pytest.approx(1, abs=0.2) and 0 < better.low < better.high
    assert better.p == pytest.approx(2 / 2001) and better.count == 100
    worse = bootstrap.paired_difference(b, a, seed=0)
    assert (worse.mean, worse.low, worse.high) == pytest.approx((-better.mean, -better.high, -better.low))
    same = bootstrap.paired_difference(a, a, seed=0)
    assert same[:4] == (0, 0, 0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=20))
def test_paired_p_is_a_probability_and_agrees_with_the_interval(pairs):
    a, b = zip(*pairs, strict=True)
    got = bootstrap.paired_difference(a, b, seed=0, samples=300)
    assert 0 < got.p <= 1
    if got.low > 0 or got.high < 0:
        assert got.p < 0.1
    assert got.low <= got.mean <= got.high


def test_paired_bootstrap_of_little():
    assert math.isnan(bootstrap.paired_difference([], [], seed=0).mean)
    one = bootstrap.paired_difference([3.0], [1.0], seed=0)
    assert one.mean == 2 and math.isnan(one.p) and one.count == 1
    with pytest.raises(ValueError, match="a has 1 values, b has 2"):
        bootstrap.paired_difference([1.0], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="b: expected finite"):
        bootstrap.paired_difference([1.0, 2.0], [1.0, math.inf], seed=0)
    with pytest.raises(ValueError, match=r"a: .*shape \[2, 2\]"):
        bootstrap.paired_difference(np.zeros((2, 2)), np.zeros((2, 2)), seed=0)


def test_summarize_scores():
    rows = [{"f1": 10.0, "em": 0.0}, {"f1": 20.0, "em": NAN}, {"f1": 60.0, "rare": 7.0}]
    got = bootstrap.summarize_scores(rows, 1, samples=500)
    assert got["f1"].mean == 30 and got["f1"].count == 3 and 10 <= got["f1"].low <= 30 <= got["f1"].high <= 60
    assert got["em"].mean == 0 and got["em"].count == 1 and math.isnan(got["em"].low)
    assert got["rare"].mean == 7 and got["rare"].count == 1
    assert bootstrap.summarize_scores([]) == {}
    assert bootstrap.summarize_scores(rows, 1, samples=500)["f1"] == got["f1"]
