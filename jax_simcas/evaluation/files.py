"""The files of one evaluation: predictions.jsonl, one row per document, and scores.json, the means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import json_ready, read_json, replace_file
from jax_simcas.evaluation.documents import Evaluated, Scoring, references

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"
GROUPS = ("scores", "lead", "evidence")  # of scores.json: measures with their intervals
NUMBER = (int, float, type(None))  # JSON's; null where it is not finite
FIELDS: dict[str, tuple[type, ...]] = dict.fromkeys((*GROUPS, "nll"), (dict,))
FIELDS |= dict.fromkeys(("documents", "documents_scored", "documents_cut", "empty_predictions"), (int,))
FIELDS |= dict.fromkeys(("unknown_share", "kept_share", "overflow_share", "states"), NUMBER)
FIELDS |= {"split": (str,), "rouge_tokenizer": (str,), "score_warnings": (list,), "flags": (dict,)}
SCORE = {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "count": (int,)}


def record_of(item: Evaluated, by: Scoring) -> dict[str, Any]:
    """A row of predictions.jsonl."""
    return {
        "index": item.number,
        "id": item.row.id,
        "prediction": item.prediction,
        "reference": item.row.summary or None,
        "references": list(references(item.row)),
        "answers": list(item.row.answers) if by.task == "answers" else [],
        "rouge_tokenizer": by.words.name,
        "scores": item.scores,
        "lead": item.lead,
        "kept": item.kept_and_candidates[0],
        "candidates": item.kept_and_candidates[1],
        "overflow": item.overflow,
        "cut_tokens": item.cut_tokens,
        "unknown_tokens": item.unknown_and_read[0],
        "tokens": item.unknown_and_read[1],
        "nll": item.nll,
        "evidence": item.evidence or None,
    }


def write(folder: Path, rows: list[Evaluated], summary: dict[str, Any], by: Scoring) -> None:
    """Writes both files; scores.json comes last, so that where it is the rows are complete.

    Raises:
      UserError: one cannot be written.
    """
    lines = (json.dumps(json_ready(record_of(item, by)), ensure_ascii=False) + "\n" for item in rows)
    replace_file(folder / PREDICTIONS, "".join(lines).encode())
    replace_file(folder / SCORES, (json.dumps(json_ready(summary), indent=1) + "\n").encode())


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a predictions.jsonl, given as the file or as its evaluation's folder, each with its file and line.

    Raises:
      UserError: unreadable, empty, or a line that is no JSON object.
    """
    file = path / PREDICTIONS if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        give = _remedy(path, PREDICTIONS, "give what jax_simcas.evaluate wrote")
        raise UserError(f"{file}: cannot be read ({error.strerror}); {give}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start}); give what jax_simcas.evaluate wrote") from None
    rows = [(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{file}: empty; there is nothing to compare")
    return [(where, _parsed(line, where)) for where, line in rows]


def _remedy(folder: Path, name: str, otherwise: str) -> str:
    """Which evaluations there are in a workdir, or in its folder of them, that was given in place of one."""
    places = (f"{pattern}/{name}" for pattern in ("evaluation/*", "*"))
    within = next((found for pattern in places if (found := sorted(folder.glob(pattern)))), [])
    return f"give one of {', '.join(str(file.parent) for file in within)}" if within else otherwise


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that can be read (nested too deeply)") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with an id")
    return row


def read_scores(folder: Path) -> dict[str, Any]:
    """scores.json of an evaluation.

    Raises:
      UserError: there is none, or it holds something else.
    """
    scores = read_json(folder / SCORES, f"not found; {_remedy(folder, SCORES, 'run jax_simcas.evaluate first')}")
    wrong = "no object" if not isinstance(scores, dict) else next(_wrong(scores), "")
    if wrong:
        raise UserError(f"{folder / SCORES}: {wrong}; run jax_simcas.evaluate again")
    return scores


def _wrong(scores: dict[str, Any]) -> Iterator[str]:
    """What is in scores.json that `write` does not write; an earlier version may have written less."""
    for name, kinds in FIELDS.items():
        if name in scores and not isinstance(scores[name], kinds):
            yield f"{name} is {scores[name]!r}"
    groups = {name: scores.get(name, {}) for name in GROUPS}
    found = {f"{name}.{measure}": score for name, group in groups.items() for measure, score in group.items()}
    for name, score in (found | ({"nll": scores["nll"]} if "nll" in scores else {})).items():
        if not isinstance(score, dict) or any(not isinstance(score.get(f, ""), kinds) for f, kinds in SCORE.items()):
            yield f"{name} is {score!r}, expected numbers {', '.join(SCORE)}"
