"""What an evaluation writes and prints: predictions.jsonl, scores.json, a table and what was kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.common import files, tables
from jax_simcas.evaluation import bootstrap, metrics, paired_bootstrap
from jax_simcas.evaluation.documents import Evaluated

SCORES = "scores.json"


def table(summary: dict[str, Any]) -> str:
    """The scores beside the lead baseline's, as Markdown."""
    rows = [
        {
            "score": metrics.labelled(name),
            "model": tables.format_score(bootstrap.Score(**summary["scores"][name])),
            "lead": tables.format_score(bootstrap.Score(**summary["lead"][name])),
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


def write(folder: Path, rows: list[Evaluated], summary: dict[str, Any]) -> None:
    """predictions.jsonl and scores.json."""
    write_predictions(folder / paired_bootstrap.PREDICTIONS, rows)
    files.replace_file(folder / SCORES, (json.dumps(files.json_ready(summary), indent=1) + "\n").encode())


def lines(summary: dict[str, Any], folder: Path) -> Iterator[str]:
    """The table and what there is to know beside it."""
    yield table(summary)
    yield ""
    kept = f"kept {100 * summary['kept_share']:.1f} % of the candidates ({summary['states']:.0f} a document)"
    yield f"{summary['documents']} documents of {summary['split']}; {kept}"
    yield f"the references take {tables.format_score(bootstrap.Score(**summary['nll']), 2)} nats a token (nll)"
    if summary["evidence"]:
        yield evidence_line({name: bootstrap.Score(**score) for name, score in summary["evidence"].items()})
    if "bertscore_limit" in summary:
        yield f"BERTScore reads at most {summary['bertscore_limit']} tokens of a text"
    if summary["documents_cut"]:
        yield (
            f"{summary['documents_cut']} documents were cut to {summary['max_input_len']} tokens; "
            "--max-input-len reads more"
        )
    words = summary["lead_words"]
    yield f"lead: the first {words} words, as many as a reference has on average; {summary['seconds']} s"
    yield f"rows in {folder / paired_bootstrap.PREDICTIONS}, figures in {folder / SCORES}"


def evidence_line(evidence: dict[str, bootstrap.Score]) -> str:
    """How much of the marked evidence was kept, in a sentence."""
    share = {name: f"{100 * score.mean:.1f} %" for name, score in evidence.items()}
    return (
        f"marked evidence: kept {share['evidence_kept']} of it (recall), {share['all_kept']} of all tokens; "
        f"{share['evidence_precision']} of what was kept is evidence (precision); a token that matters is "
        f"{tables.format_score(evidence['likelihood_ratio'], 2)} times as likely kept as one that does not"
    )
