"""Compares evaluations: a table and bars with intervals, the first one as the baseline.

Each interval is one score's own. For the difference of two evaluations of the same documents, with its own interval,
see `python -m jax_simcas.evaluate --compare A B`, which pairs the documents.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, plots
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation import comparison, metrics
from jax_simcas.evaluation.bootstrap import Score

EXAMPLES = """\
  python -m jax_simcas.compare SimCAS=runs/a/evaluation/test 'one chunk=runs/b/evaluation/test' --plot=table.png
  python -m jax_simcas.compare SimCAS=runs/a/evaluation/test lead=runs/b/evaluation/test --measures=authors/rougeLsum
"""


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    scores: dict[str, dict[str, Score]] = {}
    rows = []
    for item in arguments.runs:
        name, separator, folder = item.partition("=")
        if not separator:
            raise UserError(f"{item}: expected NAME=FOLDER, the folder of an evaluation")
        summary = comparison.read_scores(Path(folder))
        measures = comparison.chosen(summary["scores"], arguments.measures, folder)
        scores[name] = {measure: comparison.as_score(summary["scores"][measure]) for measure in measures}
        rows.append(comparison.row(name, summary, scores[name]))
    print(comparison.table(rows))
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
