"""The page of what was kept in a real browser: drawn whole, by keyboard and pointer, and with a million tokens."""

import time
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from test_highlight import EVIL

from jax_simcas.evaluation.highlight import Shown, page
from jax_simcas.evaluation.summarizer import ReadTokens
from jax_simcas.evaluation.written import WrittenTokens

pytestmark = pytest.mark.slow

CHUNK = 100
SUMMARY = "Two 🌳 facts."
LOOKS = {"Two": [(7, 0.5), (250, 0.2)], "🌳": [(250, 0.4)], "facts": [(120, 0.25)]}  # token -> (place, share)


def words(count):
    """`count` words and the characters of each: the tree takes two of JavaScript's units."""
    parts = [f"w{i}" if i % 10 else "🌳" for i in range(count)]
    ends = np.cumsum([len(part) + 1 for part in parts]) - 1
    return " ".join(parts), np.stack([ends - [len(part) for part in parts], ends], axis=1)


def shown(count, **more):
    """Every 25th word was kept, and the one behind it; word i has keep-probability i / count."""
    text, spans = words(count)
    number = np.arange(count)
    return Shown(
        **{
            "name": "a document",
            "document": f"{text}\nnot read, as it is too long",
            "summary": SUMMARY,
            "read": ReadTokens(spans, number // CHUNK, number / count, number % 25 < 2),
            "written": written(spans),
            "evidence": [tuple(spans[120].tolist()), (int(spans[130, 0]), int(spans[132, 1]))],
        }
        | more
    )


def written(spans):
    starts = [SUMMARY.index(word) for word in LOOKS]
    places = [[*looks, (0, 0.0)][:2] for looks in LOOKS.values()]
    token = np.array([[place for place, _ in row] for row in places])
    share = np.array([[share for _, share in row] for row in places])
    ends = [start + len(word) for start, word in zip(starts, LOOKS, strict=True)]
    return WrittenTokens(np.stack([starts, ends], axis=1), token // CHUNK, spans[token], share, np.full(3, 0.125))


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def open_page(tab, tmp_path):
    def opened(what, **options):
        path = Path(tmp_path / "page.html")
        path.write_text(page(what), encoding="utf-8")
        tab.open(path, **options)
        assert not tab.told("Runtime.exceptionThrown", "Log.entryAdded")
        assert {event["request"]["url"] for event in tab.told("Network.requestWillBeSent")} == {path.as_uri()}
        return tab

    return opened


def test_the_text_is_whole_and_what_was_kept_is_marked(open_page):
    what = shown(500)
    tab = open_page(what)
    drawn = "(d => (d.querySelectorAll('h3').forEach(h => h.remove()), d.textContent))($('document').cloneNode(true))"
    assert tab.run(drawn) == what.document
    kept = [25 * i + j for i in range(20) for j in range(2)]
    titles = tab.run("[...document.querySelectorAll('#document mark')].map(m => [+m.dataset.token, m.title])")
    assert titles == [[i, f"keep-probability {i / 500:.3f}, kept"] for i in kept]
    heads = tab.run("[...document.querySelectorAll('h3')].map(h => h.textContent).filter(t => t.startsWith('Chunk'))")
    assert heads == [f"Chunk {k}: 8.0 %8 of 100 kept" for k in range(1, 6)]
    evidence = tab.run("[...document.querySelectorAll('#document .evidence')].map(e => e.textContent).join('|')")
    assert evidence == "🌳|🌳| |w131| |w132"
    unread = tab.run("[...document.querySelectorAll('#document .unread')].map(e => e.textContent)")
    assert unread == ["\nnot read, as it is too long"]


def test_shades_deepen_with_the_probability_and_follow_the_colour_scheme(open_page):
    shades = '[26, 376].map(i => getComputedStyle(document.querySelector(`[data-token="${i}"]`)).backgroundColor)'
    alpha = lambda shade: float(shade.rstrip(")").rpartition(",")[2])
    light = open_page(shown(500))
    low, high = map(alpha, light.run(shades))
    assert 0.1 < low < high < 0.7
    paper = "getComputedStyle(document.body).backgroundColor"
    assert light.run(paper) == "rgb(255, 255, 255)"
    assert open_page(shown(500), dark=True).run(paper) == "rgb(21, 24, 29)"


def test_what_users_give_stays_text(open_page):
    evil = EVIL.replace("alert(1)", "window.hacked = 1")
    read = ReadTokens(np.array([[0, 20], [20, 60]]), np.zeros(2, int), np.ones(2), np.array([True, False]))
    tab = open_page(Shown(evil, evil, evil, read, query=evil, references=(evil,), scores={evil: 1.0}))
    assert tab.run("window.hacked") is None and tab.run("document.querySelectorAll('img').length") == 0
    drawn = "(d => (d.querySelectorAll('h3').forEach(h => h.remove()), d.textContent))($('document').cloneNode(true))"
    assert tab.run(f"{drawn} === data.document")


def test_the_pointer_shows_the_probability(open_page):
    tab = open_page(shown(500))
    tab.point_at('[data-token="7"]')
    assert tab.run("$('token').textContent") == (
        "“w7”: keep-probability 0.014, not kept; chunk 1; attended to for “Two” 50 %."
    )


def test_the_document_is_read_by_keyboard(open_page):
    tab = open_page(shown(500))
    tab.run("$('document').focus()")
    said = lambda: tab.run("$('live').textContent")
    current = lambda: tab.run("+document.querySelector('.current').dataset.token")
    for key, token in [
        *(("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)),
        *(("n", 25), ("n", 50), ("p", 25), ("]", 100), ("]", 200), ("[", 100)),
    ]:
        tab.key(key)
        assert current() == token, key
    assert said() == "“🌳”: keep-probability 0.200, kept; chunk 2."
    tab.point_at("#evidence-next", click=True)
    assert current() == 120 and said().endswith("chunk 2; marked evidence; attended to for “facts” 25 %.")
    tab.point_at("#evidence-next", click=True)
    assert current() == 130
    tab.point_at("#evidence-back", click=True)
    assert current() == 120
    tab.point_at("#evidence-back", click=True)
    assert said() == "No marked evidence there."


def test_a_token_of_the_summary_shows_where_the_decoder_looked(open_page):
    tab = open_page(shown(500))
    assert tab.run("$('summary').textContent") == SUMMARY
    tokens = "[...document.querySelectorAll('#summary .token')]"
    assert tab.run(f"{tokens}.map(t => t.textContent)") == list(LOOKS)
    tab.run(f"{tokens}[0].focus()")
    tab.key("Enter")
    places = lambda: tab.run("[...document.querySelectorAll('#places li')].map(p => p.textContent)")
    assert [place.split(":")[0] for place in places()] == ["50 %, chunk 1", "20 %, chunk 3"]
    assert tab.run("[...document.querySelectorAll('#places strong')].map(p => p.textContent)") == ["w7", "🌳"]
    assert tab.run("$('rest').textContent") == "and 13 % at the document state, 18 % at other kept places"
    attended = lambda: tab.run("[...document.querySelectorAll('#document .attended')].map(t => +t.dataset.token)")
    assert attended() == [7, 250]
    tab.key("ArrowRight")
    assert attended() == [250] and len(places()) == 1
    assert tab.run(f"{tokens}.map(t => [t.getAttribute('aria-pressed'), t.tabIndex])") == [
        *(["false", -1], ["true", 0], ["false", -1])
    ]
    tab.point_at("#places button", click=True)
    assert tab.run("+document.querySelector('.current').dataset.token") == 250


def test_search_finds_every_place_and_goes_there(open_page):
    tab = open_page(shown(20_000))
    for query, count in {"W19999": 1, "🌳   W11 ": 1, "w1.": 0, "(": 0, "w1": 11_111 - 1_111, "not read": 1}.items():
        tab.run(f"$('query').value = {query!r}; search()")
        assert tab.run("spans.hit.length") == count, query
    tab.run("$('query').value = ''; $('query').focus()")
    for key in "w1234":
        tab.key(key)
    tab.run("new Promise(done => setTimeout(done, 300))")
    assert tab.run("$('hits').textContent") == "10 matches"  # and nine of five digits, of which w12340 is a tree
    tab.key("Enter")
    assert tab.run("$('hits').textContent") == "1 of 10 matches"
    assert tab.run("document.querySelector('.hit.now').textContent") == "w1234"
    middle = tab.run("document.querySelector('.hit.now').getBoundingClientRect().y / innerHeight")
    assert 0.3 < middle < 0.7
    tab.point_at("#hit-back", click=True)
    assert tab.run("$('hits').textContent") == "10 of 10 matches"


def test_everything_that_takes_the_focus_has_a_name(open_page):
    tab = open_page(shown(500))
    tab.run("choose(0)")
    tab.call("Accessibility.enable")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
        and node["role"]["value"] != "RootWebArea"
    ]
    assert all(name for _, name in focusable), focusable
    assert {"searchbox", "spinbutton", "button", "link", "region"} <= {role for role, _ in focusable}
    roles = {node["role"]["value"] for node in nodes}
    assert {"main", "complementary", "banner", "heading", "mark", "image", "search"} <= roles


def test_a_document_without_tokens_is_a_page(open_page):
    empty = ReadTokens(np.zeros((0, 2), int), np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    tab = open_page(Shown("none", "all of it unread", "", empty))
    assert tab.run("$('document').textContent") == "all of it unread"
    tab.run("$('document').focus()")
    tab.key("n")
    tab.point_at("#kept-next", click=True)
    assert tab.run("$('live').textContent") == "No kept passage there."


def test_a_million_tokens(open_page):
    what = shown(1_000_000)
    began = time.monotonic()
    tab = open_page(what)
    assert time.monotonic() - began < 30  # two to three seconds on an idle core
    elements = lambda: tab.run("document.getElementsByTagName('*').length")
    assert elements() < 10_000
    assert tab.run("$('document').textContent.length") > len(what.document)
    tab.run("$('chunk').value = 9_000; $('go').requestSubmit()")
    tab.settle()
    assert tab.run("+document.querySelector('.current').dataset.token") == 899_900
    at = tab.run("document.querySelector('.current').getBoundingClientRect().y / innerHeight")
    assert 0.2 < at < 0.8
    assert tab.run("document.querySelector('.current').title") == "keep-probability 0.900, kept"
    tab.run("$('query').value = 'w999999'; search(); goToHit(1)")
    tab.settle()
    assert 0 < tab.run("document.querySelector('.hit.now').getBoundingClientRect().y") < 900
    assert elements() < 10_000
