"""Compiling the stages for a slice and telling whether they fit: what `jax_simcas.compile_check` runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, files
from jax_simcas.common.errors import prefixed
from jax_simcas.common.sharding import fitted
from jax_simcas.common.tables import plural
from jax_simcas.compile_check import output, topology
from jax_simcas.compile_check.programs import BatchShape, compile_stage, mesh_sizes, shape_of
from jax_simcas.compile_check.topology import Topology
from jax_simcas.method.chunk import bucket, most_chunks
from jax_simcas.method.generate_config import DEFAULTS
from jax_simcas.run import config as config_lib
from jax_simcas.run.build import fitted_to
from jax_simcas.run.config import Settings
from jax_simcas.run.config_file import settings_of


def batch_shape(settings: Settings, documents: int, tokens: int, target: int, devices: int) -> BatchShape:
    """The batch asked for, 0 standing for the default.

    Raises:
      UserError: the model has fewer positions than target tokens or tokens of a chunk.
    """
    tokens, documents = tokens or settings.simcas.max_input_len, documents or devices
    longest = settings.simcas.max_target_len
    target = target or min(longest, settings.backbone_config.positions or longest)
    shape = BatchShape(documents, tokens, target, _chunks(settings, tokens, documents, devices))
    simcas = settings.simcas.replace(max_input_len=shape.tokens, max_target_len=shape.target)
    asked = settings.generate.filled(DEFAULTS)
    most = min(asked.max_length or shape.target, shape.target)
    generate = dataclasses.replace(asked, max_length=most, min_length=min(asked.min_length or 0, most))
    config_lib.check(dataclasses.replace(settings, simcas=simcas, generate=generate), sizes_known=True)
    return shape


def _chunks(settings: Settings, tokens: int, documents: int, devices: int) -> int:
    """The chunks of so many tokens as training pads them: to a bucket, and to what the mesh divides."""
    simcas, buckets = settings.simcas, settings.data.chunk_buckets
    content = most_chunks(max(tokens - 2, 0), simcas.chunk_length, sentences=simcas.chunking == "sentences")
    padded = bucket(content, buckets, content)
    try:
        along = fitted(settings.mesh, devices, documents)["chunk"]
    except ValueError:  # which `mesh_sizes` reports
        return padded
    return -(-padded // along) * along


def summary_line(settings: Settings, shape: BatchShape, target: Topology) -> str:
    """The slice, the mesh on it and the batch, in one line."""
    sizes = mesh_sizes(settings, shape, len(target.devices))
    chip = target.chip
    clock = f"clock assumed {chip.clock / 1e9:g} GHz" if chip.clock else "no estimate of time"
    mesh = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    return (
        f"{target.name}, {len(target.devices)} devices ({mesh}); "
        f"{shape.documents} documents of {shape.tokens} tokens in {plural(shape.chunks, 'chunk')}, "
        f"{shape.target} target tokens; "
        f"{clock}, peak {chip.peak / 1e12:g} TFLOP/s"
    )


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    settings = settings_of(arguments)
    with prefixed("--topology="):
        topology.parse_topology(arguments.topology)
    if arguments.json:
        files.check_place(Path(arguments.json), "--json")
    cli.prepare_jax()
    topology.prepare_environment()
    model = shape_of(settings)
    if model is None:
        unread = f"config.pretrained={settings.pretrained!r} is not read"
        print(f"warning: {unread}: the sizes are those of config.{settings.family}", file=sys.stderr)
    settings = settings.with_backbone_config(model or settings.backbone_config)
    settings = fitted_to(settings, settings.backbone_config) if settings.pretrained else settings
    with prefixed("--topology="):
        target = topology.describe(arguments.topology)
    shape = (arguments.documents, arguments.tokens, arguments.target)
    batch = batch_shape(settings, *shape, devices=len(target.devices))
    print(summary_line(settings, batch, target), file=sys.stderr)
    results = []
    for stage in arguments.stages:
        results.append(compile_stage(stage, settings, batch, target))
        print(f"{stage}: {'compiled' if results[-1].analysis else 'not compiled'}", file=sys.stderr)
    for line in output.printed_lines(results, arguments.slowest, target.chip.clock):
        print(line)
    if arguments.json:
        content = output.json_of(results, batch, target, arguments.slowest or 20)
        files.replace_file(Path(arguments.json), (json.dumps(files.json_ready(content), indent=1) + "\n").encode())
    return 0 if all(result.fits for result in results) else cli.EXIT_ERROR
