"""`simcas PROGRAM ...` or `python -m jax_simcas PROGRAM ...`: every program by its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import jax_simcas
from jax_simcas.common import cli

PROGRAMS = {
    "train": ("train", "train a model: transformer and selector in turns"),
    "evaluate": ("evaluate", "score a trained model on a split, or compare two evaluations pairwise"),
    "summarize": ("summarize", "summarise files or standard input"),
    "compare": ("compare", "show several evaluations as one table"),
    "experiments": ("experiments.__main__", "train and evaluate variants times seeds"),
    "convert": ("convert", "rewrite a model in another layout, or upload it to the hub"),
    "compile_check": ("compile_check.__main__", "tell whether a config fits a TPU slice or GPUs, without them"),
    "check": ("check", "compare a checkpoint with what transformers makes of it"),
    "parity": ("parity", "compare with arrays computed by the released code"),
    "benchmark": ("benchmark.__main__", "time each stage against the length of the document"),
    "benchmark.attention": ("benchmark.attention", "compare attention kernels by their schedule for a TPU"),
    "benchmark.checkpoint": ("benchmark.checkpoint", "time what saving costs training"),
    "benchmark.data_order": ("benchmark.data_order", "check the order of rows of killed and resumed runs"),
    "benchmark.input": ("benchmark.input", "time the input side"),
    "benchmark.upgrades": ("benchmark.upgrades", "train with one set of packages and resume with another"),
}


def usage() -> str:
    """One line per program."""
    lines = "\n".join(f"  {name:21} {what}" for name, (_, what) in PROGRAMS.items())
    return f"usage: simcas PROGRAM ...\n\n{lines}\n\nsimcas PROGRAM --help has examples. exit codes: {cli.EXITS}"


def main(argv: Sequence[str] | None = None) -> int:
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"jax_simcas {jax_simcas.__version__}")
        return 0
    if name not in PROGRAMS:
        cli.fail(f"simcas {name or '(nothing)'}: expected one of {', '.join(PROGRAMS)}; see simcas --help")
        return cli.EXIT_USAGE
    module = PROGRAMS[name][0]
    return cli.guarded(lambda: importlib.import_module(f"jax_simcas.{module}").main(rest[:-1]))


if __name__ == "__main__":
    sys.exit(main())
