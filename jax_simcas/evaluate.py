"""Evaluates a model on a split (summaries by beam search, scores, one row per document), or compares two of these."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli
from jax_simcas.run import overrides

EXAMPLES = """\
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --split=test --num-beams=8
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --policy=random      # as many as the model would keep
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --max-input-len=512 --output=runs/sumpubmed-512
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --limit=20 --html   # what was kept of each document
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --bertscore=roberta-large
  python -m jax_simcas.evaluate --compare runs/a/evaluation/test runs/b/evaluation/test --plot=difference.png
  python -m jax_simcas.evaluate --workdir=runs/embedded --config.data.embedded.chunks=64
"""


def parser() -> cli.Parser:
    made = cli.with_config(cli.parser("evaluate", __doc__ or "", EXAMPLES))
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=cli.text, help="a folder that jax_simcas.train wrote")
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two predictions.jsonl of the same documents, or their folders"
    )
    made.add_argument("--split", type=cli.text, help="default: the config's validation split")
    made.add_argument("--step", default="best", type=cli.step, help="best (default), latest or a number")
    made.add_argument(
        "--policy",
        type=overrides.policy,
        help="in place of the config's; topk, random, first and spaced keep as many as it would",
    )
    made.add_argument("--limit", type=cli.positive, help="the first LIMIT documents only")
    made.add_argument("--output", type=cli.text, help="default: WORKDIR/evaluation/SPLIT[-POLICY]")
    names = ("--data-dir", "--batch-size", "--rouge-tokenizer", *overrides.READING, *overrides.GENERATION)
    overrides.add_overrides(made, *names)
    made.add_argument("--seed", type=cli.seed, default=0, help="of random policies and of the bootstrap")
    cli.add_distributed(made)
    made.add_argument(
        "--bertscore",
        type=cli.text,
        metavar="MODEL[@LAYER]",
        help="also BERTScore, by a layer of the encoder MODEL, a folder or hub id",
    )
    made.add_argument(
        "--html",
        nargs="?",
        const=True,
        type=cli.text,
        metavar="FOLDER",
        help="also a page of each document for a browser: what was kept, and where the decoder looked; "
        "default: OUTPUT/html",
    )
    made.add_argument("--measures", type=cli.names, help="of --compare, such as rouge1,authors/rougeLsum")
    made.add_argument(
        "--plot", type=cli.output_file(".png"), metavar="PNG", help="of --compare: also draw the differences"
    )
    made.rules += [only_with_compare, not_with_compare]
    return made


def only_with_compare(arguments: Any) -> str:
    alone = not arguments.compare and (arguments.measures or arguments.plot)
    return "--measures and --plot go with --compare" if alone else ""


def not_with_compare(arguments: Any) -> str:
    return "--html goes with --workdir" if arguments.compare and arguments.html else ""


def run(arguments: Any) -> int:
    from jax_simcas.run import evaluate_split
    from jax_simcas.run.processes import guarded_job

    body = evaluate_split.run_compare if arguments.compare else evaluate_split.run
    return guarded_job(lambda: body(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
