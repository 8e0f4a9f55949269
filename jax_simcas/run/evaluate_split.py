"""Evaluating a trained model on a split, and comparing two evaluations: what `jax_simcas.evaluate` runs."""

from __future__ import annotations

import contextlib
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jax_simcas.common import cli, files, progress
from jax_simcas.common.errors import UserError, prefixed
from jax_simcas.data.rows import First, RowSource, as_printed
from jax_simcas.evaluation import bertscore, documents, highlight, metrics, paired_bootstrap, report, words
from jax_simcas.evaluation import files as evaluation_files
from jax_simcas.run import pages
from jax_simcas.run.build import Model, configured, load_model, open_source, predictor, read_settings
from jax_simcas.run.config_file import named_by, with_flags
from jax_simcas.run.method_config import policy_of
from jax_simcas.run.overrides import OVERRIDES, given_flags, shown_flags
from jax_simcas.run.processes import gather, is_main, join, local_mesh
from jax_simcas.run.workdir import CONFIG


def open_run(arguments: Any) -> Model:
    """The run's model, its settings overridden by the flags."""
    workdir = Path(arguments.workdir)
    if not (workdir / CONFIG).is_file():
        raise UserError(f"--workdir={workdir}: no {CONFIG} there; give a folder that jax_simcas.train wrote")
    with_flags(read_settings(str(workdir)), arguments, sizes_known=False)  # what they refuse, before weights are read
    model = load_model(str(workdir), arguments.step, named_by(arguments))
    model = configured(model, arguments)
    for note in model.notes if is_main() else ():
        print(note, file=sys.stderr)
    return model


def open_split(model: Model, split: str, limit: int | None) -> Any:
    """The rows to evaluate."""
    source = open_source(model.settings, split, cli.cache_dir(), need_reference=False)
    for note in as_printed(source.notes) if is_main() else ():
        print(note, file=sys.stderr)
    return First(source, limit) if limit else source


def evaluate_all(
    model: Model, source: RowSource, policy: str, by: documents.Scoring, seed: int, html: Path | None = None
) -> list[documents.Evaluated]:
    """The rows of all processes, with a progress line. Each process writes its documents' pages into `html`."""
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
                by=by,
                key=jax.random.key(seed),
                on_batch=bar.update,
                on_document=partial(write_page, html, run_name(model)) if html else None,
            )
        )
    return documents.of_all_processes(rows, source, gather)


def encoder_of(arguments: Any) -> bertscore.Encoder | None:
    """The encoder of --bertscore."""
    with prefixed("--bertscore="):
        return bertscore.load_encoder(arguments.bertscore) if arguments.bertscore else None


def run_name(model: Model) -> str:
    """The name of the run's folder."""
    return Path(model.settings.pretrained).resolve().name


def page_file(folder: Path, row: documents.Evaluated) -> Path:
    """Where the page of a row's document is."""
    return folder / f"{row.number}.html"


def write_page(folder: Path, run: str, row: documents.Evaluated, shown: highlight.Shown) -> None:
    """The page of a row's document, under the name of the run as well."""
    pages.write_page(page_file(folder, row), shown._replace(name=f"{run}: {shown.name}"))


def write_index(folder: Path, title: str, rows: list[documents.Evaluated]) -> None:
    """A page that links to those of all documents."""

    def cells(row: documents.Evaluated) -> dict[str, str]:
        kept, candidates = row.kept_and_candidates
        plain = {name: value for name, value in row.scores.items() if not name.startswith(metrics.AUTHORS)}
        scores = {metrics.measure_of(name).title: f"{value:.1f}" for name, value in plain.items()}
        return {"kept": f"{100 * kept / max(candidates, 1):.1f} %", **scores, "prediction": row.prediction}

    linked = [highlight.Linked(str(row.row.id), page_file(folder, row).name, cells(row)) for row in rows]
    pages.write_index(folder / pages.INDEX, title, linked)


def output_folders(arguments: Any, name: str) -> tuple[Path, Path | None]:
    """The folder of the evaluation called `name`, and that of its pages; made by the main process."""
    folder = Path(arguments.output) if arguments.output else Path(arguments.workdir) / "evaluation" / name
    html = None
    if arguments.html:
        html = folder / "html" if arguments.html is True else Path(arguments.html)
    if is_main():
        files.make_folder(folder, "--output")
        if html:
            files.make_folder(html, "--html")
    return folder, html


def warn_of_another(folder: Path, flags: dict[str, str]) -> None:
    """Warns that an evaluation with other flags is in the folder, which its replacement would make one forget."""
    with contextlib.suppress(UserError):
        before = evaluation_files.read_scores(folder).get("flags", flags)
        if before != flags:
            print(
                f"warning: {folder} has an evaluation with {shown_flags(before) or 'no flags'}, which this one will "
                "replace; --output=FOLDER keeps both",
                file=sys.stderr,
            )


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare_jax()
    join(arguments.distributed)
    model = open_run(arguments)
    settings = model.settings
    split = arguments.split or settings.data.validation_split
    source = open_split(model, split, arguments.limit)
    policy = arguments.policy or settings.simcas.policy
    name = split + (f"-{arguments.policy}" if arguments.policy else "")
    folder, html = output_folders(arguments, name)
    flags = given_flags(arguments, "--policy", "--limit")
    if is_main():
        warn_of_another(folder, flags)
    encoder = encoder_of(arguments) if is_main() else None
    started = time.monotonic()
    given = [references for i in range(len(source)) if (references := documents.references(source[i]))]
    by = documents.scoring(settings.data.rouge_tokenizer, settings.data.task, given)
    rows = evaluate_all(model, source, policy, by, arguments.seed, html)
    if not is_main():
        return 0
    if not rows:
        raise UserError(f"{source!r}: each row has a token that the model has no embedding of; see the warning above")
    if encoder:
        rows = documents.with_bertscore(rows, encoder, by)
    summary = documents.summary_of(rows, arguments.seed) | {
        "split": split,
        "step": model.step,
        "flags": flags,
        "source": repr(source),
        "policy": policy,
        "rows_left_out": len(source) - len(rows),
        "task": by.task,
        "rouge_tokenizer": by.words.name,
        "score_warnings": [f"warning: {warning}" for warning in words.warnings(given, by.words, by.task)],
        "capacity": settings.simcas.capacity,
        "max_input_len": settings.simcas.max_input_len,
        "max_target_len": settings.simcas.max_target_len,
        "lead_words": by.lead_words,
        "seconds": round(time.monotonic() - started, 1),
    }
    if encoder:
        summary["bertscore_limit"] = encoder.limit
    try:
        evaluation_files.write(folder, rows, summary, by)
    finally:  # on a full disk too: they took long to make
        print("\n".join(report.lines(summary, folder)))
    if html:
        write_index(html, f"What {run_name(model)} kept of {name}", rows)
        print(f"what was kept of each document: {html / pages.INDEX}")
    return 0


def run_compare(arguments: Any) -> int:
    """The program on two files of predictions."""
    cli.prepare_jax()
    paths = [Path(name) for name in arguments.compare]
    predictions = [paired_bootstrap.read_predictions(path) for path in paths]
    with prefixed("--compare: "):
        paired_bootstrap.check_pairs(*predictions)
    if arguments.plot:
        files.check_place(Path(arguments.plot), "--plot")
    encoder = encoder_of(arguments)
    names = arguments.measures or paired_bootstrap.common_scores(*predictions)
    counted = paired_bootstrap.words_of(predictions, getattr(arguments, OVERRIDES["--rouge-tokenizer"].field))
    with prefixed("--measures: " if arguments.measures else ""):
        both = zip(predictions, paths, strict=True)
        scores = [paired_bootstrap.scored(rows, names, str(path), counted) for rows, path in both]
    if encoder:
        both = zip(predictions, paths, strict=True)
        extra = [paired_bootstrap.bertscored(rows, encoder, str(path)) for rows, path in both]
        scores = [{key: of[key] | more[key] for key in of} for of, more in zip(scores, extra, strict=True)]
    compared = paired_bootstrap.paired_differences(scores[0], scores[1], arguments.seed)
    print(paired_bootstrap.differences_table(compared, counted))
    print(f"\nA: {paths[0]}\nB: {paths[1]}")
    print(
        f"A - B with its 95 % interval and two-sided p: {paired_bootstrap.RESAMPLES} bootstrap resamples of the "
        f"documents, A and B together; seed {arguments.seed}"
    )
    given = [row.references for row in predictions[0].values() if row.references]
    for warning in words.warnings(given, counted, paired_bootstrap.task_of(predictions)):
        print(f"warning: {warning}")
    if encoder:
        print(f"BERTScore reads at most {encoder.limit} tokens of a text")
    if arguments.plot:
        print(f"plot: {paired_bootstrap.plot(compared, arguments.plot, *map(str, paths))}")
    return 0
