"""What an evaluation prints: a table of its scores, and what was kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.common import tables
from jax_simcas.evaluation import bootstrap, metrics
from jax_simcas.evaluation.files import PREDICTIONS, SCORES
from jax_simcas.evaluation.words import ROUGE_SCORE, named

MANY_UNKNOWN = 0.03  # of the tokens: less is ordinary in text with rare characters
MANY_WITHOUT_A_PLACE = 0.1  # of the candidates that the policy selected


def table(summary: dict[str, Any]) -> str:
    """The scores beside the lead baseline's, as Markdown."""
    words = named(summary.get("rouge_tokenizer", ROUGE_SCORE))
    rows = [
        {
            "score": metrics.labelled(name, words),
            "model": tables.format_score(bootstrap.Score(**summary["scores"][name])),
            "lead": tables.format_score(bootstrap.Score(**summary["lead"][name])),
        }
        for name in summary["scores"]
    ]
    return tables.markdown_table(rows, ["score", "model", "lead"])


def lines(summary: dict[str, Any], folder: Path) -> Iterator[str]:
    """The table, and what there is to know beside it."""
    documents, scored = summary["documents"], summary["documents_scored"]
    if scored:
        yield table(summary)
        yield ""
    yield f"{tables.plural(documents, 'document')} of {summary['split']}; {kept_line(summary)}"
    if left_out := summary.get("rows_left_out"):  # which earlier versions did not count
        yield f"warning: {tables.plural(left_out, 'row is', 'rows are')} left out: tokens without an embedding"
    if scored < documents:
        without = tables.plural(documents - scored, "document has", "documents have")
        yield f"{without} no reference: predicted, not scored"
    if summary["overflow_share"] > MANY_WITHOUT_A_PLACE:
        yield f"warning: {overflow_line(summary['overflow_share'], summary['capacity'])}"
    yield from summary["score_warnings"]
    if empty := summary["empty_predictions"]:
        nothing = "; the scores of an empty summary are 0" if empty < documents else ": the model ends each at once"
        yield f"warning: {empty} of {tables.plural(documents, 'summary is', 'summaries are')} empty{nothing}"
    if summary["unknown_share"] > MANY_UNKNOWN:
        yield unknown_line(summary["unknown_share"])
    if scored:
        nll = f"nll of the references: {tables.format_score(bootstrap.Score(**summary['nll']), 2)} nats per token"
        if cut := summary.get("references_cut"):  # which earlier versions did not count
            of = f"{cut} of {tables.plural(scored, 'reference is', 'references are')}"
            nll += f"; {of} cut at max_target_len={summary['max_target_len']} for it"
        yield nll
    if summary["evidence"] and summary["kept_share"]:
        yield evidence_line({name: bootstrap.Score(**score) for name, score in summary["evidence"].items()})
    if "bertscore_limit" in summary:
        yield f"BERTScore reads at most {summary['bertscore_limit']} tokens of a text"
    if summary["documents_cut"]:
        cut = tables.plural(documents, "document is", "documents are")
        most = f"max_input_len={summary['max_input_len']}"
        yield f"{summary['documents_cut']} of {cut} cut at {most}; --max-input-len reads more"
    if scored:
        yield f"lead: the first {summary['lead_words']} words, as many as a reference has on average"
    yield f"{summary['seconds']} s; rows in {folder / PREDICTIONS}, figures in {folder / SCORES}"


def kept_line(summary: dict[str, Any]) -> str:
    """What the decoder saw."""
    if not summary["kept_share"]:
        return "nothing was kept: the decoder saw the document state alone"
    return f"kept {100 * summary['kept_share']:.1f} % of the candidates ({summary['states']:.0f} per document)"


def unknown_line(share: float) -> str:
    """What a share of unknown tokens means."""
    return f"{100 * share:.0f} % of the documents' tokens are not in the tokenizer's vocabulary and read as unknown"


def overflow_line(share: float, capacity: int | None) -> str:
    """What a share of selected candidates beyond the capacity means."""
    return (
        f"{100 * share:.0f} % of what the selector chooses finds no place in config.simcas.capacity={capacity}, and "
        "the decoder does not see it"
    )


def evidence_line(evidence: dict[str, bootstrap.Score]) -> str:
    """How much of the marked evidence was kept, in a sentence."""
    share = {name: f"{100 * score.mean:.1f} %" for name, score in evidence.items()}
    ratio = evidence["likelihood_ratio"]
    attended = f" and gets {share['evidence_attended']} of its attention" if "evidence_attended" in share else ""
    likely = f"an evidence token is {tables.format_score(ratio, 2)} times as likely to be kept as another"
    return (
        f"marked evidence: kept {share['evidence_kept']} of it (recall), {share['all_kept']} of all tokens; "
        f"{share['evidence_precision']} of what was kept is evidence (precision){attended}; "
        f"{'only evidence was kept' if math.isinf(ratio.mean) else likely}"
    )
