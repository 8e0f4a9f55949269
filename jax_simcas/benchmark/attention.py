"""Compares attention within chunks on a TPU: ours, which XLA fuses, against jax's two Pallas kernels.

Prints millions of cycles for one document's attention on one chip. compile_check's estimate does not look into Pallas
kernels, so this reads the static profile of the compiler's last stage, which has the cycles of every scheduled
instruction and kernel. The profile ignores waiting for memory, which favours whatever reads and writes more. For the
kernels' backward passes it did not finish within 90 s (libtpu 0.0.42): they count as their schedule's bundles times
their grid, without the work between them, which is a lower bound. Needs libtpu's compiler, pip install
'jax_simcas[tpu]', and no TPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark.attention
  python -m jax_simcas.benchmark.attention --heads 12 --chunks 64 --topology v6e:1x1
"""


def parser() -> cli.Parser:
    made = cli.parser("benchmark.attention", __doc__ or "", EXAMPLES)
    made.add_argument("--topology", default="v5e:2x2", help="whose first chip it is (default v5e:2x2)")
    for name, default, what in (
        ("chunks", 32, "of the document"),
        ("heads", 16, "of BART-large; base has 12"),
        ("length", 512, "tokens of a chunk"),
        ("width", 64, "of a head"),
    ):
        made.add_argument(f"--{name}", type=cli.positive, default=default, help=f"{what} (default {default})")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import attention_cycles

    return attention_cycles.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
