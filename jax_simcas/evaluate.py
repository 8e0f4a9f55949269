"""Evaluates a trained model on a split (summaries by beam search, scores, a row per document), or compares two such."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas.common import cli, files, plots, progress, tables
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import batch_shardings, put, replicated
from jax_simcas.data import batches
from jax_simcas.data.rows import First, Row
from jax_simcas.evaluation import bertscore, metrics, paired_bootstrap
from jax_simcas.evaluation.predict import capacity_for, generate_batch, select_batch, target_nll
from jax_simcas.method.select import BUDGETED, POLICIES
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import Settings
from jax_simcas.run.processes import gather, guarded, is_main, join, local_mesh
from jax_simcas.run.workdir import CONFIG, Model, checkpoint_step, load_model, open_source, pipeline_config

EXAMPLES = """\
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --split=test --num-beams=8
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --policy=random      # as many as the model would keep
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --max-input-len=512  # the first chunk only
  python -m jax_simcas.evaluate --workdir=runs/sumpubmed --bertscore=roberta-large
  python -m jax_simcas.evaluate --compare runs/a/evaluation/test runs/b/evaluation/test --plot=difference.png
  python -m jax_simcas.evaluate --workdir=runs/embedded --config.data.embedded.chunks=64
"""


class Evaluated(NamedTuple):
    """One document's outcome."""

    number: int  # of its row
    row: Row
    prediction: str
    scores: dict[str, float]
    lead: dict[str, float]
    kept: tuple[int, int]  # (kept, candidates)
    evidence: dict[str, tuple[float, float]]  # (sum, count) pairs; empty without marked evidence
    cut_tokens: int  # beyond max_input_len, and so not read
    nll: tuple[float, int]  # (nats, tokens) of the reference, teacher-forced


def references(row: Row, task: str) -> tuple[str, ...]:
    """What a prediction is compared with: the answers, or the summary."""
    return (row.answers or (row.summary,)) if task == "answers" else (row.summary,)


def score(prediction: str, row: Row, task: str) -> dict[str, float]:
    """ROUGE of a summary, or exact match and F1 of an answer; 0 to 100."""
    if task == "answers":
        return metrics.answer_scores(prediction, references(row, task))
    return metrics.summary_scores(prediction, references(row, task))


def evaluate_documents(
    model: Model, source: Any, policy: str, key: jax.Array, lead_words: int, on_batch: Callable[[int], None]
) -> Iterator[Evaluated]:
    """Summarises and scores this process's rows of `source`, in order, and their first `lead_words` words.

    Of several processes each takes its share of every batch, `data.batch_size` documents, which lie on its own
    devices: nothing waits for the others. Policies that spend a budget keep as many candidates of each
    document as the configured policy would: an equal budget.
    """
    settings = model.settings
    static = {"bart": settings.bart, "simcas": settings.simcas}
    share, own_share = settings.data.batch_size, jax.process_index()
    config = dataclasses.replace(pipeline_config(settings), batch_size=share * jax.process_count())
    places = range(own_share * share, (own_share + 1) * share)
    mesh = jax.sharding.get_mesh()
    params = put(model.params, jax.tree.map(lambda _: replicated(mesh), model.params))
    for batch in batches.make_iterator(source, model.tokenizer, config, training=False, places=places):
        names = ("input_ids", "token_mask", "chunk_mask", "target_ids", "target_mask")
        fields = {name: batch[name] for name in names}
        arrays = jax.device_put(fields, batch_shardings(mesh, fields))
        rows = arrays["input_ids"].shape[0]
        key, draw = jax.random.split(key)
        nothing = jnp.zeros(rows, jnp.int32)
        own = settings.simcas.policy
        if policy in BUDGETED and settings.simcas.budget is None:
            _, selection = select_batch(params, arrays, draw, nothing, policy=own, **static)
            budget = selection.action.sum(axis=(1, 2))
        else:
            budget = nothing + (settings.simcas.budget or 0)
        hidden, selection = select_batch(params, arrays, draw, budget, policy=policy, **static)
        selected = (params, hidden, arrays["chunk_mask"], selection)
        capacity = capacity_for(selection, settings.simcas.capacity)
        generation = generate_batch(*selected, config=settings.generate, capacity=capacity, **static)
        nll = target_nll(*selected, arrays["target_ids"], arrays["target_mask"], capacity=capacity, **static)
        outcome = (generation.sequence, selection.action, selection.candidate_mask, *nll)
        sequences, kept, candidate, nats, tokens = jax.device_get(outcome)
        real = np.flatnonzero(batch["row_mask"])
        for b in real:
            row = source[int(batch["row_index"][b])]
            prediction = model.tokenizer.decode(sequences[b], skip_special_tokens=True).strip()
            evidence: dict[str, tuple[float, float]] = {}
            if batch["has_evidence"][b]:
                known = candidate[b] & batch["token_mask"][b][:, 1:]
                matters = batch["evidence_mask"][b][:, 1:]
                evidence = metrics.evidence_scores(kept[b][known], matters[known])
            yield Evaluated(
                int(batch["row_index"][b]),
                row,
                prediction,
                score(prediction, row, settings.data.task),
                score(metrics.lead(row.document, lead_words), row, settings.data.task),
                (int(kept[b].sum()), int(candidate[b].sum())),
                evidence,
                int(batch["cut_tokens"][b]),
                (float(nats[b]), int(tokens[b])),
            )
        on_batch(len(real))


def gathered(rows: list[Evaluated], source: Any) -> list[Evaluated]:
    """The rows of all processes, each once and in order."""
    if jax.process_count() == 1:
        return rows
    every = [item for part in gather([(number, *rest) for number, _, *rest in rows]) for item in part]
    return [Evaluated(number, source[number], *rest) for number, *rest in sorted(every, key=lambda item: item[0])]


def with_bertscore(rows: list[Evaluated], encoder: bertscore.Encoder, task: str, lead_words: int) -> list[Evaluated]:
    """The rows with BERTScore among the scores of the model and of the lead baseline."""
    given = [references(row.row, task) for row in rows]
    model, lead = (
        [{encoder.score_name: 100 * match.f1} for match in bertscore.bertscore(encoder, texts, given)]
        for texts in (
            [row.prediction for row in rows],
            [metrics.lead(row.row.document, lead_words) for row in rows],
        )
    )
    return [row._replace(scores=row.scores | a, lead=row.lead | b) for row, a, b in zip(rows, model, lead, strict=True)]


def summary_of(rows: list[Evaluated], seed: int) -> dict[str, Any]:
    """Means with bootstrap intervals of the model and of the lead baseline, and what was kept."""
    kept = np.sum([row.kept for row in rows], axis=0)
    as_dicts = lambda scores: {name: score._asdict() for name, score in scores.items()}
    return {
        "documents": len(rows),
        "documents_cut": sum(row.cut_tokens > 0 for row in rows),
        "scores": as_dicts(metrics.summarize_scores([row.scores for row in rows], seed)),
        "lead": as_dicts(metrics.summarize_scores([row.lead for row in rows], seed)),
        "nll": metrics.pool_scores([{"nll": row.nll} for row in rows], seed)["nll"]._asdict(),
        "kept_share": float(kept[0] / max(kept[1], 1)),
        "states": float(kept[0] / len(rows)),
        "evidence": as_dicts(metrics.evidence_summary([row.evidence for row in rows if row.evidence], seed)),
    }


def table(summary: dict[str, Any]) -> str:
    """The scores beside the lead baseline's, as Markdown."""
    rows = [
        {
            "score": metrics.labelled(name),
            "model": tables.format_score(metrics.Score(**summary["scores"][name])),
            "lead": tables.format_score(metrics.Score(**summary["lead"][name])),
        }
        for name in summary["scores"]
    ]
    return tables.markdown_table(rows, ["score", "model", "lead"])


def write_predictions(path: Path, rows: list[Evaluated]) -> None:
    """A JSON object per document, in order."""
    with path.open("w", encoding="utf-8") as file:
        for item in rows:
            record = {
                "index": item.number,
                "id": item.row.id,
                "prediction": item.prediction,
                "reference": item.row.summary,
                "answers": list(item.row.answers),
                "scores": item.scores,
                "lead": item.lead,
                "kept": item.kept[0],
                "candidates": item.kept[1],
                "cut_tokens": item.cut_tokens,
                "nll": item.nll,
                "evidence": item.evidence or None,
            }
            file.write(json.dumps(files.json_ready(record), ensure_ascii=False) + "\n")


def changed(settings: Settings, arguments: Any) -> Settings:
    """The run's settings with the flags' changes, those of --config.FIELD=VALUE first.

    Raises:
      UserError: a value that the settings refuse.
    """
    if arguments.overrides:
        config = cli.override(config_lib.to_config(settings), arguments.overrides)
        settings = config_lib.from_config(config)
    generate = {
        name: getattr(arguments, name)
        for name in ("num_beams", "max_length", "min_length", "length_penalty", "no_repeat_ngram_size")
        if getattr(arguments, name) is not None
    }
    simcas = {"max_input_len": arguments.max_input_len} if arguments.max_input_len else {}
    data = {"batch_size": arguments.batch_size} if arguments.batch_size else {}
    if arguments.data_dir:
        data["data_dir"] = arguments.data_dir
    try:
        return dataclasses.replace(
            settings,
            generate=dataclasses.replace(settings.generate, **generate),
            simcas=dataclasses.replace(settings.simcas, **simcas),
            data=dataclasses.replace(settings.data, **data),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare()
    join(arguments.distributed)
    workdir = Path(arguments.workdir)
    if not (workdir / CONFIG).is_file():
        raise UserError(f"--workdir={workdir}: no {CONFIG} there; give a folder that jax_simcas.train wrote")
    model = load_model(str(workdir), checkpoint_step(arguments.step))
    model = model._replace(settings=changed(model.settings, arguments))
    for note in model.notes if is_main() else ():
        print(note, file=sys.stderr)
    settings = model.settings
    split = arguments.split or settings.data.validation_split
    source = open_source(settings, split, cli.cache_dir())
    for note in getattr(source, "notes", ()) if is_main() else ():
        print(f"warning: {note}", file=sys.stderr)
    if arguments.limit:
        source = First(source, arguments.limit)
    policy = arguments.policy or settings.simcas.policy
    name = split + (f"-{arguments.policy}" if arguments.policy else "")
    folder = Path(arguments.output) if arguments.output else workdir / "evaluation" / name
    if is_main():
        files.make_folder(folder, "--output")
    encoder = bertscore.load(arguments.bertscore) if arguments.bertscore and is_main() else None
    started = time.monotonic()
    lead_words = metrics.average_words(source[i].summary for i in range(len(source)))
    size = -(-len(source) // jax.process_count())
    with (
        jax.set_mesh(local_mesh(settings.data.batch_size)),
        progress.Progress(size, unit="documents", disable=not is_main()) as bar,
    ):
        key = jax.random.key(arguments.seed)
        rows = list(evaluate_documents(model, source, policy, key, lead_words, bar.update))
    rows = gathered(rows, source)
    if not is_main():
        return 0
    if encoder:
        rows = with_bertscore(rows, encoder, settings.data.task, lead_words)
    summary = summary_of(rows, arguments.seed) | {
        "split": split,
        "source": repr(source),
        "policy": policy,
        "task": settings.data.task,
        "lead_words": lead_words,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_predictions(folder / paired_bootstrap.PREDICTIONS, rows)
    files.replace_file(folder / "scores.json", (json.dumps(files.json_ready(summary), indent=1) + "\n").encode())
    print(table(summary))
    print(
        f"\n{len(rows)} documents of {split}; kept {100 * summary['kept_share']:.1f} % of the candidates",
        end="",
    )
    print(f" ({summary['states']:.0f} a document)")
    print(f"the references take {tables.format_score(metrics.Score(**summary['nll']), 2)} nats a token (nll)")
    if summary["evidence"]:
        shown = {name: metrics.Score(**score) for name, score in summary["evidence"].items()}
        print(
            f"marked evidence: kept {100 * shown['evidence_kept'].mean:.1f} % of it (recall), "
            f"{100 * shown['all_kept'].mean:.1f} % of all tokens; {100 * shown['evidence_precision'].mean:.1f} % of "
            f"what was kept is evidence (precision); a token that matters is "
            f"{tables.format_score(shown['likelihood_ratio'], 2)} times as likely kept as one that does not"
        )
    if encoder:
        print(f"BERTScore reads at most {encoder.limit} tokens of a text")
    if summary["documents_cut"]:
        print(
            f"{summary['documents_cut']} documents were cut to {settings.simcas.max_input_len} tokens; "
            "--max-input-len reads more"
        )
    print(f"lead: the first {lead_words} words, as many as a reference has on average; {summary['seconds']} s")
    print(f"rows in {folder / paired_bootstrap.PREDICTIONS}, figures in {folder / 'scores.json'}")
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
        drawn = {name: (*of.difference[:3], of.difference.count) for name, of in compared.items()}
        print(f"plot: {plots.plot_differences(drawn, arguments.plot)}")
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
