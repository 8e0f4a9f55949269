"""What was kept of documents, as one HTML page: no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from jax_simcas.common.tables import plural
from jax_simcas.evaluation.summarizer import Summary

STYLE = """\
:root { color-scheme: light dark; --kept: 47, 109, 179 }
body { font: 16px/1.7 Georgia, serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1, figcaption, small { font-family: system-ui, sans-serif; font-weight: normal }
h1 { font-size: 1.1rem; margin-top: 3rem } small, figcaption { color: #888; font-size: .8rem }
blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 3px solid rgb(var(--kept)) }
figure { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
mark { color: inherit; border-radius: 2px }
b { font: .65rem system-ui, sans-serif; color: #888; border-left: 2px solid #d9622b; padding-left: 2px }
i { font-style: normal; opacity: .35 }"""


def page(summaries: Iterable[tuple[str, Summary]]) -> str:
    """A page of named documents: the summary of each, and its text, shaded where the decoder saw it.

    A token's keep-probability shows when the pointer rests on it; the number of each chunk stands before its first.
    """
    body = "\n".join(section(name, summary) for name, summary in summaries)
    head = f'<meta charset="utf-8">\n<title>What was kept</title>\n<style>\n{STYLE}\n</style>'
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section(name: str, summary: Summary) -> str:
    """One document."""
    share = 100 * summary.read.kept.mean() if len(summary.read.kept) else 0.0
    figures = (
        f"{plural(summary.tokens, 'token')} in {plural(summary.chunks, 'chunk')}; the decoder saw {share:.1f} % of them"
    )
    legend = "shaded: kept, darker the higher its keep-probability; a number begins a chunk; faint: not read"
    return (
        f"<h1>{escape(name)} <small>{figures}</small></h1>\n"
        f"<blockquote>{escape(summary.summary) or '<small>an empty summary</small>'}</blockquote>\n"
        f"<figure><figcaption>{legend}</figcaption>\n{''.join(shaded(summary))}</figure>"
    )


def shaded(summary: Summary) -> Iterator[str]:
    """The document's text in pieces of HTML."""
    text, at, last = summary.document, 0, -1
    tokens = zip(*(column.tolist() for column in summary.read), strict=True)
    for (start, end), chunk, keep_prob, kept in tokens:
        start = max(start, at)  # several tokens may share a character
        yield escape(text[at:start])
        if chunk != last:
            yield f"<b>{chunk + 1}</b>"
            last = chunk
        if start < end:
            yield token(text[start:end], keep_prob, kept)
        at = max(at, end)
    yield f"<i>{escape(text[at:])}</i>" if text[at:].strip() else escape(text[at:])


def token(text: str, keep_prob: float, kept: bool) -> str:
    """One token, its keep-probability on hover."""
    shade = f" style='background:rgba(var(--kept), {0.15 + 0.5 * keep_prob:.2f})'" if kept else ""
    tag = "mark" if kept else "span"
    return f"<{tag} title='keep-probability {keep_prob:.3f}'{shade}>{escape(text)}</{tag}>"
