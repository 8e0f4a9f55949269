"""Times the stages of the method against the length of the document: seconds, tokens/s, memory, growth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.benchmark --stages encode --lengths 8192,16384,32768,65536
  python -m jax_simcas.benchmark --sides jax,torch --stages encode,transformer,generate --lengths 16384
  python -m jax_simcas.benchmark --released ~/SimCAS --released-python ~/released/bin/python --dtypes float32,bfloat16
  python -m jax_simcas.benchmark --device gpu --sides jax,torch,torch-bf16-compile --model large --dtypes bfloat16 \
    --stages encode,transformer --lengths 16384
  python -m jax_simcas.benchmark --model flan-t5-base,bart-base --sides jax,torch --stages encode --lengths 16384
  python -m jax_simcas.benchmark --quick
"""
STAGES = ("encode", "select", "decode", "reward", "transformer", "selector", "ppo", "generate", "summarize")
SIDES = ("jax", "torch", "torch-compile", "torch-bf16", "torch-bf16-compile", "released")
PUBLISHED = (
    *("bart-base", "bart-large", "flan-t5-base", "flan-t5-large", "flan-t5-xl", "pegasus-large", "led-base-16384"),
    *("t5gemma-2-270m-270m", "t5gemma-2-1b-1b"),
)
MODELS = ("base", "large", "tiny", "tiny-t5", *PUBLISHED)
DTYPES = ("float32", "bfloat16")
DEVICES = ("cpu", "gpu")
REMATS = ("none", "dots", "sums", "layer")
ATTENTIONS = ("auto", "xla", "cudnn")
REMAT = "layer"
QUICK = {"stages": ["encode", "select"], "lengths": (2_048, 4_096, 8_192), "size": ["tiny"], "repeats": 3}


def models(text: str) -> list[str]:
    """A flag's type: some of MODELS, or folders with a config.json, between commas."""
    given = cli.names(text)
    for name in given:
        if name not in MODELS and not (Path(name) / "config.json").is_file():
            expected = f"some of {', '.join(MODELS)}, or folders with a config.json"
            raise argparse.ArgumentTypeError(f"{name!r}: expected {expected}")
    return given


def add_models(made: cli.Parser, default: Sequence[str]) -> None:
    """Adds --model, with its older name."""
    made.add_argument(
        *("--model", "--size"),
        dest="size",
        type=models,
        default=list(default),
        metavar="MODEL",
        help=f"some of {', '.join(MODELS)} (base, large and tiny are BART's), or folders with a config.json, "
        f"between commas; the weights are random (default {','.join(default)})",
    )


def parser() -> cli.Parser:
    made = cli.parser("benchmark", __doc__ or "", EXAMPLES)
    made.add_argument(
        "--stages", type=cli.some_of(STAGES), default=["encode"], help=f"some of {', '.join(STAGES)} (default encode)"
    )
    made.add_argument(
        "--sides",
        type=cli.some_of(SIDES),
        default=["jax"],
        help=f"some of {', '.join(SIDES)}: torch is the PyTorch peer (needs torch) with autocast, -bf16 with weights "
        "in bfloat16, -compile through torch.compile; released is the authors' code, for BART",
    )
    made.add_argument(
        "--device", default="cpu", choices=DEVICES, help="cpu, or gpu for the first NVIDIA card (default cpu)"
    )
    made.add_argument(
        "--released", type=cli.text, metavar="PATH", help="a clone of the authors' code: adds the side released"
    )
    made.add_argument(
        "--released-python", metavar="PY", default=sys.executable, help="a Python with torch and transformers 4.42.4"
    )
    made.add_argument(
        "--torch-python",
        metavar="PY",
        default=sys.executable,
        help="a Python with torch and what jax_simcas needs, for the torch sides: a CPU build of torch may be at hand "
        "for another Python than the one of the newest jax (default: this one)",
    )
    made.add_argument(
        "--lengths", type=cli.numbers(1), default=(8_192, 16_384, 32_768, 65_536), help="tokens of the document"
    )
    add_models(made, ["base"])
    made.add_argument("--dtypes", type=cli.some_of(DTYPES), default=["float32"], help="float32, bfloat16 or both")
    made.add_argument("--chunk-length", type=cli.positive, default=512)
    made.add_argument("--target", type=cli.positive, default=256, help="tokens of the summary")
    made.add_argument("--selected", type=cli.positive, default=2_048, help="states that generation reads")
    made.add_argument(
        "--remat",
        type=cli.some_of(REMATS),
        default=[REMAT],
        help=f"in our training steps: some of {', '.join(REMATS)} (default {REMAT})",
    )
    made.add_argument("--attention", default="auto", choices=ATTENTIONS, help="on our side (default auto)")
    made.add_argument("--repeats", type=cli.positive, default=5, help="timed runs per task (default 5)")
    made.add_argument(
        "--seconds",
        type=cli.number(float, 0),
        help="for everything; what is not ready after three quarters of it is skipped",
    )
    made.add_argument(
        "--together", type=cli.positive, default=1, help="tasks that are prepared at the same time; each is timed alone"
    )
    made.add_argument("--output", type=cli.text, default="runs/benchmark", help="for benchmark.json and benchmark.png")
    made.add_argument("--quick", action="store_true", help="a tiny model and short documents; under two minutes")
    return made


def run(arguments: Any) -> int:
    from jax_simcas.benchmark import lengths

    return lengths.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.quick:
        made.set_defaults(**QUICK)  # flags given explicitly keep their values
        arguments = made.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
