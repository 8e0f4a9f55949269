"""Summarising files, their rows, and standard input: what `jax_simcas.summarize` runs."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, files, progress
from jax_simcas.common.errors import NoSuchModel, UserError, prefixed
from jax_simcas.common.tables import plural
from jax_simcas.data.records import encodable
from jax_simcas.evaluation import highlight
from jax_simcas.evaluation.report import MANY_UNKNOWN, MANY_WITHOUT_A_PLACE, overflow_line, unknown_line
from jax_simcas.evaluation.summarizer import Prepared, Summarizer, Summary, prepare
from jax_simcas.run import summary_input
from jax_simcas.run.build import configured, load_model, predictor, read_settings
from jax_simcas.run.config import Settings
from jax_simcas.run.config_file import named_by, with_flags
from jax_simcas.run.pages import Pages
from jax_simcas.run.summary_input import InputDocument, is_rows

MANY_TOKENS = 50_000  # of a text with more, what is cut may be an estimate (`tokenizer.tokenize_start`)


def check_flags(settings: Settings, arguments: Any) -> Settings:
    """The settings with the flags applied, checked as far as can be without the sizes of the model.

    Raises:
      UserError: a value that they refuse; a query for a model without, or none for one with.
    """
    settings = with_flags(settings, arguments, sizes_known=False)
    check_query(settings, arguments)
    return settings


def check_query(settings: Settings, arguments: Any) -> None:
    """Raises UserError for a query for a model without, or none for one with; rows may have their own."""
    needs_query = "{query}" in settings.data.input_template
    if needs_query and arguments.query is None and not any(map(is_rows, arguments.files)):
        raise UserError(f"--model={arguments.model} was trained with queries; pass --query='...'")
    if arguments.query is not None and not needs_query:
        raise UserError(f"--query: --model={arguments.model} was trained without queries")


def open_model(arguments: Any) -> tuple[Summarizer, Settings]:
    """The model with the flags applied, and its settings."""
    with prefixed("--model=", NoSuchModel):
        model = load_model(arguments.model, given=named_by(arguments))
    model = configured(model, arguments)
    for note in model.notes:
        print(note, file=sys.stderr)
    check_query(model.settings, arguments)
    return Summarizer(predictor(model)), model.settings


def figures(summary: Summary) -> str:
    """What was read and kept, and how long it took."""
    read = f"{plural(summary.tokens, 'token')} in {plural(summary.chunks, 'chunk')}"
    read += f", {summary.kept} of {plural(summary.candidates, 'candidate')} kept"
    return f"{read}; " + ", ".join(f"{stage.replace('_', ' ')} {s:.2f} s" for stage, s in summary.seconds.items())


def warnings(summary: Summary, capacity: int | None) -> Iterator[str]:
    """What is lost of a document."""
    if summary.cut_tokens:
        whole = summary.tokens + summary.cut_tokens
        about = "about " if whole > MANY_TOKENS else ""
        yield f"{summary.tokens} of {about}{plural(whole, 'token')} are read; --max-input-len={whole + 2} reads all"
    if summary.unknown_tokens > MANY_UNKNOWN * summary.tokens:
        yield unknown_line(summary.unknown_tokens / summary.tokens)
    if summary.overflow > MANY_WITHOUT_A_PLACE * (summary.kept + summary.overflow):
        yield overflow_line(summary.overflow / (summary.kept + summary.overflow), capacity)
    if not summary.summary:
        yield "its summary is empty: the model ends it at once"


class Writer:
    """Writes summaries as they are done, in the order of the documents, and counts them.

    Figures, warnings and errors go to standard error; a document that failed has no line.
    """

    def __init__(
        self, arguments: Any, total: int, capacity: int | None, pages: Pages | None, out: Any, bar: progress.Progress
    ) -> None:
        self.total, self._capacity, self._pages, self._out, self._bar = total, capacity, pages, out, bar
        self._as_json = arguments.json or arguments.output
        self._lines: list[str] = []
        self.seen = self.written = self.with_text = 0

    def failed(self, error: str) -> None:
        """A document that cannot be summarised."""
        self.seen += 1
        cli.fail(error)

    def write(self, given: InputDocument, summary: Summary) -> None:
        """The line of one document, and its page."""
        self.seen += 1
        self.written += 1
        self.with_text += bool(summary.summary)
        if not given.is_row and self.total > 1:
            self.announce(given)
        for warning in warnings(summary, self._capacity):
            self._bar.note(f"warning: {given.name}: {warning}")
        if not given.is_row:
            self._bar.note(figures(summary))
        record = {**given.label, **summary.record()}
        plain = " ".join(summary.summary.splitlines())
        self._lines.append(encodable(json.dumps(record, ensure_ascii=False)) if self._as_json else plain)
        if self._pages:
            assert not isinstance(given.row, UserError)
            self._pages.write(self.seen, highlight.shown_summary(given.name, summary, given.row.query))

    def flush(self) -> None:
        """Whole lines at once: whoever reads or interrupts finds no half of one."""
        lines, self._lines = self._lines, []
        with files.writing(self._out.name) if self._out is not sys.stdout else nullcontext():
            if lines:
                self._bar.note("\n".join(lines), self._out)
                self._out.flush()

    def announce(self, given: InputDocument) -> None:
        """Which document comes now."""
        self._bar.note(f"[{max(self.seen, 1)}/{self.total}] {given.name}")


def summarize_window(
    summarizer: Summarizer, window: list[InputDocument], arguments: Any, bar: progress.Progress, attention: bool
) -> Iterator[tuple[InputDocument, Summary | UserError]]:
    """The window's documents in their order, each with its summary or why there is none."""
    results: dict[int, Summary | UserError] = {}
    prepared: dict[int, Prepared] = {}
    for number, given in enumerate(window):
        try:
            if isinstance(given.row, UserError):
                raise given.row
            prepared[number] = prepare(summarizer.predictor, given.row)
        except UserError as error:
            named = error is given.row  # it names the document
            results[number] = error if named else UserError(f"{given.name}: {error}")
    bar.update(len(results))
    numbers, started = list(prepared), time.monotonic()
    done = summarizer.summaries(
        list(prepared.values()), arguments.seed, attention, arguments.batch_size, on_note=bar.note
    )
    for count, (place, summary) in enumerate(done, 1):
        results[numbers[place]] = summary
        bar.update()
        bar.show({"documents_per_second": count / (time.monotonic() - started)})
    for number, given in enumerate(window):
        yield given, results[number]


def summarize_all(
    summarizer: Summarizer, given: Iterator[InputDocument], arguments: Any, bar: progress.Progress, writer: Writer
) -> None:
    """Summarises every document, window by window; one that fails does not keep the others from it."""
    for window in summary_input.windows(given):
        if writer.total == 1:
            writer.announce(window[0])
        for each, result in summarize_window(summarizer, window, arguments, bar, bool(arguments.html)):
            if isinstance(result, UserError):
                writer.failed(str(result))
            else:
                writer.write(each, result)
        writer.flush()


def from_first_readable(given: Iterator[InputDocument]) -> tuple[int, Iterator[InputDocument]]:
    """How many documents cannot be read before the first that can, which are told; and the documents from that on."""
    for failures, each in enumerate(given):
        if not isinstance(each.row, UserError):
            return failures, itertools.chain([each], given)
        cli.fail(str(each.row))
    return 0, iter(())


def output_to(stack: ExitStack, arguments: Any) -> Any:
    """Standard output, or the new file of --output."""
    if not arguments.output:
        return sys.stdout
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(path.open("x", encoding="utf-8"))


def check_output(arguments: Any) -> None:
    """Raises UserError for an --output that is there already, or cannot be written."""
    if arguments.output:
        path = Path(arguments.output)
        files.check_place(path, "--output")
        if path.exists():
            raise UserError(f"--output={path}: that is there already; give the name of a new file")


def run(arguments: Any) -> int:
    """The program after its flags are read. A bad document does not keep the others from being summarised."""
    cli.prepare_jax()
    names = arguments.files = arguments.files or ["-"]
    cache, settings, opened = cli.cache_dir(), Settings(), None
    check_output(arguments)
    if Path(arguments.model).is_dir():  # now, as reading weights takes long
        settings = check_flags(read_settings(arguments.model), arguments)
    elif any(map(is_rows, names)):
        opened = open_model(arguments)
        settings = opened[1]
    if names == ["-"] and sys.stdin.isatty():
        print("reading a document from the terminal; end it with Ctrl-D", file=sys.stderr)
    total = summary_input.count(names, cache)
    paths = [Path(name) for name in names if name != "-"]
    pages = Pages(Path(arguments.html), total, paths) if arguments.html else None
    failures, given = from_first_readable(summary_input.documents(names, settings.data.fields, arguments.query, cache))
    first = next(given, None)
    if first is None:
        return cli.EXIT_ERROR if total else cli.fail(f"{names[0]}: no documents in it")
    summarizer, _ = opened or open_model(arguments)
    capacity = summarizer.predictor.model.capacity
    with ExitStack() as stack:
        out = output_to(stack, arguments)
        bar = progress.Progress(total, initial=failures, unit="documents", disable=total == 1)
        writer = Writer(arguments, total, capacity, pages, out, stack.enter_context(bar))
        writer.seen = failures
        summarize_all(summarizer, itertools.chain([first], given), arguments, bar, writer)
    return finish(writer, total, pages)


def finish(writer: Writer, total: int, pages: Pages | None) -> int:
    """Prints what was written where and how many documents failed; the exit code."""
    if pages and writer.written:
        pages.finish()
        print(f"what was kept: {pages.path}", file=sys.stderr)
    if writer.written and not writer.with_text:
        return cli.fail("every summary is empty: train the model longer, or give --min-length")
    if writer.written < total > 1:
        print(f"{total - writer.written} of {plural(total, 'document')} have no summary, see above", file=sys.stderr)
    return 0 if writer.written == total else cli.EXIT_ERROR
