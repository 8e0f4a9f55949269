"""Times how long a checkpoint delays training, when written in the background and when training waits for it.

First a training step of the transformer is timed alone; then, after each save, the steps until the checkpoint is on
disk. The cost of a save is the time of `save` itself and of these steps, minus what the steps take alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.benchmark.__main__ import add_models
from jax_simcas.common import cli

EXAMPLES = "  python -m jax_simcas.benchmark.checkpoint --model base --length 4096 --folder DIR"


def parser() -> cli.Parser:
    made = cli.parser("benchmark.checkpoint", __doc__ or "", EXAMPLES)
    add_models(made, ["base"])
    made.add_argument("--length", type=cli.positive, default=4_096, help="tokens of the document (default 4096)")
    made.add_argument("--repeats", type=cli.positive, default=3, help="saves per kind (default 3)")
    made.add_argument("--folder", type=cli.text, required=True, help="a new folder on the disk to measure")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import save_times

    return save_times.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
