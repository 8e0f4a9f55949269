"""What an experiment may be."""

import pytest

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant, cells


def test_cells_are_labelled_by_what_distinguishes_them():
    variants = (Variant("a", line="both", x=1), Variant("b"))
    evaluations = (Evaluation("short", x=4), Evaluation("long"))
    two = cells(Experiment(variants, evaluations))
    assert [cell.label for cell in two] == ["a, short", "a, long", "b, short", "b, long"]
    assert [cell.x for cell in two] == [4, 1, 4, None] and [cell.line for cell in two] == ["both", "both", "b", "b"]
    assert [cell.label for cell in cells(Experiment(variants))] == ["a", "b"]
    assert [cell.label for cell in cells(Experiment(variants[:1], evaluations))] == ["short", "long"]


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
