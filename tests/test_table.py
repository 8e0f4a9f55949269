"""The table of an experiment: which cell is compared with which, the Markdown and the CSV."""

import csv
import io

from jax_simcas.evaluation import bootstrap
from jax_simcas.experiments import spec, table
from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.experiments.statistics import Results


def results(by_seed, documents="d", **more):
    """Results with one score, f1, given as seed -> values of the documents."""
    pairs = lambda values: [{"f1": (value, 1.0), **more} for value in values]
    return Results(documents, {seed: pairs(values) for seed, values in by_seed.items()})


A = results({0: [100.0, 0.0, 50.0, 50.0], 1: [100.0, 100.0, 50.0, 50.0]})
B = results({0: [90.0, 0.0, 40.0, 50.0], 1: [90.0, 100.0, 40.0, 50.0], 2: [0.0, 0.0, 0.0, 0.0]})


def labels(experiment, documents):
    """label -> label of its baseline."""
    every = spec.cells(experiment)
    among = {cell.label: Results(documents(cell), {0: []}) for cell in every}
    return {cell.label: table.baseline_of(cell, among, every) for cell in every}


def test_baselines():
    two = (Variant("a"), Variant("b"))
    assert labels(Experiment(two), lambda cell: "d") == {"a": "", "b": "a"}
    policies = Experiment((Variant("a"),), (Evaluation("learned"), Evaluation("random", "random")))
    assert labels(policies, lambda cell: "d") == {"learned": "", "random": "learned"}
    lengths = Experiment(two, (Evaluation("4", x=4), Evaluation("8", x=8)))
    expected = {"a, 4": "", "a, 8": "", "b, 4": "a, 4", "b, 8": "a, 8"}
    assert labels(lengths, lambda cell: cell.evaluation.name) == expected
    lines = [Variant(f"{line}{x}", line=line, x=x) for line in "ab" for x in (1, 2)]
    assert labels(Experiment(tuple(lines)), lambda cell: "d") == {"a1": "", "a2": "", "b1": "a1", "b2": "a2"}
    one_line = Experiment(tuple(Variant(str(x), line="a", x=x) for x in (1, 2)))
    assert labels(one_line, lambda cell: "d") == {"1": "", "2": "1"}


def test_the_table_as_text_and_as_csv():
    experiment = Experiment((Variant("SimCAS", line="all", x=1), Variant("one chunk", line="all", x=2)))
    rows = table.table_rows(experiment, {"SimCAS": A, "one chunk": B})
    text = table.markdown("ablation", rows, ["late, seed 0: training"])
    means, differences, over_seeds = (block for block in text.split("\n\n") if block.startswith("| "))
    _, low, high, _ = bootstrap.summarize_scores([{"mean": value} for value in (100, 50, 50, 50)])["mean"]
    assert f"62.5 ± 17.7 [{low:.1f}, {high:.1f}]" in means.splitlines()[2]
    assert [cell.strip() for cell in differences.splitlines()[2].split("|")] == [
        *("", "one chunk", "SimCAS", "-5.0 [-10.0, 0.0]", "")
    ]
    assert [cell.strip() for cell in over_seeds.splitlines()[2].split("|")] == [
        *("", "one chunk", "SimCAS", "2", "-5.0 [-5.0, -5.0]", "")
    ]
    assert text.startswith("# ablation\n") and "4 documents" in text and "- late, seed 0: training" in text
    records = list(csv.DictReader(io.StringIO(table.csv_text(rows))))
    assert [row["run"] for row in records] == ["SimCAS", "one chunk"]
    assert (records[0]["mean"], records[0]["by_seed"], records[0]["difference"]) == ("62.5", "0=50 1=75", "")
    assert (records[1]["difference"], records[1]["difference_low"], records[1]["minus"]) == ("-5", "-10", "SimCAS")
    assert (records[0]["over_seeds_low"], records[1]["over_seeds_low"], records[1]["over_seeds_high"]) == (
        "",
        "-5",
        "-5",
    )
    assert (records[1]["seeds"], records[1]["documents"], records[1]["x"]) == ("3", "4", "2")


def test_nothing_finished_is_a_table_too():
    text = table.markdown("ablation", [], ["a, seed 0: training"])
    assert "- a, seed 0: training" in text and table.csv_text([]).count("\n") == 1
