"""The page of what was kept, without a browser: what it holds, that nothing in it is taken as HTML, its colours."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jax_simcas.evaluation.highlight import Linked, Shown, index, merged, page, varints
from jax_simcas.evaluation.summarizer import ReadTokens
from jax_simcas.evaluation.written import WrittenTokens, spelled_out, token_spans, written_tokens
from jax_simcas.method.attention import Attended

TEXT = "one <two> & three\nfour é 🌳 five"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!--{{data}}\"'&lt;\\u003c\x00\r\ud800"


def shown(spans=(), kept=(), chunks=None, text=TEXT, **more):
    n = len(spans)
    read = ReadTokens(
        np.array(spans, int).reshape(n, 2),
        np.array(chunks or [0] * n, int),
        np.linspace(0, 1, n),
        np.array(kept, bool),
    )
    return Shown(**{"name": "a<1>.txt", "document": text, "summary": "a <b> summary", "read": read} | more)


class Parsed(HTMLParser):
    """A page's elements with their attributes, and the text of each kind of element."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self._open = [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag  # nothing is left open, nothing closed twice

    def handle_data(self, data):
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data


def data_of(html):
    (found,) = re.findall(r'<script type="application/json" id="data">([^<]*)</script>', html)
    return json.loads(found)


def numbers(column):
    """What `varints` wrote, by its definition."""
    out, value, shift = [], 0, 0
    for byte in base64.b64decode(column):
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            out.append(value // 2 if value % 2 == 0 else -(value + 1) // 2)
            value = shift = 0
    return out


def utf16(text, start, end):
    """The part of a text between two places that JavaScript counts."""
    return text.encode("utf-16-le", "surrogatepass")[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")


@given(st.lists(st.integers(-(2**30), 2**30)))
def test_varints_are_read_back(values):
    assert numbers(base64.b64encode(varints(np.array(values, int)).tobytes())) == values


@pytest.mark.parametrize(
    ("spans", "chunks"),
    [
        ([(0, 3), (4, 9), (10, 11), (12, 17), (23, 24), (25, 26), (27, 31)], [0, 0, 0, 1, 1, 1, 3]),
        ([(0, 3), (3, 9), (9, 9), (9, 17)], [0, 0, 2, 2]),  # without gaps, and one of no characters
        ([(25, 26), (25, 26), (27, 31)], None),  # two tokens of one character
        ([], None),
    ],
)
def test_the_script_gets_every_token(spans, chunks):
    kept = [i % 2 == 0 for i in range(len(spans))]
    data = data_of(page(shown(spans, kept, chunks)))
    assert data["document"] == TEXT
    columns, at, got = data["tokens"], 0, []
    for gap, length in np.array(numbers(columns["spans"])).reshape(-1, 2).tolist():
        got.append(utf16(TEXT, at + gap, at + gap + length))
        at += gap + length
    assert got == [TEXT[start:end] for start, end in spans]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(columns["kept"]), np.uint8), bitorder="little")
    assert bits[: len(spans)].tolist() == kept
    probabilities = np.frombuffer(base64.b64decode(columns["keep"]), "<u2") / 65535
    np.testing.assert_allclose(probabilities, np.linspace(0, 1, len(spans)), atol=1e-5)
    assert numbers(columns["chunks"]) == (np.bincount(chunks or [0] * len(spans)).tolist() if spans else [])


def test_the_script_gets_summary_attention_and_evidence_in_its_own_counting():
    place = np.array([[[25, 26], [0, 3]], [[27, 31], [-1, -1]]])
    written = WrittenTokens(
        np.array([[0, 1], [2, 5]]), np.array([[1, 0], [1, 0]]), place, np.array([[0.5, 0.25], [0.4, 0.0]]), np.ones(2)
    )
    given_spans = [(27, 29), (0, 3), (29, 31), (5, 5)]
    data = data_of(page(shown([(0, 3), (25, 26), (27, 31)], [1, 1, 1], written=written, evidence=given_spans)))
    (tree, one), (five,) = data["written"]["places"]  # what weighs nothing is no place
    assert [utf16(TEXT, *at[1:3]) for at in (tree, one, five)] == ["🌳", "one", "five"]
    assert [at[0] for at in (tree, one, five)] == [1, 0, 1] and tree[3] == 0.5
    assert [utf16("a <b> summary", *span) for span in data["written"]["spans"]] == ["a", "<b>"]
    assert [utf16(TEXT, *span) for span in data["evidence"]] == ["one", "five"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8))
def test_merged_spans_cover_the_same_characters_and_do_not_touch(spans):
    covered = lambda some: {i for start, end in some for i in range(start, end)}
    out = merged(spans)
    assert covered(out) == covered(spans)
    assert all(end < start for (_, end), (start, _) in pairwise(out))


def test_nothing_that_users_give_is_taken_as_html():
    more = {"query": EVIL, "references": (EVIL, EVIL), "scores": {EVIL: 1.0}, "evidence": [(0, 9)]}
    evil = shown([(0, 9), (9, 20)], [1, 0], text=EVIL, name=EVIL, summary=EVIL, **more)
    plain = shown(
        [(0, 9), (9, 20)], [1, 0], text="x" * 40, **more | {"query": "", "references": ("", ""), "scores": {"x": 1.0}}
    )
    html = page(evil)
    html.encode()  # no lone surrogate
    parsed = Parsed(html)
    assert parsed.elements == Parsed(page(plain)).elements
    assert parsed.text["h1"] == EVIL.replace("\ud800", "\ufffd")
    data = data_of(html)
    assert data["document"] == data["summary"] == data["query"] == EVIL


def test_a_page_asks_for_nothing_and_runs_only_its_own_script():
    html = page(shown([(0, 3)], [1]))
    parsed = Parsed(html)
    named = [value for _, its in parsed.elements for key, value in its.items() if key in ("src", "href")]
    assert named == ["#document"]
    assert not any(key.startswith("on") or key == "style" for _, its in parsed.elements for key in its)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|innerHTML|fetch\(|eval\(", html)
    (policy,) = [its["content"] for tag, its in parsed.elements if tag == "meta" and "http-equiv" in its]
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1] for tag in ("style", "script"))
    digest = lambda text: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert [part.strip() for part in policy.split(";")] == [
        *("default-src 'none'", "base-uri 'none'", "form-action 'none'"),
        *(f"style-src {digest(style)}", f"script-src {digest(script)}"),
    ]


def test_a_page_says_what_was_read_and_kept_in_words():
    html = page(shown([(0, 3), (4, 9), (10, 11)], [0, 1, 1], [0, 0, 1], cut_tokens=7, evidence=[(0, 9)], query="Who?"))
    lines = re.findall(r"<li>(.*?)</li>", html)
    assert lines == [
        "3 tokens in 2 chunks",
        "2 of them kept (66.7 %)",
        "7 more tokens were not read",
        "of the marked evidence, 1 of 2 tokens kept",
    ]
    assert "Query: Who?" in html and "a &lt;b&gt; summary" in html
    assert "(an empty summary)" in page(shown(summary=""))


def test_every_control_has_a_name_and_every_label_its_control():
    elements = Parsed(page(shown([(0, 3)], [1]))).elements
    ids = [its["id"] for _, its in elements if "id" in its]
    assert len(ids) == len(set(ids))
    for tag, its in elements:
        if tag == "label":
            assert its["for"] in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert all(each in ids for each in its.get(name, "").split())
        if tag in ("svg", "aside") or its.get("role") in ("group", "region"):
            assert its.get("aria-label") or its.get("aria-labelledby")
    assert ("html", {"lang": "en"}) in elements


def test_an_index_links_to_pages():
    documents = [
        Linked(EVIL, "a_files/1.html", {"kept": "10 %", EVIL: EVIL}),
        Linked("b", "a_files/2.html", {"f1": "3"}),
    ]
    parsed = Parsed(index(EVIL, documents))
    assert [its["href"] for tag, its in parsed.elements if tag == "a"] == ["a_files/1.html", "a_files/2.html"]
    assert not {tag for tag, _ in parsed.elements} & {"script", "img"}


# Colours


def color(value):
    """RGB from 0 to 1."""
    if value.startswith("#"):
        return np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.array([int(part) for part in value.split()]) / 255


def contrast(one, other):
    """WCAG 2.2's ratio of two colours."""

    def luminance(rgb):
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_is_what_wcag_asks_for(dark):
    style = resources.files("jax_simcas.evaluation").joinpath("pages/style.css").read_text()
    names = {}
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)[: 1 + dark]:
        names |= {key: color(value) for key, value in re.findall(r"--(\w+): ([^;]+);", block)}
    low, rise = map(float, re.search(r"rgb\(var\(--kept\) / calc\(([.\d]+) \+ ([.\d]+) \* var\(--p", style).groups())
    shades = [a * names["kept"] + (1 - a) * names["paper"] for a in (low, low + rise)]
    for text, grounds in {
        "ink": [names["paper"], names["panel"], names["hit"], *shades],
        "faint": [names["paper"], names["panel"]],
    }.items():
        assert all(contrast(names[text], ground) >= 4.5 for ground in grounds), text
    for mark in ("kept", "evidence", "attended", "line"):  # what must be seen, though it is no text
        assert contrast(names[mark], names["paper"]) >= 3, mark


# Tokens of summaries, and chunks that came as token ids


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level vocabulary of single bytes and a few pairs: 🌳 is four tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the tree the tree"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>")


def encoded(tokenizer, text):
    return np.array([2, 0, *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, 2, 1, 1])


def test_the_tokens_of_a_summary_cover_it(tokenizer):
    text = "the 🌳 tree é"
    spans = token_spans(tokenizer, encoded(tokenizer, f" {text} "), text)
    assert spans[0].tolist() == spans[1].tolist() == [0, 0] and spans[-1].tolist() == [len(text)] * 2
    assert (spans[1:, 0] == spans[:-1, 1]).all()
    pieces = [text[start:end] for start, end in spans if start < end]
    assert "".join(pieces) == text and pieces[0] == "the" and any("🌳" in piece for piece in pieces)


def test_a_decoder_that_takes_back_a_space_keeps_the_pieces_whole():
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "old": 1, "oak": 2, ".": 3}, unk_token="[PAD]"))
    made.decoder = decoders.WordPiece(cleanup=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]")
    spans = token_spans(tokenizer, np.array([0, 1, 2, 3]), "old oak.")
    assert ["old oak."[start:end] for start, end in spans] == ["", "old", " oak", "."]


def test_written_tokens_find_their_places(tokenizer):
    ids = np.array([2, 0, *tokenizer.backend_tokenizer.encode("tree", add_special_tokens=False).ids, 2])
    steps = len(ids) - 1
    candidate = np.tile([4, 2, 8], (steps, 1))  # chunk 1's second candidate; the first chunk's last; none
    attended = Attended(candidate, np.tile([0.5, 0.3, 0.0], (steps, 1)), np.full(steps, 0.1))
    offsets = np.array([[[-1, -1], [0, 3], [4, 7], [-1, -1]], [[-1, -1], [8, 9], [10, 12], [-1, -1]]])
    written = written_tokens(tokenizer, ids, "tree", attended, offsets)
    assert "".join("tree"[start:end] for start, end in written.span) == "tree"
    assert written.chunk[0].tolist() == [1, 0, 1] and written.place[0, :2].tolist() == [[10, 12], [-1, -1]]
    assert written.weight[0].tolist() == [0.5, 0.3, 0.0]


def test_chunks_of_token_ids_are_spelled_out(tokenizer):
    content = tokenizer.backend_tokenizer.encode("the 🌳", add_special_tokens=False).ids
    size = len(content) + 2
    ids = np.array([[0, *content, 2], [0, content[0], *[1] * (size - 3), 2]])
    mask = ids != 1
    text, offsets = spelled_out(tokenizer, ids, mask)
    assert text == f"the 🌳\n{tokenizer.decode(content[:1])}\n"
    own = offsets[..., 0] >= 0
    assert (own == (mask & (np.arange(size) > 0) & (np.arange(size) < size - 1))).all()
    assert "".join(text[start:end] for start, end in offsets[0][own[0]]) == "the 🌳"
