"""Summarises documents of any length: files, rows of JSONL or CSV files, or standard input; many of them in batches.

Summaries go to standard output, one line per document in the order of the files and rows; --json also names the file
and the row. Rows are read as the model was trained: --config.data.fields.document names the field of the text; `query`
and `id` are used where a row has them. A document that fails is told on standard error; the others are summarised.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli
from jax_simcas.run import overrides

EXAMPLES = """\
  python -m jax_simcas.summarize --model=runs/sumpubmed article.txt
  python -m jax_simcas.summarize --model=facebook/bart-large-cnn --json a.txt b.pdf
  python -m jax_simcas.summarize --model=runs/sumpubmed --html=kept.html article.txt
  python -m jax_simcas.summarize --model=runs/qmsum --query='What was decided on the budget?' meeting.txt
  python -m jax_simcas.summarize --model=facebook/mbart-large-50 --src-lang=de_DE --tgt-lang=de_DE artikel.txt
  python -m jax_simcas.summarize --model=runs/sumpubmed --output=summaries.jsonl articles.jsonl.gz
  cat article.txt | python -m jax_simcas.summarize --model=runs/sumpubmed
"""
EXITS = "0 done; 1 error (one line each on stderr), or only empty summaries; 2 wrong flags; 130 Ctrl-C"


def parser() -> cli.Parser:
    made = cli.with_config(cli.parser("summarize", __doc__ or "", EXAMPLES, EXITS))
    made.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="UTF-8 text, PDF, HTML, DOCX, or .jsonl, .json, .csv or .tsv (also .gz) with a document per row; - or "
        "nothing: standard input",
    )
    made.add_argument(
        "--model", required=True, type=cli.text, help="a workdir, a folder with pretrained weights, or a hub id"
    )
    made.add_argument("--query", help="for models trained with queries")
    made.add_argument("--json", action="store_true", help="a JSON object per document: file, summary, spans, seconds")
    made.add_argument(
        "--output", type=cli.output_file(".jsonl"), metavar="FILE", help="the same into a new file, as documents finish"
    )
    made.add_argument(
        "--html",
        type=cli.output_file(".html", ".htm"),
        metavar="FILE",
        help="also a page for a browser: what was kept, and where the decoder looked; of several documents an index",
    )
    made.add_argument(
        "--batch-size",
        type=cli.positive,
        help="documents at a time (default: up to 8, by their length); 1: least memory",
    )
    overrides.add_overrides(made, *overrides.SUMMARIZING)
    made.add_argument("--seed", type=cli.seed, default=0, help="of policies that draw")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.run import summarize_files

    return summarize_files.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
