"""The page of kept tokens: every character of the text once, kept ones marked, nothing taken as HTML."""

import re
from html import unescape

import numpy as np
import pytest

from jax_simcas.evaluation.highlight import page, shaded
from jax_simcas.evaluation.summarizer import ReadTokens, Summary

TEXT = "one <two> & three\nfour é five"


def summary(spans, kept, chunks=None, text=TEXT):
    n = len(spans)
    read = ReadTokens(
        np.array(spans).reshape(n, 2),
        np.array(chunks or [0] * n),
        np.linspace(0, 1, n),
        np.array(kept, bool),
    )
    return Summary("a <b> summary", text, -1.0, n, 0, 0, 1, n, int(sum(kept)), [], read, {})


def visible(html):
    """What a browser shows, without the numbers of chunks."""
    return unescape(re.sub(r"<[^>]*>", "", re.sub(r"<b>\d+</b>", "", html)))


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 3), (4, 9), (10, 11), (12, 17), (18, 22)],
        [(0, 3), (3, 9), (9, 9), (9, 17)],  # without gaps, and one of no characters
        [(23, 24), (23, 24), (25, 29)],  # two tokens of one character
        [],
    ],
)
def test_the_text_is_whole(spans):
    assert visible("".join(shaded(summary(spans, [i % 2 for i in range(len(spans))])))) == TEXT


def test_kept_tokens_are_marked_with_their_probability_and_the_rest_of_the_text_is_faint():
    html = "".join(shaded(summary([(0, 3), (4, 9), (10, 11)], [0, 1, 1])))
    assert [visible(mark) for mark in re.findall(r"<mark.*?</mark>", html)] == ["<two>", "&"]
    assert re.findall(r"keep-probability ([\d.]+)", html) == ["0.000", "0.500", "1.000"]
    assert unescape(re.search(r"<i>(.*)</i>", html, re.DOTALL)[1]) == TEXT[11:]


def test_each_chunk_begins_with_its_number():
    html = "".join(shaded(summary([(0, 3), (4, 9), (10, 11)], [0, 1, 1], chunks=[0, 0, 2])))
    assert re.findall(r"<b>(\d)</b>", html) == ["1", "3"] and html.index("<b>3</b>") < html.index("&amp;</mark>")


def test_a_page_escapes_what_it_shows_and_asks_for_nothing():
    html = page([("a<1>.txt", summary([(0, 3)], [1])), ("b", summary([], []))])
    assert "a&lt;1&gt;.txt" in html and "a &lt;b&gt; summary" in html and "<two>" not in html
    assert html.count("<figure>") == 2 and not re.search("src=|href=|http|<script|@import|url", html)
