"""Compares evaluations: a table and bars with intervals, the first one as the yardstick.

Each interval is one score's own. How surely two evaluations of the same documents differ is for
`python -m jax_simcas.evaluate --compare A B`, which pairs the documents.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, plots, tables
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation import metrics
from jax_simcas.evaluation.bootstrap import Score

EXAMPLES = """\
  python -m jax_simcas.compare SimCAS=runs/a/evaluation/test 'one chunk=runs/b/evaluation/test' --plot=table.png
  python -m jax_simcas.compare SimCAS=runs/a/evaluation/test lead=runs/b/evaluation/test --measures=authors/rougeLsum
"""
RATIO = "likelihood_ratio"


def read_scores(folder: Path) -> dict[str, Any]:
    """scores.json of an evaluation.

    Raises:
      UserError: there is none.
    """
    try:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/scores.json: cannot be read ({error}); run jax_simcas.evaluate first") from None


def as_score(fields: dict[str, Any]) -> Score:
    """A score as JSON holds it: null where it is not finite."""
    mean, low, high = (math.nan if fields[name] is None else fields[name] for name in ("mean", "low", "high"))
    return Score(mean, low, high, fields["count"])


def chosen(there: Iterable[str], asked: list[str], folder: str) -> list[str]:
    """The scores to show: those asked for, else all of texts as they are.

    Raises:
      UserError: one that is not there.
    """
    there = list(there)
    missing = [name for name in asked if name not in there]
    if missing:
        raise UserError(f"--measures: {folder} has no score {missing[0]!r}; it has {', '.join(there)}")
    return asked or [name for name in there if not name.startswith(metrics.AUTHORS)]


def percent(share: float) -> str:
    """`12.3`; a dash where there is nothing to take a share of."""
    return tables.format_score((100 * share, math.nan, math.nan, 0))


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    scores: dict[str, dict[str, Score]] = {}
    rows = []
    for item in arguments.runs:
        name, separator, folder = item.partition("=")
        if not separator:
            raise UserError(f"{item}: expected NAME=FOLDER, the folder of an evaluation")
        summary = read_scores(Path(folder))
        measures = chosen(summary["scores"], arguments.measures, folder)
        scores[name] = {measure: as_score(summary["scores"][measure]) for measure in measures}
        row = {"run": name, **{measure: tables.format_score(score) for measure, score in scores[name].items()}}
        row["kept %"] = percent(summary["kept_share"])
        evidence = {key: as_score(score) for key, score in summary["evidence"].items()}
        if RATIO in evidence:
            row["evidence kept %"] = percent(evidence["evidence_kept"].mean)
            row["others kept %"] = percent(evidence["rest_kept"].mean)
            row["times as likely"] = tables.format_score(evidence[RATIO], 2)
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(tables.markdown_table([{c: row.get(c, "") for c in columns} for row in rows], columns))
    shown = dict.fromkeys(measure for of_run in scores.values() for measure in of_run)
    print("\n" + "\n".join(map(metrics.labelled, shown)))
    if arguments.plot:
        print(f"plot: {plots.plot_comparison(scores, arguments.plot, metrics.measure_of)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("compare", __doc__ or "", EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="evaluation folders with scores.json")
    parser.add_argument(
        "--measures", type=cli.names, default=[], help="scores to show; default: all of texts as they are"
    )
    parser.add_argument("--plot", metavar="PNG", help="also draw bars with intervals")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
