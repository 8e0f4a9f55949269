"""Compiles the programs for a TPU slice that is not there, and says whether they fit and how well they would run.

examples:
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=v5e:16x16 --config.simcas.capacity=2048
  python -m jax_simcas.compile_check --config=configs/arxiv.py --topology=v5e:1x1 --stages=train --slowest=20 \\
      --config.pretrained=facebook/bart-large --config.simcas.capacity=2048 --json=check.json

Needs libtpu's compiler, pip install 'jax_simcas[tpu]', on any Linux CPU; a program takes about a minute. The model's
sizes are those of facebook/bart-base or -large where `pretrained` names it, config.bart's otherwise.

memory: bytes a device of arguments and of temporaries, and the peak of what lives at once, against what the compiler
lets a program have. Temporaries that are never needed together can add up to more than that; the peak decides.
estimate: scheduled instructions' estimated cycles times their loops' trips, over an ASSUMED clock. No measurement: it
leaves out collectives, Pallas kernels and gathers, scatters and sorts, which are listed.
utilisation: model FLOPs (nothing recomputed) over the estimate, as a share of the chip's bfloat16 peak.
exit codes: 0 all compile and fit; 1 one does not, or an error, told in one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from jax_simcas.backbones.bart.config import BART_BASE, BART_LARGE, BartConfig
from jax_simcas.backbones.bart.layers import stack_layers
from jax_simcas.common import cli, files, tables
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import batch_shardings, fitted, make_mesh, over_documents, replicated, state_shardings
from jax_simcas.compile_check import flops, hlo, topology
from jax_simcas.compile_check.topology import Topology
from jax_simcas.method.beam_search import generate
from jax_simcas.method.model import check_fits, encode_and_select, init_params
from jax_simcas.method.steps import Batch, init_state, selector_step, transformer_step
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import Settings

PUBLISHED = {"facebook/bart-base": BART_BASE, "facebook/bart-large": BART_LARGE}
GIB, MIB = 2**30, 2**20
COLUMNS = (
    *("stage", "fits", "arguments GiB", "temporaries GiB", "peak GiB", "memory GiB"),
    *("model TFLOP", "estimate ms", "utilisation", "collectives", "collective MiB", "compile s"),
)


@dataclass(frozen=True)
class Shapes:
    """A global batch: documents of `tokens` (specials included), with `target` tokens each."""

    documents: int
    tokens: int
    target: int


@dataclass(frozen=True)
class Program:
    """A function to compile, the shapes of its model (state or parameters) and of its batch, and what it should cost.

    flops: model FLOPs of a document.
    """

    function: Callable[[Any, Batch], Any]
    model: Any
    batch: Batch
    donate: bool
    flops: int


@dataclass(frozen=True)
class Result:
    """What the compiler says of one stage; bytes and FLOPs are a device's.

    problem: why it was not compiled; the rest is zeros then.
    peak: of the bytes that live at once, arguments included; 0: this jaxlib does not tell.
    """

    stage: str
    problem: str = ""
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    memory: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    utilisation: float = 0.0
    compile_seconds: float = 0.0
    compiled: hlo.Report | None = None

    @property
    def fits(self) -> bool:
        return not self.problem and (self.peak or self.arguments + self.temporaries) <= self.memory


# Programs


def bart_of(settings: Settings) -> BartConfig:
    """The model's sizes: a published checkpoint's, without reading it, or the config's."""
    if settings.pretrained in PUBLISHED:
        return PUBLISHED[settings.pretrained]
    return dataclasses.replace(settings.bart, vocab_size=settings.data.vocab_size)


def batch_shapes(shapes: Shapes, chunk_length: int) -> Batch:
    """Arrays of a batch, as shapes. Whole chunks."""
    rows, chunks = shapes.documents, -(-shapes.tokens // chunk_length)
    shape = jax.ShapeDtypeStruct
    arrays = {
        "input_ids": shape((rows, chunks, chunk_length), jnp.int32),
        "token_mask": shape((rows, chunks, chunk_length), bool),
        "chunk_mask": shape((rows, chunks), bool),
        "target_ids": shape((rows, shapes.target), jnp.int32),
        "target_mask": shape((rows, shapes.target), bool),
    }
    return cast(Batch, arrays)


def sizes_of(settings: Settings, shapes: Shapes) -> flops.Sizes:
    """What a document's FLOPs depend on."""
    length = settings.simcas.chunk_length
    chunks = -(-shapes.tokens // length)
    everything = 1 + chunks * (length - 1)
    return flops.Sizes(chunks, length, min(settings.simcas.capacity or everything, everything), shapes.target)


def _state(settings: Settings) -> Any:
    def fresh(key: jax.Array) -> Any:
        params = init_params(key, settings.bart, settings.simcas)
        return init_state(stack_layers(params), settings.optimizer, key)

    return jax.eval_shape(fresh, jax.random.key(0))


def train_program(settings: Settings, shapes: Shapes) -> Program:
    """One batch of the transformer's update."""
    options: Any = {"bart": settings.bart, "simcas": settings.simcas, "config": settings.optimizer}
    return Program(
        function=partial(transformer_step, **options),
        model=_state(settings),
        batch=batch_shapes(shapes, settings.simcas.chunk_length),
        donate=True,
        flops=flops.transformer_step(settings.bart, sizes_of(settings, shapes)),
    )


def ppo_program(settings: Settings, shapes: Shapes) -> Program:
    """One batch of the selector's update."""
    options: Any = {"bart": settings.bart, "simcas": settings.simcas, "config": settings.optimizer}
    epochs = settings.optimizer.ppo.epochs
    return Program(
        function=partial(selector_step, **options),
        model=_state(settings),
        batch=batch_shapes(shapes, settings.simcas.chunk_length),
        donate=True,
        flops=flops.selector_step(settings.bart, sizes_of(settings, shapes), epochs),
    )


def generate_program(settings: Settings, shapes: Shapes) -> Program:
    """Encode, select, and search for summaries of `shapes.target` tokens: as many steps as there can be."""
    bart, simcas = settings.bart, settings.simcas
    config = dataclasses.replace(settings.generate, max_length=shapes.target, min_length=0)

    def summarize(params: Any, batch: Batch) -> Any:
        keys = jax.random.split(jax.random.key(0), shapes.documents)

        def one(ids: Any, token_mask: Any, chunk_mask: Any, key: Any) -> Any:
            compacted = encode_and_select(params, bart, simcas, ids, token_mask, chunk_mask, select_key=key).compacted
            return generate(params, bart, config, compacted.states, compacted.mask, jnp.dtype(simcas.dtype))

        return over_documents(one)(batch["input_ids"], batch["token_mask"], batch["chunk_mask"], keys)

    return Program(
        function=summarize,
        model=jax.eval_shape(lambda key: init_params(key, bart, simcas), jax.random.key(0)),
        batch=batch_shapes(shapes, simcas.chunk_length),
        donate=False,
        flops=flops.generate(bart, sizes_of(settings, shapes), config.num_beams),
    )


STAGES = {"train": train_program, "ppo": ppo_program, "generate": generate_program}


def placed(task: Program, mesh: Mesh) -> tuple[Any, Batch]:
    """Model and batch as shapes that lie on the mesh as in training."""
    on = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    shardings = state_shardings(mesh, task.model), batch_shardings(mesh, task.batch)
    return jax.tree.map(on, task.model, shardings[0]), jax.tree.map(on, task.batch, shardings[1])


# Compiling


def mesh_sizes(settings: Settings, shapes: Shapes, devices: int) -> dict[str, int]:
    """The axes of config.mesh on the slice.

    Raises:
      UserError: they leave devices idle, or documents or chunks do not divide over them.
    """
    try:
        sizes = fitted(settings.mesh, devices, shapes.documents)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None
    shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    if math.prod(sizes.values()) < devices or shapes.documents % (sizes["data"] * sizes["fsdp"]):
        raise UserError(
            f"--documents={shapes.documents}: config.mesh gives {shown} on {devices} devices; expected a multiple of "
            "data x fsdp, with every device in the mesh"
        )
    chunks = -(-shapes.tokens // settings.simcas.chunk_length)
    if chunks % sizes["chunk"] or settings.simcas.chunk_length % sizes["chunk"]:
        raise UserError(f"--tokens={shapes.tokens}: {chunks} chunks do not divide over config.mesh.chunk ({shown})")
    return sizes


def check(stage: str, settings: Settings, shapes: Shapes, where: Topology) -> Result:
    """Compiles one stage for the slice; what the compiler refuses is a `problem`."""
    task = STAGES[stage](settings, shapes)
    count = len(where.devices)
    started = time.monotonic()
    mesh = make_mesh(mesh_sizes(settings, shapes, count), where.devices)
    model, batch = placed(task, mesh)
    options: Any = {}
    if task.donate:  # a step: its state stays where it is
        out = jax.tree.map(lambda x: x.sharding, model), replicated(mesh)
        options = {"donate_argnums": 0, "out_shardings": out}
    try:
        with jax.set_mesh(mesh):
            traced = jax.jit(task.function, **options).trace(model, batch)
            compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        return Result(stage, problem=problem_of(str(error)), memory=where.chip.memory)
    statistics, text = compiled.memory_analysis(), compiled.as_text()
    assert statistics is not None and text is not None
    found = hlo.report(text)
    seconds = found.cycles / where.chip.clock
    model_flops = task.flops * shapes.documents / count
    fresh = statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    return Result(
        stage,
        arguments=statistics.argument_size_in_bytes,
        temporaries=statistics.temp_size_in_bytes + fresh,
        peak=getattr(statistics, "peak_memory_in_bytes", 0),
        memory=where.chip.memory,
        flops=model_flops,
        seconds=seconds,
        utilisation=model_flops / (seconds * where.chip.peak),
        compile_seconds=time.monotonic() - started,
        compiled=found,
    )


def problem_of(message: str) -> str:
    """The compiler's message in a line: what it needs of what there is, where it says so."""
    for pattern in (r"Used (\S+) of (\S+) hbm", r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)"):
        if large := re.search(pattern, message):
            return f"needs {large.group(1)} of {large.group(2)} memory"
    return " ".join(message.split())[:300]


# What is printed and written


def row(result: Result) -> dict[str, Any]:
    """A stage's line of the table."""
    cells: dict[str, Any] = {"stage": result.stage, "fits": "yes" if result.fits else "NO"}
    cells["memory GiB"] = result.memory / GIB
    if result.compiled is None:
        return cells
    collectives = result.compiled.collectives
    return cells | {
        "arguments GiB": result.arguments / GIB,
        "temporaries GiB": result.temporaries / GIB,
        "peak GiB": result.peak / GIB if result.peak else None,
        "model TFLOP": result.flops / 1e12,
        "estimate ms": 1e3 * result.seconds,
        "utilisation": result.utilisation,
        "collectives": sum(collective.executions for collective in collectives),
        "collective MiB": sum(collective.total_bytes for collective in collectives) / MIB,
        "compile s": result.compile_seconds,
    }


def remarks(result: Result) -> list[str]:
    """What the estimate leaves out, and what it takes for granted."""
    if result.compiled is None:
        return [f"{result.stage}: not compiled: {result.problem}"]
    listed = lambda pairs: ", ".join(f"{count} {name}" for name, count in pairs)
    lines = []
    if result.compiled.kernels:
        lines.append(f"without the time of Pallas kernels: {listed(result.compiled.kernels)}")
    if result.compiled.missing:
        lines.append(f"without an estimate of: {listed(result.compiled.missing)}")
    for kind, (count, size) in hlo.by_kind(result.compiled.collectives).items():
        lines.append(f"without the time of {count} {kind}, {size / MIB:.1f} MiB")
    for loop in result.compiled.loops:
        if loop.trips is None:
            lines.append(f"one trip counted of a loop of unknown length: {loop.op_name or loop.name}")
        elif loop.at_most:
            lines.append(f"all {loop.trips} trips counted of a loop that may end earlier: {loop.op_name or loop.name}")
    return [f"{result.stage}: {line}" for line in lines]


def slowest_table(result: Result, count: int, clock: float) -> str:
    """Where the estimated time goes: places in the program, then single instructions."""
    assert result.compiled is not None
    total = max(result.compiled.cycles, 1)
    places = [
        {"ms": 1e3 * s.cycles / clock, "%": 100 * s.cycles / total, "phase": s.phase, "place": s.source}
        for s in result.compiled.shares()[:count]
    ]
    steps = [
        {
            "ms": 1e3 * step.total_cycles / clock,
            "times": step.executions,
            "instruction": step.name,
            "phase": step.phase,
            "place": step.source,
            "operation": step.op_name.rsplit("/", 1)[-1],
            "shape": step.shape,
        }
        for step in result.compiled.slowest(count)
    ]
    arrays = [
        {"MiB": step.bytes / MIB, "opcode": step.opcode, "phase": step.phase, "place": step.source, "shape": step.shape}
        for step in result.compiled.largest(count)
    ]
    return "\n\n".join(tables.markdown_table(rows, list(rows[0])) for rows in (places, steps, arrays) if rows)


def as_json(result: Result, count: int) -> dict[str, Any]:
    """Everything but the scheduled instructions, of which the `count` slowest and largest stay."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "compiled"}
    fields["fits"] = result.fits
    if (found := result.compiled) is not None:
        fields |= {
            "cycles": found.cycles,
            "collectives": [dataclasses.asdict(c) | {"total_bytes": c.total_bytes} for c in found.collectives],
            "kernels": dict(found.kernels),
            "missing": dict(found.missing),
            "loops": [dataclasses.asdict(loop) for loop in found.loops],
            "places": [dataclasses.asdict(share) for share in found.shares()],
            "slowest": [dataclasses.asdict(step) for step in found.slowest(count)],
            "largest": [dataclasses.asdict(step) for step in found.largest(count)],
        }
    return fields


def main(config: Any, name: str, stages: list[str], shapes: tuple[int, int, int], count: int, output: str) -> int:
    """The program after its flags are read; `shapes` are documents, tokens and target tokens, 0 for the default."""
    if config is None:
        raise UserError("--config is missing: --config=configs/NAME.py")
    settings = config_lib.from_config(config)
    if not name:
        raise UserError(f"--topology is missing: a TPU slice such as {topology.EXAMPLES}")
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UserError(f"--stages={','.join(stages)}: expected some of {', '.join(STAGES)}")
    cli.prepare()
    topology.prepare_environment()
    settings = dataclasses.replace(settings, bart=bart_of(settings))
    where = topology.describe(name)
    documents, tokens, target = shapes
    batch = Shapes(
        documents or len(where.devices),
        tokens or settings.simcas.max_input_len,
        target or min(settings.simcas.max_target_len, settings.bart.max_position_embeddings),
    )
    try:
        check_fits(settings.bart, settings.simcas.replace(max_target_len=batch.target))
    except ValueError as error:
        raise UserError(str(error)) from None
    sizes = mesh_sizes(settings, batch, len(where.devices))
    print(
        f"{name}, {len(where.devices)} devices ({', '.join(f'{axis} {size}' for axis, size in sizes.items())}); "
        f"{batch.documents} documents of {batch.tokens} tokens, {batch.target} target tokens; "
        f"clock assumed {where.chip.clock / 1e9:g} GHz, peak {where.chip.peak / 1e12:g} TFLOP/s",
        file=sys.stderr,
    )
    results = []
    for stage in stages:
        results.append(check(stage, settings, batch, where))
        print(f"{stage}: {'compiled' if results[-1].compiled else 'not compiled'}", file=sys.stderr)
    print(tables.markdown_table([row(result) for result in results], COLUMNS))
    for result in results:
        for line in remarks(result):
            print(line)
    for result in results:
        if count and result.compiled is not None:
            print(f"\n{result.stage}: where the estimate goes\n\n{slowest_table(result, count, where.chip.clock)}")
    if output:
        content = {
            "topology": name,
            "devices": len(where.devices),
            **dataclasses.asdict(batch),
            "clock": where.chip.clock,
            "peak": where.chip.peak,
            "stages": [as_json(result, count or 20) for result in results],
        }
        files.replace_file(Path(output), (json.dumps(files.json_ready(content), indent=1) + "\n").encode())
    return 0 if all(result.fits for result in results) else cli.EXIT_ERROR


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Config file: configs/NAME.py.")
    TOPOLOGY = flags.DEFINE_string("topology", "", "TPU slice: GENERATION:CHIPS, such as v5e:16x16.")
    WHICH = flags.DEFINE_list("stages", list(STAGES), f"What to compile, of {', '.join(STAGES)}.")
    DOCUMENTS = flags.DEFINE_integer("documents", 0, "Documents of the global batch; 0: one a device.", 0)
    TOKENS = flags.DEFINE_integer("tokens", 0, "Tokens of a document; 0: config.simcas.max_input_len.", 0)
    TARGET = flags.DEFINE_integer("target", 256, "Target tokens, or those of a summary; 0: as many as there may be.", 0)
    SLOWEST = flags.DEFINE_integer("slowest", 0, "So many of the slowest places and instructions are listed.", 0)
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
