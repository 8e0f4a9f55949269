"""Runs an experiment: variants of a config times seeds, trained and evaluated, as one table with plots.

The same command resumes where it stopped and repeats nothing that has finished. The folder gets table.md, table.csv,
plot.png, and one folder per variant and seed, each with its log.txt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.experiments configs/experiments/ablation.py
  python -m jax_simcas.experiments ablation --dry-run
  python -m jax_simcas.experiments configs/experiments/policy.py --base=configs/qmsum.py --limit=60 \\
      --config.data.data_dir=DATA --seeds=0,1 --workdir=runs/policy-qmsum
"""
EXITS = """0 done; 1 an error (one line on stderr) or failed runs, named at the end; 2 wrong flags; 75 stopped by
SIGTERM; 130 Ctrl-C. After 75, 130 and any kill the same command resumes."""


def parser() -> cli.Parser:
    made = cli.with_config(cli.parser("experiments", __doc__ or "", EXAMPLES, EXITS))
    made.add_argument("experiment", type=cli.text, help="NAME of ours, or a file such as configs/experiments/NAME.py")
    made.add_argument("--base", type=cli.text, help="a config of jax_simcas.train in place of the experiment's own")
    made.add_argument("--workdir", type=cli.text, help="default: runs/EXPERIMENT[-BASE]")
    made.add_argument("--seeds", type=cli.seeds, help="such as 0,1,2; in place of the experiment's")
    made.add_argument(
        "--only",
        default=[],
        type=cli.names,
        metavar="VARIANT,...",
        help="run these; the table shows every finished one",
    )
    made.add_argument("--split", type=cli.text, help="to evaluate, in place of the experiment's")
    made.add_argument("--limit", type=cli.positive, help="documents of each evaluation")
    made.add_argument("--dry-run", action="store_true", help="print the commands and which have finished")
    made.add_argument("--table", action="store_true", help="only write the table of what has finished")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.experiments import command

    return command.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
