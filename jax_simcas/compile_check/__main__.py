"""Compiles the programs for TPUs or GPUs without having them, and reports whether they fit and, on TPUs, how fast.

Needs libtpu's compiler, pip install 'jax_simcas[tpu]', or for GPUs that of jax's plugin, 'jax_simcas[cuda13]', on any
Linux CPU; each program takes about a minute. The model's sizes are those of the hub ids in published.py where
`pretrained` names one, and those of the config otherwise.

memory: bytes per device of arguments and of temporaries, and the peak of what is alive at once, against what the
compiler lets a program have (on a GPU: what JAX takes by default). Temporaries that are never needed together can add
up to more; the peak decides.
estimate: scheduled instructions' estimated cycles times their loops' trips, over an ASSUMED clock. Not a measurement:
it excludes collectives, Pallas kernels, gathers, scatters and sorts, which are listed. None for GPUs.
utilisation: model FLOPs (nothing recomputed) over the estimate, as a share of the chip's bfloat16 peak.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=v5e:16x16 --config.simcas.capacity=2048
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=v5e:1x1 --stages=train --slowest=20 \\
      --config.pretrained=facebook/bart-large --config.simcas.capacity=2048 --json=check.json
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=h100:8 --stages=train \\
      --config.simcas.dtype=bfloat16 --config.simcas.attention=cudnn
"""
EXITS = "0 all compile and fit; 1 one does not, or an error (one line on stderr); 2 wrong flags; 130 Ctrl-C"
STAGES = ("train", "ppo", "generate")


def parser() -> cli.Parser:
    made = cli.with_config(cli.parser("compile_check", __doc__ or "", EXAMPLES, EXITS), file=True)
    made.add_argument(
        "--topology", required=True, type=cli.text, help="GENERATION:CHIPS, such as v5e:16x16, or h100:GPUS"
    )
    made.add_argument(
        "--stages", type=cli.some_of(STAGES), default=list(STAGES), help=f"some of {', '.join(STAGES)} (default: all)"
    )
    made.add_argument("--documents", type=cli.natural, default=0, help="of the global batch; 0: one per device")
    made.add_argument("--tokens", type=cli.none_or(3), default=0, help="of a document; 0: config.simcas.max_input_len")
    made.add_argument(
        "--target", type=cli.none_or(3), default=256, help="tokens of a target or summary; 0: the maximum"
    )
    made.add_argument(
        "--slowest",
        type=cli.natural,
        default=0,
        help="how many slowest places and instructions to list, after the time per part of the method",
    )
    made.add_argument("--json", type=cli.text, metavar="FILE", help="for all figures")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.compile_check import estimate

    return estimate.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
