"""Trains with the packages of one environment, and resumes with those of another.

Each environment trains a tiny model, whole. Then, for each two of them, and for each with itself, the first one's run
is set back to its middle and resumed by the second. What the two give must agree to rounding, within one environment
to the last bit; or the second must say in one line why it does not read the run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.upgrades --python lowest/bin/python --python .venv/bin/python
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.upgrades", __doc__ or "", EXAMPLES)
    made.add_argument(
        "--python", action="append", type=cli.text, required=True, help="of an environment with jax_simcas; repeatable"
    )
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import upgrade_runs

    return upgrade_runs.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
