"""Compiles the programs for a TPU slice without having one, and reports whether they fit and how fast they would run.

examples:
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=v5e:16x16 --config.simcas.capacity=2048
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=v5e:1x1 --stages=train --slowest=20 \\
      --config.pretrained=facebook/bart-large --config.simcas.capacity=2048 --json=check.json

Needs libtpu's compiler, pip install 'jax_simcas[tpu]', on any Linux CPU; each program takes about a minute. The model's
sizes are those of facebook/bart-base or -large where `pretrained` names it, config.bart's otherwise.

memory: bytes per device of arguments and of temporaries, and the peak of what is alive at once, against what the
compiler lets a program have. Temporaries that are never needed together can add up to more; the peak decides.
estimate: scheduled instructions' estimated cycles times their loops' trips, over an ASSUMED clock. Not a measurement:
it excludes collectives, Pallas kernels, gathers, scatters and sorts, which are listed.
utilisation: model FLOPs (nothing recomputed) over the estimate, as a share of the chip's bfloat16 peak.
exit codes: 0 all compile and fit; 1 one does not, or an error (one line on standard error).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.compile_check import output, topology
from jax_simcas.compile_check.programs import STAGES, BatchShape, bart_of, compile_stage, mesh_sizes
from jax_simcas.compile_check.topology import Topology
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import Settings
from jax_simcas.run.method_config import check_fits


def batch_shape(settings: Settings, documents: int, tokens: int, target: int, devices: int) -> BatchShape:
    """The batch asked for, 0 standing for the default.

    Raises:
      UserError: the model has fewer positions than target tokens or tokens of a chunk.
    """
    shape = BatchShape(
        documents or devices,
        tokens or settings.simcas.max_input_len,
        target or min(settings.simcas.max_target_len, settings.bart.max_position_embeddings),
    )
    try:
        check_fits(settings.bart, settings.simcas.replace(max_target_len=shape.target))
    except ValueError as error:
        raise UserError(str(error)) from None
    return shape


def describe(settings: Settings, shape: BatchShape, target: Topology) -> str:
    """The slice, the mesh on it and the batch, in one line."""
    sizes = mesh_sizes(settings, shape, len(target.devices))
    mesh = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    return (
        f"{target.name}, {len(target.devices)} devices ({mesh}); "
        f"{shape.documents} documents of {shape.tokens} tokens, {shape.target} target tokens; "
        f"clock assumed {target.chip.clock / 1e9:g} GHz, peak {target.chip.peak / 1e12:g} TFLOP/s"
    )


def run(
    settings: Settings, name: str, stages: Sequence[str], shape: tuple[int, int, int], slowest: int, path: str
) -> int:
    """The program after its flags are read; `shape` is documents, tokens and target tokens, 0 for the default."""
    cli.prepare()
    topology.prepare_environment()
    settings = dataclasses.replace(settings, bart=bart_of(settings))
    target = topology.describe(name)
    batch = batch_shape(settings, *shape, devices=len(target.devices))
    print(describe(settings, batch, target), file=sys.stderr)
    results = []
    for stage in stages:
        results.append(compile_stage(stage, settings, batch, target))
        print(f"{stage}: {'compiled' if results[-1].analysis else 'not compiled'}", file=sys.stderr)
    for line in output.lines(results, slowest, target.chip.clock):
        print(line)
    if path:
        content = output.json_of(results, batch, target, slowest or 20)
        files.replace_file(Path(path), (json.dumps(files.json_ready(content), indent=1) + "\n").encode())
    return 0 if all(result.fits for result in results) else cli.EXIT_ERROR


def main(config: Any, name: str, stages: list[str], shape: tuple[int, int, int], count: int, path: str) -> int:
    """Checks the flags, then runs."""
    if config is None:
        raise UserError("--config is missing: --config=configs/NAME.py")
    settings = config_lib.from_config(config)
    if not name:
        raise UserError(f"--topology is missing: a TPU slice such as {topology.EXAMPLES}")
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UserError(f"--stages={','.join(stages)}: expected some of {', '.join(STAGES)}")
    return run(settings, name, stages, shape, count, path)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Config file: configs/NAME.py.")
    TOPOLOGY = flags.DEFINE_string("topology", "", "TPU slice: GENERATION:CHIPS, such as v5e:16x16.")
    WHICH = flags.DEFINE_list("stages", list(STAGES), f"What to compile, of {', '.join(STAGES)}.")
    DOCUMENTS = flags.DEFINE_integer("documents", 0, "Documents of the global batch; 0: one per device.", 0)
    TOKENS = flags.DEFINE_integer("tokens", 0, "Tokens of a document; 0: config.simcas.max_input_len.", 0)
    TARGET = flags.DEFINE_integer("target", 256, "Target tokens, or those of a summary; 0: the maximum.", 0)
    SLOWEST = flags.DEFINE_integer("slowest", 0, "Number of slowest places and instructions to list.", 0)
    JSON = flags.DEFINE_string("json", "", "File for all figures.")
    app.run(
        lambda _: sys.exit(
            cli.guarded(
                lambda: main(
                    CONFIG.value,
                    TOPOLOGY.value,
                    WHICH.value,
                    (DOCUMENTS.value, TOKENS.value, TARGET.value),
                    SLOWEST.value,
                    JSON.value,
                )
            )
        ),
        flags_parser=cli.parse_flags,
    )
