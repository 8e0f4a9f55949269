"""Summarises documents of any length: files, or standard input.

Summaries go to standard output, one line per document in the order of the files; --json also names the file.
exit codes: 0 summarised; 1 an error, or only empty summaries.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import plural
from jax_simcas.evaluation import highlight
from jax_simcas.evaluation.report import MANY_UNKNOWN, unknown_line
from jax_simcas.evaluation.summarizer import Summarizer, Summary
from jax_simcas.method.select import POLICIES
from jax_simcas.run.build import load_model, predictor, read_settings
from jax_simcas.run.config import OVERRIDING_FLAGS, Settings, apply_flag_overrides
from jax_simcas.run.method_config import BUDGETED

EXAMPLES = """\
  python -m jax_simcas.summarize --model=runs/sumpubmed article.txt
  python -m jax_simcas.summarize --model=facebook/bart-large-cnn --json a.txt b.txt
  python -m jax_simcas.summarize --model=runs/qmsum --query='What was decided on the budget?' meeting.txt
  cat article.txt | python -m jax_simcas.summarize --model=runs/sumpubmed
"""


def shown(name: str) -> str:
    """A file's name in messages."""
    return "standard input" if name == "-" else name


def read_document(name: str) -> str:
    """The text of a file, or of standard input for "-".

    Raises:
      UserError: missing, unreadable, not UTF-8, empty or only whitespace.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{shown(name)}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(name)}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02x})") from None
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


def with_flags(settings: Settings, arguments: Any) -> Settings:
    """The settings with the flags applied.

    Raises:
      UserError: a value that they refuse; a query for a model without, or none for one with.
    """
    settings = apply_flag_overrides(settings, arguments, OVERRIDING_FLAGS | {"policy": "simcas.policy"})
    wants_query = "{query}" in settings.data.input_template
    if wants_query and arguments.query is None:
        raise UserError(f"--model={arguments.model} was trained with queries; pass --query='...'")
    if arguments.query is not None and not wants_query:
        raise UserError(f"--query: --model={arguments.model} was trained without queries")
    return settings


def open_model(arguments: Any) -> Summarizer:
    """The model with the flags applied."""
    model = load_model(arguments.model, "best")
    for note in model.notes:
        print(note, file=sys.stderr)
    settings = with_flags(model.settings, arguments)
    return Summarizer(predictor(model._replace(settings=settings)))


def figures(summary: Summary) -> str:
    """What was read and kept, and how long it took."""
    read = f"{plural(summary.tokens, 'token')} in {plural(summary.chunks, 'chunk')}"
    read += f", {summary.kept} of {plural(summary.candidates, 'candidate')} kept"
    return f"{read}; " + ", ".join(f"{stage.replace('_', ' ')} {s:.2f} s" for stage, s in summary.seconds.items())


def warnings(summary: Summary) -> Iterator[str]:
    """What is lost of a document."""
    if summary.cut_tokens:
        whole = summary.tokens + summary.cut_tokens
        yield f"{summary.tokens} of {plural(whole, 'token')} are read; --max-input-len={whole + 2} reads all"
    if summary.unknown_tokens > MANY_UNKNOWN * summary.tokens:
        yield unknown_line(summary.unknown_tokens / summary.tokens)
    if not summary.summary:
        yield "its summary is empty: the model ends it at once"


def run(arguments: Any) -> int:
    """The program after its flags are read. A bad file does not keep the others from being summarised."""
    cli.prepare()
    if arguments.html:
        files.make_folder(Path(arguments.html).parent, "--html")
    if Path(arguments.model).is_dir():  # now, as reading weights takes long
        with_flags(read_settings(arguments.model), arguments)
    names = arguments.files or ["-"]
    if names == ["-"] and sys.stdin.isatty():
        print("reading a document from the terminal; end it with Ctrl-D", file=sys.stderr)
    texts = read_documents(names)
    summarizer = open_model(arguments)
    summaries: list[tuple[str, Summary]] = []
    for number, (name, text) in enumerate(texts, 1):
        print(f"[{number}/{len(texts)}] {shown(name)}", file=sys.stderr, flush=True)
        try:
            summary = summarizer.summarize(text, arguments.query, arguments.seed)
        except UserError as error:
            cli.fail(f"{shown(name)}: {error}")
            continue
        summaries.append((name, summary))
        for warning in warnings(summary):
            print(f"warning: {shown(name)}: {warning}", file=sys.stderr)
        print(figures(summary), file=sys.stderr)
        line = json.dumps({"file": name, **summary.record()}, ensure_ascii=False) if arguments.json else summary.summary
        print(line, flush=True)
    if arguments.html:
        page = highlight.page([(shown(name), summary) for name, summary in summaries])
        files.replace_file(Path(arguments.html), page.encode())
        print(f"what was kept: {arguments.html}", file=sys.stderr)
    if summaries and not any(summary.summary for _, summary in summaries):
        return cli.fail("every summary is empty: train the model longer, or give --min-length")
    return 0 if len(summaries) == len(names) else cli.EXIT_ERROR


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("summarize", __doc__ or "", EXAMPLES)
    parser.add_argument("files", nargs="*", metavar="FILE", help="UTF-8 text; - or nothing: standard input")
    parser.add_argument("--model", required=True, help="a workdir, a folder with pretrained weights, or a hub id")
    parser.add_argument("--query", help="for models trained with queries")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per document: file, summary, kept spans, seconds"
    )
    parser.add_argument("--html", metavar="FILE", help="also write a page with what was kept of each document")
    parser.add_argument("--policy", choices=POLICIES, help="in place of the model's")
    parser.add_argument("--budget", type=cli.positive, help=f"candidates to keep, for {', '.join(BUDGETED)}")
    parser.add_argument("--capacity", type=cli.positive, help="most states that the decoder sees")
    parser.add_argument("--max-input-len", type=cli.positive, help="tokens read of a document")
    parser.add_argument("--num-beams", type=cli.positive)
    parser.add_argument("--max-length", type=cli.positive, help="tokens of a summary, the start token included")
    parser.add_argument("--min-length", type=int)
    parser.add_argument("--length-penalty", type=float)
    parser.add_argument("--no-repeat-ngram-size", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0, help="of policies that draw")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
