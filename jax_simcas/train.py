"""Trains a model: the transformer by cross-entropy, the selector by PPO, in turns.

Every field of a config can be changed: --config.FIELD=VALUE; WORKDIR/config.json lists them all.
The same command again resumes from the newest good checkpoint. WORKDIR gets config.json, tokenizer/,
checkpoints/ (latest and best), metrics.jsonl, TensorBoard files and PNG curves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax_simcas.common import cli

EXAMPLES = """\
  python -m jax_simcas.train --config=embedded --workdir=runs/embedded
  python -m jax_simcas.train --config=configs/sumpubmed.py --workdir=runs/sumpubmed \\
      --config.data.data_dir=DATA --config.loop.steps=500 --config.simcas.dtype=bfloat16
"""
EXITS = f"""{cli.EXITS};
{cli.EXIT_STOPPED} stopped by SIGTERM, after a checkpoint; 134 another process of the job died; 143 (as shells show it)
ended by SIGTERM before the first step, when there is nothing to save. After 75, 130, 134, 143 and 137 (SIGKILL) the
same command resumes."""


def parser() -> cli.Parser:
    made = cli.parser("train", __doc__ or "", EXAMPLES, EXITS)
    cli.with_config(made, file=True)
    made.add_argument("--workdir", required=True, type=cli.text, help="for checkpoints and figures; may be gs://...")
    cli.add_distributed(made)
    return made


def train(arguments: Any) -> int:
    from jax_simcas.run import loop
    from jax_simcas.run.config_file import settings_of
    from jax_simcas.run.processes import is_main, join, notify

    settings = settings_of(arguments)
    cli.prepare_jax()
    join(arguments.distributed)
    outcome = loop.train(settings, arguments.workdir, cli.cache_dir())
    if outcome.preempted:
        notify(f"stopped by SIGTERM; step {outcome.step} is saved, the same command resumes")
        return cli.EXIT_STOPPED
    if outcome.metrics and is_main():
        figures = ", ".join(f"{k} {v:.4g}" for k, v in outcome.metrics.items() if k in ("nll", "loss"))
        print(f"step {outcome.step}: validation {figures}; see {arguments.workdir}/curves.png")
    return 0


def run(arguments: Any) -> int:
    from jax_simcas.run.processes import guarded_job

    return guarded_job(lambda: train(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
