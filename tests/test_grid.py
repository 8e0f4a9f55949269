"""The table of an experiment, against numbers worked out by hand."""

import csv
import io
import math

import numpy as np
import pytest

from jax_simcas.evaluation import metrics
from jax_simcas.experiments import spec
from jax_simcas.experiments.spec import Evaluation, Experiment, Outcome, Variant


def outcome(by_seed, documents="d", **more):
    """An outcome with one score, f1: seed -> values of its documents."""
    pairs = lambda values: [{"f1": (value, 1.0), **more} for value in values]
    return Outcome(documents, {seed: pairs(values) for seed, values in by_seed.items()})


A = outcome({0: [100.0, 0.0, 50.0, 50.0], 1: [100.0, 100.0, 50.0, 50.0]})
B = outcome({0: [90.0, 0.0, 40.0, 50.0], 1: [90.0, 100.0, 40.0, 50.0], 2: [0.0, 0.0, 0.0, 0.0]})


def test_mean_deviation_and_interval():
    got = spec.statistics(A, None)["f1"]
    assert got.seeds == {0: 50.0, 1: 75.0} and got.score.mean == 62.5 and got.score.count == 4
    assert got.deviation == pytest.approx(math.sqrt(2 * 12.5**2))  # (n - 1) below
    assert got.difference is None
    # Documents are drawn with both of their seeds: their means are what a bootstrap of the mean is given.
    assert (got.score.low, got.score.high) == metrics.bootstrap_interval([100, 50, 50, 50], key_seed=0)
    assert math.isnan(spec.statistics(outcome({0: [1.0, 2.0]}), None)["f1"].deviation)


def test_differences_are_paired_over_the_seeds_of_both():
    got = spec.statistics(B, A)["f1"]
    assert got.seeds[2] == 0.0 and got.score.mean == pytest.approx(460 / 12)
    assert got.difference.mean == -5.0 and got.difference.count == 4
    # -10, 0, -10, 0 in each seed: far surer than either mean.
    expected = metrics.paired_bootstrap([90, 50, 40, 50], [100, 50, 50, 50], key_seed=0)
    assert (got.difference.low, got.difference.high) == (expected.low, expected.high) == (-10.0, 0.0)
    none_shared = spec.statistics(outcome({7: [1.0, 2.0, 3.0, 4.0]}), A)["f1"]
    assert none_shared.difference is None and none_shared.over_seeds is None


def test_differences_over_seeds_have_a_t_interval():
    base = {0: [10.0, 20.0], 1: [30.0, 40.0], 2: [50.0, 60.0]}
    other = {0: [11.0, 21.0], 1: [34.0, 44.0], 2: [54.0, 64.0], 3: [0.0, 0.0]}  # 1, 4 and 4 more
    got = spec.statistics(outcome(other), outcome(base))["f1"].over_seeds
    half = 4.302653 * math.sqrt(3) / math.sqrt(3)  # t of 2 degrees of freedom; the deviation of 1, 4, 4 is sqrt(3)
    assert got == pytest.approx((3.0, 3.0 - half, 3.0 + half, 3))
    one = spec.statistics(outcome({0: [1.0, 2.0]}), outcome(base))["f1"].over_seeds
    assert one.count == 1 and math.isnan(one.low)


def test_shares_are_of_all_documents_together():
    record = {"scores": {"f1": 50.0, "broken": None}, "kept": 2, "candidates": 8, "nll": [3.0, 2]}
    evidence = {"evidence_kept": [1, 4], "evidence_precision": [1, 2], "all_kept": [2, 8], "rest_kept": [1, 4]}
    first = spec.measures_of(record | {"evidence": evidence})
    assert first == {
        "f1": (50.0, 1.0),
        "nll": (3.0, 2.0),
        "kept %": (200.0, 8.0),
        "evidence recall %": (100.0, 4.0),
        "evidence precision %": (100.0, 2.0),
    }
    second = spec.measures_of(record | {"kept": 8, "evidence": None, "nll": None})
    got = spec.statistics(Outcome("d", {0: [first, second]}), None)
    assert {name: s.score.mean for name, s in got.items()} == {
        "f1": 50.0,
        "nll": 1.5,
        "kept %": 62.5,
        "evidence recall %": 25.0,
        "evidence precision %": 50.0,
    }
    assert got["nll"].score.count == 1 and got["kept %"].score.count == 2
    assert list(spec.statistics(Outcome("d", {0: [first]}), None, ("nll", "f1", "rouge1"))) == ["nll", "f1"]


def test_a_ratio_without_anything_in_it_is_left_out():
    got = spec.statistics(Outcome("d", {0: [{"evidence recall %": (0.0, 0.0)}]}), None)
    assert got == {}


def labels(experiment, documents):
    """label -> label of its baseline."""
    every = spec.rows(experiment)
    among = {row.label: Outcome(documents(row), {0: []}) for row in every}
    return {row.label: spec.baseline_of(row, among, every) for row in every}


def test_baselines():
    two = (Variant("a"), Variant("b"))
    assert labels(Experiment(two), lambda row: "d") == {"a": "", "b": "a"}
    policies = Experiment((Variant("a"),), (Evaluation("learned"), Evaluation("random", "random")))
    assert labels(policies, lambda row: "d") == {"learned": "", "random": "learned"}
    lengths = Experiment(two, (Evaluation("4", x=4), Evaluation("8", x=8)))
    expected = {"a, 4": "", "a, 8": "", "b, 4": "a, 4", "b, 8": "a, 8"}
    assert labels(lengths, lambda row: row.evaluation.name) == expected
    lines = [Variant(f"{line}{x}", line=line, x=x) for line in "ab" for x in (1, 2)]
    assert labels(Experiment(tuple(lines)), lambda row: "d") == {"a1": "", "a2": "", "b1": "a1", "b2": "a2"}
    one_line = Experiment(tuple(Variant(str(x), line="a", x=x) for x in (1, 2)))
    assert labels(one_line, lambda row: "d") == {"1": "", "2": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ()}, "variants: expected at least one"),
        ({"seeds": (1, 1)}, "seeds=1, 1"),
        ({"variants": (Variant("a b"), Variant("A-b"))}, "differ as names of folders"),
        ({"variants": (Variant("a, b"),)}, "without commas"),
        ({"variants": (Variant("%"),)}, "with letters or digits"),
        ({"evaluations": (Evaluation("x"), Evaluation("x"))}, "evaluations=x, x"),
    ],
)
def test_experiments_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"variants": (Variant("a"),)} | changes)


def test_the_table_as_text_and_as_csv():
    experiment = Experiment((Variant("SimCAS", line="all", x=1), Variant("one chunk", line="all", x=2)))
    lines = spec.table_lines(experiment, {"SimCAS": A, "one chunk": B})
    text = spec.markdown("ablation", lines, ["late, seed 0: training"])
    means, differences, over_seeds = (block for block in text.split("\n\n") if block.startswith("| "))
    low, high = metrics.bootstrap_interval([100, 50, 50, 50], key_seed=0)
    assert f"62.5 ± 17.7 [{low:.1f}, {high:.1f}]" in means.splitlines()[2]
    assert [cell.strip() for cell in differences.splitlines()[2].split("|")] == [
        *("", "one chunk", "SimCAS", "-5.0 [-10.0, 0.0]", "")
    ]
    assert [cell.strip() for cell in over_seeds.splitlines()[2].split("|")] == [
        *("", "one chunk", "SimCAS", "2", "-5.0 [-5.0, -5.0]", "")
    ]
    assert text.startswith("# ablation\n") and "4 documents" in text and "- late, seed 0: training" in text
    rows = list(csv.DictReader(io.StringIO(spec.csv_text(lines))))
    assert [row["run"] for row in rows] == ["SimCAS", "one chunk"]
    assert (rows[0]["mean"], rows[0]["by_seed"], rows[0]["difference"]) == ("62.5", "0=50 1=75", "")
    assert (rows[1]["difference"], rows[1]["difference_low"], rows[1]["minus"]) == ("-5", "-10", "SimCAS")
    assert (rows[0]["over_seeds_low"], rows[1]["over_seeds_low"], rows[1]["over_seeds_high"]) == ("", "-5", "-5")
    assert (rows[1]["seeds"], rows[1]["documents"], rows[1]["x"]) == ("3", "4", "2")


def test_nothing_finished_is_a_table_too():
    text = spec.markdown("ablation", [], ["a, seed 0: training"])
    assert "- a, seed 0: training" in text and spec.csv_text([]).count("\n") == 1


def test_pooled_differences_equal_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    rows = [{"a": (x, 1.0), "b": (y, 1.0)} for x, y in zip(a, b, strict=True)]
    got = metrics.pool_scores(rows, 3, differences={"gap": ("a", "b")})["gap"]
    expected = metrics.paired_bootstrap(a, b, key_seed=3)
    assert got.mean == pytest.approx(expected.mean) and got.count == 40
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
