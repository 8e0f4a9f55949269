"""Tables of numbers with intervals."""

import math

from hypothesis import given
from hypothesis import strategies as st

from jax_simcas.common import tables
from jax_simcas.evaluation.bootstrap import Score

NAN = math.nan
WITHOUT_INTERVAL = Score(5.0, NAN, NAN, 1)


def test_format_score():
    assert tables.format_score(Score(12.34, 11.0, 13.46, 9)) == "12.3 [11.0, 13.5]"
    assert tables.format_score(Score(12.34, 11.0, 13.46, 9), digits=2) == "12.34 [11.00, 13.46]"
    assert tables.format_score(WITHOUT_INTERVAL) == "5.0"
    assert tables.format_score(Score(NAN, NAN, NAN, 0)) == "–"
    assert tables.format_score(Score(math.inf, 2.0, math.inf, 3)) == "inf [2.0, inf]"


def test_markdown_table():
    rows = [
        {"variant": "SimCAS", "f1": Score(12.34, 11.0, 13.46, 9), "s": 1.23456, "n": 7},
        {"variant": "a|b\nc", "f1": None, "s": NAN},
    ]
    assert tables.markdown_table(rows, ["variant", "f1", "s", "n"]) == (
        "| variant |                f1 |     s |   n |\n"
        "| ------- | ----------------: | ----: | --: |\n"
        "| SimCAS  | 12.3 [11.0, 13.5] | 1.235 |   7 |\n"
        "| a\\|b c  |                 – |     – |   – |"
    )
    assert tables.markdown_table([], ["a"]) == "| a   |\n| --- |"


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text(max_size=8) | st.floats() | st.none()), max_size=5))
def test_every_table_is_aligned(rows):
    lines = tables.markdown_table(rows, ["a", "b", "c"]).split("\n")
    assert len(lines) == 2 + len(rows)
    assert len({len(line) for line in lines}) == 1
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)
