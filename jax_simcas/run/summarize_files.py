"""Summarising files and standard input: what `jax_simcas.summarize` runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.common import cli
from jax_simcas.common.errors import NoSuchModel, UserError, prefixed
from jax_simcas.common.tables import plural
from jax_simcas.data.documents import text_of
from jax_simcas.evaluation import highlight
from jax_simcas.evaluation.report import MANY_UNKNOWN, MANY_WITHOUT_A_PLACE, overflow_line, unknown_line
from jax_simcas.evaluation.summarizer import Summarizer, Summary
from jax_simcas.run.build import configured, load_model, predictor, read_settings
from jax_simcas.run.config import Settings
from jax_simcas.run.config_file import with_flags
from jax_simcas.run.pages import Pages


def shown(name: str) -> str:
    """A file's name in messages."""
    return "standard input" if name == "-" else name


def read_document(name: str) -> str:
    """The text of a file (PDF, HTML and DOCX too), or of standard input for "-".

    Raises:
      UserError: missing, unreadable, not UTF-8 nor a document that can be converted, empty or only whitespace.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{shown(name)}: cannot be read ({error.strerror})") from None
    with prefixed(f"{shown(name)}: "):
        text = text_of(data, name)
    if not text.strip():
        raise UserError(f"{shown(name)}: {'empty' if not text else 'only whitespace'}; there is nothing to summarise")
    return text


def read_documents(names: list[str]) -> list[tuple[str, str]]:
    """(name, text) of those that can be read; the others are reported.

    Raises:
      UserError: none of them can be read.
    """
    texts: list[tuple[str, str]] = []
    for number, name in enumerate(names, 1):
        try:
            texts.append((name, read_document(name)))
        except UserError as error:
            if number == len(names) and not texts:
                raise
            cli.fail(str(error))
    return texts


def check_flags(settings: Settings, arguments: Any) -> None:
    """Checks the flags, as far as can be without the sizes of the model.

    Raises:
      UserError: a value that they refuse; a query for a model without, or none for one with.
    """
    settings = with_flags(settings, arguments, sizes_known=False)
    check_query(settings, arguments)


def check_query(settings: Settings, arguments: Any) -> None:
    """Raises UserError for a query for a model without, or none for one with."""
    needs_query = "{query}" in settings.data.input_template
    if needs_query and arguments.query is None:
        raise UserError(f"--model={arguments.model} was trained with queries; pass --query='...'")
    if arguments.query is not None and not needs_query:
        raise UserError(f"--query: --model={arguments.model} was trained without queries")


def open_model(arguments: Any) -> Summarizer:
    """The model with the flags applied."""
    with prefixed("--model=", NoSuchModel):
        model = load_model(arguments.model, "best")
    for note in model.notes:
        print(note, file=sys.stderr)
    model = configured(model, arguments)
    check_query(model.settings, arguments)
    return Summarizer(predictor(model))


def figures(summary: Summary) -> str:
    """What was read and kept, and how long it took."""
    read = f"{plural(summary.tokens, 'token')} in {plural(summary.chunks, 'chunk')}"
    read += f", {summary.kept} of {plural(summary.candidates, 'candidate')} kept"
    return f"{read}; " + ", ".join(f"{stage.replace('_', ' ')} {s:.2f} s" for stage, s in summary.seconds.items())


def warnings(summary: Summary, capacity: int | None) -> Iterator[str]:
    """What is lost of a document."""
    if summary.cut_tokens:
        whole = summary.tokens + summary.cut_tokens
        yield f"{summary.tokens} of {plural(whole, 'token')} are read; --max-input-len={whole + 2} reads all"
    if summary.unknown_tokens > MANY_UNKNOWN * summary.tokens:
        yield unknown_line(summary.unknown_tokens / summary.tokens)
    if summary.overflow > MANY_WITHOUT_A_PLACE * (summary.kept + summary.overflow):
        yield overflow_line(summary.overflow / (summary.kept + summary.overflow), capacity)
    if not summary.summary:
        yield "its summary is empty: the model ends it at once"


def summarize_all(arguments: Any, texts: list[tuple[str, str]], pages: Pages | None) -> list[tuple[str, Summary]]:
    """Prints one summary per text, with figures and warnings on standard error; a text that fails is left out."""
    summarizer = open_model(arguments)
    summaries: list[tuple[str, Summary]] = []
    for number, (name, text) in enumerate(texts, 1):
        print(f"[{number}/{len(texts)}] {shown(name)}", file=sys.stderr, flush=True)
        try:
            summary = summarizer.summarize(text, arguments.query, arguments.seed, attention=pages is not None)
        except UserError as error:
            cli.fail(f"{shown(name)}: {error}")
            continue
        summaries.append((name, summary))
        for warning in warnings(summary, summarizer.predictor.model.capacity):
            print(f"warning: {shown(name)}: {warning}", file=sys.stderr)
        print(figures(summary), file=sys.stderr)
        line = json.dumps({"file": name, **summary.record()}, ensure_ascii=False) if arguments.json else summary.summary
        print(line, flush=True)
        if pages:
            pages.write(number, highlight.shown_summary(shown(name), summary, arguments.query))
    return summaries


def run(arguments: Any) -> int:
    """The program after its flags are read. A bad file does not keep the others from being summarised."""
    cli.prepare_jax()
    names = arguments.files or ["-"]
    documents = [Path(name) for name in names if name != "-"]
    pages = Pages(Path(arguments.html), len(names), documents) if arguments.html else None
    if Path(arguments.model).is_dir():  # now, as reading weights takes long
        check_flags(read_settings(arguments.model), arguments)
    if names == ["-"] and sys.stdin.isatty():
        print("reading a document from the terminal; end it with Ctrl-D", file=sys.stderr)
    summaries = summarize_all(arguments, read_documents(names), pages)
    if pages and summaries:
        pages.finish()
        print(f"what was kept: {pages.path}", file=sys.stderr)
    if summaries and not any(summary.summary for _, summary in summaries):
        return cli.fail("every summary is empty: train the model longer, or give --min-length")
    return 0 if len(summaries) == len(names) else cli.EXIT_ERROR
