"""Summarises documents of any length: files, or standard input. Summaries go to standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax

from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation.summarizer import summarize
from jax_simcas.method.select import POLICIES
from jax_simcas.run.build import load_model, predictor
from jax_simcas.run.config import OVERRIDING_FLAGS, apply_flag_overrides
from jax_simcas.run.method_config import BUDGETED

EXAMPLES = """\
  python -m jax_simcas.summarize --model=runs/sumpubmed article.txt
  python -m jax_simcas.summarize --model=facebook/bart-large-cnn --json a.txt b.txt
  python -m jax_simcas.summarize --model=runs/qmsum --query='What was decided on the budget?' meeting.txt
  cat article.txt | python -m jax_simcas.summarize --model=runs/sumpubmed
"""


def read_document(name: str) -> str:
    """The text of a file, or of standard input for "-".

    Raises:
      UserError: missing, unreadable, not UTF-8, empty or only whitespace.
    """
    shown = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02x})") from None
    if not text.strip():
        raise UserError(f"{shown}: {'empty' if not text else 'only whitespace'}; there is nothing to summarise")
    return text


def run(arguments: Any) -> int:
    """The program after its flags are read. A bad file does not keep the others from being summarised."""
    cli.prepare()
    model = load_model(arguments.model, "best")
    for note in model.notes:
        print(note, file=sys.stderr)
    settings = apply_flag_overrides(model.settings, arguments, OVERRIDING_FLAGS | {"policy": "simcas.policy"})
    wants_query = "{query}" in settings.data.input_template
    if wants_query and arguments.query is None:
        raise UserError(f"--model={arguments.model} was trained with queries; pass --query='...'")
    if arguments.query is not None and not wants_query:
        raise UserError(f"--query: --model={arguments.model} was trained without queries")
    reader = predictor(model._replace(settings=settings))
    files = arguments.files or ["-"]
    if files == ["-"] and sys.stdin.isatty():
        print("reading a document from the terminal; end it with Ctrl-D", file=sys.stderr)
    failed = 0
    for number, name in enumerate(files, 1):
        print(f"[{number}/{len(files)}] {name}", file=sys.stderr, flush=True)
        try:
            out = summarize(reader, read_document(name), arguments.query, jax.random.key(arguments.seed))
        except UserError as error:
            cli.fail(str(error))
            failed += 1
            continue
        if out["cut_tokens"]:
            print(
                f"warning: {name}: cut to {settings.simcas.max_input_len} tokens, {out['cut_tokens']} left out; "
                "raise --max-input-len to read more",
                file=sys.stderr,
            )
        print(
            f"{out['tokens']} tokens in {out['chunks']} chunks, {out['kept']} kept; "
            + ", ".join(f"{stage.replace('_', ' ')} {s:.2f} s" for stage, s in out["seconds"].items()),
            file=sys.stderr,
        )
        if arguments.json:
            print(json.dumps({"file": name, **out}, ensure_ascii=False), flush=True)
        else:
            print(out["summary"], flush=True)
    return cli.EXIT_ERROR if failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("summarize", __doc__ or "", EXAMPLES)
    parser.add_argument("files", nargs="*", metavar="FILE", help="UTF-8 text; - or nothing: standard input")
    parser.add_argument("--model", required=True, help="a workdir, a folder with pretrained weights, or a hub id")
    parser.add_argument("--query", help="for models trained with queries")
    parser.add_argument("--json", action="store_true", help="a JSON object per document: summary, kept spans, seconds")
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
