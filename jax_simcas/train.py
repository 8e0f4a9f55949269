"""Trains a model: the transformer by cross-entropy, the selector by PPO, in turns.

examples:
  python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/embedded
  python -m jax_simcas.train --config=configs/sumpubmed.py --workdir=runs/sumpubmed \\
      --config.data.data_dir=DATA --config.loop.steps=500 --config.simcas.dtype=bfloat16

Every field of a config can be changed: --config.FIELD=VALUE; WORKDIR/config.json lists them all.
The same command again resumes from the newest good checkpoint. WORKDIR gets config.json, tokenizer/,
checkpoints/ (latest and best), metrics.jsonl, TensorBoard files and PNG curves.
exit codes: 0 trained; 1 an error, told in one line; 75 stopped by SIGTERM, after a checkpoint; 130 Ctrl-C;
134 another process of the job died; 143 (as shells show it) ended by SIGTERM before the first step, when there is
nothing to save. After 75, 130, 134, 143 and 137 (SIGKILL) the same command goes on.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.run import config as config_lib
from jax_simcas.run.loop import train
from jax_simcas.run.processes import guarded, is_main, join, notify

EXIT_PREEMPTED = 75  # BSD's EX_TEMPFAIL: the same command again goes on


def main(config: Any, workdir: str, distributed: str = "") -> int:
    """The program after its flags are read."""
    if config is None:
        raise UserError("--config is missing: --config=configs/NAME.py")
    settings = config_lib.from_config(config)
    if not workdir:
        raise UserError("--workdir is missing: the folder for checkpoints and figures")
    cli.prepare()
    join(distributed)
    outcome = train(settings, workdir, cli.cache_dir())
    if outcome.preempted:
        notify(f"stopped by SIGTERM; step {outcome.step} is saved, the same command goes on")
        return EXIT_PREEMPTED
    if outcome.metrics and is_main():
        figures = ", ".join(f"{k} {v:.4g}" for k, v in outcome.metrics.items() if k in ("nll", "loss"))
        print(f"step {outcome.step}: validation {figures}; see {workdir}/curves.png")
    return 0


if __name__ == "__main__":
    CONFIG_FLAG = config_flags.DEFINE_config_file("config", None, "Config file: configs/NAME.py.")
    WORKDIR_FLAG = flags.DEFINE_string("workdir", "", "Folder for checkpoints and figures; may be gs://...")
    DISTRIBUTED_FLAG = flags.DEFINE_string(
        "distributed", "", "auto (TPU pod, Slurm) or HOST:PORT,COUNT,INDEX: one of several processes."
    )
    app.run(
        lambda _: sys.exit(guarded(lambda: main(CONFIG_FLAG.value, WORKDIR_FLAG.value, DISTRIBUTED_FLAG.value))),
        flags_parser=cli.parse_flags,
    )
