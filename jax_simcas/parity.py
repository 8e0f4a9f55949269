"""Holds the public functions against arrays that PyTorch computed on the same weights: every case, every quantity.

DIR holds config.json of any family, weights in any layout, manifest.json and an .npz per case. In tests/data/parity the
arrays are the authors' code's, on a BART; in tests/data/parity_t5, parity_t5gemma and parity_t5gemma2 those of the
PyTorch peer, on models of transformers. tests/peer_arrays.py makes more of the second kind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.parity DIR
  python -m jax_simcas.parity DIR --json > parity.json
"""


def parser() -> cli.Parser:
    made = cli.parser("parity", __doc__ or "", EXAMPLES)
    made.add_argument("folder", type=cli.text, metavar="DIR", help="config.json, weights, manifest.json and .npz files")
    made.add_argument("--json", action="store_true", help="figures as JSON")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.run import parity_cases

    return parity_cases.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
