"""What was kept of a document, and what the decoder made of it, as one HTML page: nothing from elsewhere.

The page holds the document as text and its tokens as columns of numbers in JSON; its script (pages/page.js) draws the
part that is near the window, so that a page of a million tokens opens in seconds. Text is escaped here, and a content
security policy admits the page's own script and style by their hashes alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jax_simcas.common.tables import plural
from jax_simcas.data.records import SURROGATE
from jax_simcas.evaluation.summarizer import ReadTokens, Summary
from jax_simcas.evaluation.written import WrittenTokens

KEEP_STEPS = 65535  # probabilities travel as 16 bits


class Shown(NamedTuple):
    """All that a page shows of one document."""

    name: str
    document: str  # as it was read
    summary: str
    read: ReadTokens
    written: WrittenTokens | None = None
    evidence: Sequence[Sequence[int]] | None = None  # characters [start, end) of the document; None: not marked
    query: str | None = None
    references: Sequence[str] = ()
    scores: Mapping[str, float] = {}  # by their names in words
    cut_tokens: int = 0


def shown_summary(name: str, summary: Summary, query: str | None = None) -> Shown:
    """What a page shows of a summary."""
    return Shown(
        name,
        summary.document,
        summary.summary,
        summary.read,
        summary.written,
        query=query,
        cut_tokens=summary.cut_tokens,
    )


def page(shown: Shown) -> str:
    """The page of one document."""
    data = json.dumps(page_data(shown), ensure_ascii=False, separators=(",", ":"))
    script = _file("page.js")
    references = "".join(f'<p class="reference" lang="" dir="auto">{_html(text)}</p>' for text in shown.references)
    title = "References" if len(shown.references) > 1 else "Reference"
    rows = "".join(f"<tr><th>{_html(name)}</th><td>{score:.1f}</td></tr>" for name, score in shown.scores.items())
    return _filled(
        "document.html",
        title=_html(shown.name),
        figures="".join(f"<li>{_html(line)}</li>" for line in figures(shown)),
        query="" if shown.query is None else f'<p lang="" dir="auto">Query: {_html(shown.query)}</p>',
        summary=_html(shown.summary) or "(an empty summary)",
        references=references and f"<details><summary>{title}</summary>{references}</details>",
        scores=rows and f"<table><caption>Scores</caption>{rows}</table>",
        data=_json_in_html(data),
        script=script,
        script_hash=_hash(script),
    )


def figures(shown: Shown) -> list[str]:
    """What was read and kept of a document, in words."""
    tokens = len(shown.read.kept)
    kept = int(shown.read.kept.sum())
    share = f"{100 * kept / max(tokens, 1):.1f} %"
    lines = [
        f"{plural(tokens, 'token')} in {plural(int(shown.read.chunk.max(initial=-1)) + 1, 'chunk')}",
        f"{kept:,} of them kept ({share})",
    ]
    if shown.cut_tokens:
        lines.append(f"{plural(shown.cut_tokens, 'more token was', 'more tokens were')} not read")
    if shown.evidence is not None:
        matters = _overlaps(shown.read.span, merged(shown.evidence))
        found = f"{int(shown.read.kept[matters].sum())} of {plural(int(matters.sum()), 'token')}"
        lines.append(f"of the marked evidence, {found} kept")
    return lines


def page_data(shown: Shown) -> dict[str, Any]:
    """What the page's script reads. Places are counted as JavaScript does, in UTF-16 units; columns are base64."""
    read, units = shown.read, Utf16(shown.document)
    span = units.of(read.span)
    before = np.concatenate([np.zeros(1, np.int64), span[:-1, 1]]) if len(span) else np.zeros(0, np.int64)
    gaps = np.stack([span[:, 0] - before, span[:, 1] - span[:, 0]], axis=1)
    return {
        "document": shown.document,
        "summary": shown.summary,
        "query": shown.query,
        "evidence": None
        if shown.evidence is None
        else units.of(np.array(merged(shown.evidence)).reshape(-1, 2)).tolist(),
        "tokens": {
            "spans": _base64(varints(gaps.ravel())),
            "keep": _base64(np.rint(read.keep_prob.clip(0, 1) * KEEP_STEPS).astype("<u2")),
            "kept": _base64(np.packbits(read.kept, bitorder="little")),
            "chunks": _base64(varints(np.bincount(read.chunk))) if len(span) else "",
        },
        "written": None if shown.written is None else _written_data(shown.written, units, Utf16(shown.summary)),
    }


def _written_data(written: WrittenTokens, document: Utf16, summary: Utf16) -> dict[str, Any]:
    """Tokens of the summary: their characters, their places [chunk, start, end, share], the share of g."""
    place = np.where(written.place < 0, -1, document.of(written.place.clip(0)))
    places = [
        [[chunk, start, end, round(weight, 5)] for chunk, (start, end), weight in zip(*row, strict=True) if weight > 0]
        for row in zip(written.chunk.tolist(), place.tolist(), written.weight.tolist(), strict=True)
    ]
    state = written.document_state.astype(np.float64).round(5)
    return {"spans": summary.of(written.span).tolist(), "places": places, "state": state.tolist()}


class Utf16:
    """From characters of a text to UTF-16 units, of which those beyond U+FFFF have two."""

    def __init__(self, text: str) -> None:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(points > 0xFFFF)])

    def of(self, places: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        return places + self._before[places]


def merged(spans: Iterable[Sequence[int]]) -> list[list[int]]:
    """Spans in order, those that overlap or touch as one; empty ones are left out."""
    out: list[list[int]] = []
    for start, end in sorted((int(start), int(end)) for start, end in spans if start < end):
        if out and start <= out[-1][1]:
            out[-1][1] = max(end, out[-1][1])
        else:
            out.append([start, end])
    return out


def _overlaps(span: Int[np.ndarray, "n 2"], spans: list[list[int]]) -> np.ndarray:
    """Which tokens have a character in one of the merged `spans`."""
    if not spans:
        return np.zeros(len(span), bool)
    starts, ends = np.array(spans).T
    last = np.searchsorted(starts, span[:, 1]) - 1  # the last that starts before the token ends
    return (last >= 0) & (ends[last] > span[:, 0])


def varints(values: Int[np.ndarray, " n"]) -> np.ndarray:
    """Whole numbers as bytes, small ones as one: zigzag (0, -1, 1, -2, ...), then LEB128 (7 bits a byte)."""
    rest = (values.astype(np.int64) << 1) ^ (values.astype(np.int64) >> 63)
    size = 1 + (rest[:, None] >> np.array([7, 14, 21, 28]) > 0).sum(axis=1)
    out, start = np.zeros(size.sum(), np.uint8), np.cumsum(size) - size
    for k in range(5):
        there = size > k
        more = (size[there] > k + 1) << 7
        out[start[there] + k] = ((rest[there] >> (7 * k)) & 127) | more
    return out


def _base64(column: np.ndarray) -> str:
    return base64.b64encode(column.tobytes()).decode()


# Pages


class Linked(NamedTuple):
    """A line of an index: a document's name, the page that it is in, and what is said of it by heading."""

    name: str
    href: str
    cells: Mapping[str, str]


def index(title: str, documents: Sequence[Linked]) -> str:
    """A page that links to those of several documents."""
    headings = ["document", *dict.fromkeys(heading for document in documents for heading in document.cells)]
    rows = []
    for document in documents:
        link = f'<td><a href="{escape(document.href)}">{_html(document.name)}</a></td>'
        cells = "".join(f"<td>{_html(document.cells.get(heading, ''))}</td>" for heading in headings[1:])
        rows.append(f"<tr>{link}{cells}</tr>")
    head = "".join(f'<th scope="col">{_html(heading)}</th>' for heading in headings)
    return _filled("index.html", title=_html(title), head=f"<tr>{head}</tr>", rows="\n".join(rows))


def _html(text: str) -> str:
    """Text as HTML; lone surrogates, which UTF-8 lacks, are replaced."""
    return escape(SURROGATE.sub("\ufffd", text))


def _json_in_html(data: str) -> str:
    """JSON within a script element: with no `<` nothing can end the element, and no lone surrogates."""
    escaped = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", escaped)


def _filled(template: str, **parts: str) -> str:
    """A template with its {{names}} replaced, in one pass: braces in a part are text."""
    style = _file("style.css")
    parts |= {"style": style, "style_hash": _hash(style)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file(template))


def _file(name: str) -> str:
    return resources.files("jax_simcas.evaluation").joinpath("pages", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
