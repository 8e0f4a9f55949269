"""Evaluates a trained model on a split (summaries by beam search, scores, a row per document), or compares two such."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax

from jax_simcas.common import cli, files, progress
from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import First
from jax_simcas.evaluation import bertscore, documents, metrics, paired_bootstrap, report
from jax_simcas.method.select import POLICIES
from jax_simcas.run.build import Model, checkpoint_step, load_model, open_source, predictor, read_settings
from jax_simcas.run.config import apply_flag_overrides
from jax_simcas.run.method_config import BUDGETED, policy_of
from jax_simcas.run.processes import gather, guarded, is_main, join, local_mesh
from jax_simcas.run.workdir import CONFIG

EXAMPLES = """\
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --split=test --num-beams=8
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --policy=random      # as many as the model would keep
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --max-input-len=512  # the first chunk only
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --bertscore=roberta-large
  python -m jax_simcas.evaluate --compare runs/a/evaluation/test runs/b/evaluation/test --plot=difference.png
  python -m jax_simcas.evaluate --workdir=runs/embedded --config.data.embedded.chunks=64
"""


def open_run(arguments: Any) -> Model:
    """The run's model, its settings overridden by the flags."""
    workdir = Path(arguments.workdir)
    if not (workdir / CONFIG).is_file():
        raise UserError(f"--workdir={workdir}: no {CONFIG} there; give a folder that jax_simcas.train wrote")
    apply_flag_overrides(read_settings(str(workdir)), arguments)  # what they refuse, before weights are read
    model = load_model(str(workdir), checkpoint_step(arguments.step))
    model = model._replace(settings=apply_flag_overrides(model.settings, arguments))
    for note in model.notes if is_main() else ():
        print(note, file=sys.stderr)
    return model


def open_split(model: Model, split: str, limit: int | None) -> Any:
    """The rows to evaluate."""
    source = open_source(model.settings, split, cli.cache_dir())
    for note in source.notes if is_main() else ():
        print(f"warning: {note}", file=sys.stderr)
    return First(source, limit) if limit else source


def evaluate_all(model: Model, source: Any, policy: str, lead_words: int, seed: int) -> list[documents.Evaluated]:
    """The rows of all processes, with a progress line."""
    data = model.settings.data
    size = -(-len(source) // jax.process_count())
    with (
        jax.set_mesh(local_mesh(data.batch_size)),
        progress.Progress(size, unit="documents", disable=not is_main()) as bar,
    ):
        rows = list(
            documents.evaluate_documents(
                predictor(model),
                source,
                policy=policy_of(policy, "--policy"),
                task=data.task,
                lead_words=lead_words,
                key=jax.random.key(seed),
                on_batch=bar.update,
            )
        )
    return documents.of_all_processes(rows, source, gather)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare()
    join(arguments.distributed)
    model = open_run(arguments)
    settings = model.settings
    split = arguments.split or settings.data.validation_split
    source = open_split(model, split, arguments.limit)
    policy = arguments.policy or settings.simcas.policy
    name = split + (f"-{arguments.policy}" if arguments.policy else "")
    folder = Path(arguments.output) if arguments.output else Path(arguments.workdir) / "evaluation" / name
    if is_main():
        files.make_folder(folder, "--output")
    encoder = bertscore.load(arguments.bertscore) if arguments.bertscore and is_main() else None
    started = time.monotonic()
    lead_words = metrics.average_words(source[i].summary for i in range(len(source)))
    rows = evaluate_all(model, source, policy, lead_words, arguments.seed)
    if not is_main():
        return 0
    if encoder:
        rows = documents.with_bertscore(rows, encoder, settings.data.task, lead_words)
    summary = documents.summary_of(rows, arguments.seed) | {
        "split": split,
        "source": repr(source),
        "policy": policy,
        "task": settings.data.task,
        "max_input_len": settings.simcas.max_input_len,
        "lead_words": lead_words,
        "seconds": round(time.monotonic() - started, 1),
    }
    if encoder:
        summary["bertscore_limit"] = encoder.limit
    report.write(folder, rows, summary)
    for line in report.lines(summary, folder):
        print(line)
    return 0


def run_compare(arguments: Any) -> int:
    """The program on two files of predictions."""
    cli.prepare()
    paths = [Path(name) for name in arguments.compare]
    files = [paired_bootstrap.read_predictions(path) for path in paths]
    paired_bootstrap.check_pairs(*files)
    encoder = bertscore.load(arguments.bertscore) if arguments.bertscore else None
    names = arguments.measures or paired_bootstrap.common_scores(*files)
    scores = [paired_bootstrap.scored(rows, names, str(path)) for rows, path in zip(files, paths, strict=True)]
    if encoder:
        extra = [paired_bootstrap.bertscored(rows, encoder, str(path)) for rows, path in zip(files, paths, strict=True)]
        scores = [{key: of[key] | more[key] for key in of} for of, more in zip(scores, extra, strict=True)]
    compared = paired_bootstrap.compare(scores[0], scores[1], arguments.seed)
    print(paired_bootstrap.table(compared))
    print(f"\nA: {paths[0]}\nB: {paths[1]}")
    print(
        f"A - B with its 95 % interval and two-sided p: {paired_bootstrap.RESAMPLES} bootstrap resamples of the "
        f"documents, A and B together; seed {arguments.seed}"
    )
    if encoder:
        print(f"BERTScore reads at most {encoder.limit} tokens of a text")
    if arguments.plot:
        print(f"plot: {paired_bootstrap.plot(compared, arguments.plot, *map(str, paths))}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("evaluate", __doc__ or "", EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", help="a folder that jax_simcas.train wrote")
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two predictions.jsonl of the same documents, or their folders"
    )
    parser.add_argument("--split", help="default: the config's validation split")
    parser.add_argument("--step", default="best", help="best (default), latest or a number")
    parser.add_argument(
        "--policy", choices=POLICIES, help=f"in place of the config's; {', '.join(BUDGETED)} keep as many as it would"
    )
    parser.add_argument("--limit", type=cli.positive, help="the first LIMIT documents only")
    parser.add_argument("--output", help="default: WORKDIR/evaluation/SPLIT[-POLICY]")
    parser.add_argument("--data-dir", help="in place of the config's")
    parser.add_argument("--batch-size", type=cli.positive, help="documents at a time")
    parser.add_argument("--max-input-len", type=cli.positive, help="tokens read of a document")
    parser.add_argument("--num-beams", type=cli.positive)
    parser.add_argument("--max-length", type=cli.positive, help="tokens of a summary, the start token included")
    parser.add_argument("--min-length", type=int)
    parser.add_argument("--length-penalty", type=float)
    parser.add_argument("--no-repeat-ngram-size", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of random policies and of the bootstrap")
    parser.add_argument("--distributed", default="", help="one of several processes: auto, or HOST:PORT,COUNT,INDEX")
    parser.add_argument(
        "--bertscore", metavar="MODEL[@LAYER]", help="also BERTScore, in this folder's or hub id's layer"
    )
    parser.add_argument("--measures", type=cli.names, help="of --compare, such as rouge1,authors/rougeLsum")
    parser.add_argument("--plot", metavar="PNG", help="of --compare: also draw the differences")
    arguments = cli.with_overrides(parser, argv)
    if not arguments.compare and (arguments.measures or arguments.plot):
        parser.error("--measures and --plot go with --compare")
    return guarded(lambda: run_compare(arguments) if arguments.compare else run(arguments))


if __name__ == "__main__":
    sys.exit(main())
