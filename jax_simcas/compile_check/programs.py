"""The programs that are compiled: training steps and generation, with the shapes of their arguments on a mesh."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jax_simcas.backbones.families import replaced
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.common.compiler import compiler_options
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import (
    ShardingRule,
    batch_shardings,
    fitted,
    make_mesh,
    over_documents,
    replicated,
    state_shardings,
)
from jax_simcas.compile_check import cost, flops
from jax_simcas.compile_check.published import PUBLISHED
from jax_simcas.compile_check.topology import Chip, Topology
from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.model import encode_and_select, init_params
from jax_simcas.method.steps import init_state, selector_step, transformer_step
from jax_simcas.run.build import read_sizes
from jax_simcas.run.config import Settings


@dataclass(frozen=True)
class BatchShape:
    """A global batch: documents of `tokens` in `chunks`, as training pads them, with `target` tokens each."""

    documents: int
    tokens: int
    target: int
    chunks: int


@dataclass(frozen=True)
class Program:
    """A function to compile, with the shapes of its arguments.

    model: shapes of the training state or of the parameters; donate: whether the function replaces it.
    flops: model FLOPs per document.
    """

    function: Callable[[Any, Example], Any]
    model: Any
    rules: tuple[ShardingRule, ...]  # of the sharding of `model`
    batch: Example
    donate: bool
    flops: int


@dataclass(frozen=True)
class Result:
    """The compiler's figures for one stage; bytes and FLOPs are per device.

    problem: why it was not compiled; the rest is zeros then.
    peak: bytes alive at once, arguments included; 0: this jaxlib does not report it.
    seconds, utilisation: None where the compiler estimates no time.
    """

    stage: str
    problem: str = ""
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    memory: int = 0
    flops: float = 0.0
    seconds: float | None = 0.0
    utilisation: float | None = 0.0
    compile_seconds: float = 0.0
    analysis: cost.Analysis | None = None

    @property
    def fits(self) -> bool:
        return not self.problem and (self.peak or self.arguments + self.temporaries) <= self.memory


def shape_of(settings: Settings) -> BackboneConfig | None:
    """The model's sizes: a published checkpoint's, those in a folder, or the config's; None of another hub id.

    Raises:
      UserError: what lies in the folder cannot be read.
    """
    source = settings.pretrained
    if source in PUBLISHED:
        return PUBLISHED[source]
    if not source:
        return replaced(settings.backbone_config, vocab_size=settings.data.vocab_size)
    return read_sizes(source) if Path(source).is_dir() else None


def batch_arrays(shape: BatchShape, chunk_length: int) -> Example:
    """The arrays of a batch, as shapes."""
    rows, chunks = shape.documents, shape.chunks
    array: Any = jax.ShapeDtypeStruct
    tokens, target = (rows, chunks, chunk_length), (rows, shape.target)
    document = Document(array(tokens, jnp.int32), array(tokens, bool), array((rows, chunks), bool))
    return Example(document, Target(array(target, jnp.int32), array(target, bool)))


def document_shape(settings: Settings, shape: BatchShape) -> flops.DocumentShape:
    """What the FLOPs of a document depend on."""
    length = settings.simcas.chunk_length
    everything = 1 + shape.chunks * (length - 1)
    selected = min(settings.simcas.capacity or everything, everything)
    return flops.DocumentShape(shape.chunks, length, selected, shape.target)


def _state(settings: Settings) -> Any:
    model, update = settings.model(), settings.optimizer

    def fresh(key: jax.Array) -> Any:
        params = model.backbone.stack(init_params(key, model))
        return init_state(params, update.transformer(settings.loop.steps), update.selector(), key)

    return jax.eval_shape(fresh, jax.random.key(0))


def train_program(settings: Settings, shape: BatchShape) -> Program:
    """One batch of the transformer's update."""
    model, update = settings.model(), settings.optimizer
    optimizer = update.transformer(settings.loop.steps)
    return Program(
        function=partial(transformer_step, model=model, optimizer=optimizer, label_smoothing=update.label_smoothing),
        model=_state(settings),
        rules=model.sharding_rules,
        batch=batch_arrays(shape, settings.simcas.chunk_length),
        donate=True,
        flops=flops.transformer_update(settings.backbone_config, document_shape(settings, shape)),
    )


def ppo_program(settings: Settings, shape: BatchShape) -> Program:
    """One batch of the selector's update."""
    model, update = settings.model(), settings.optimizer
    return Program(
        function=partial(selector_step, model=model, optimizer=update.selector(), ppo=update.ppo),
        model=_state(settings),
        rules=model.sharding_rules,
        batch=batch_arrays(shape, settings.simcas.chunk_length),
        donate=True,
        flops=flops.selector_update(settings.backbone_config, document_shape(settings, shape), update.ppo.epochs),
    )


def generate_program(settings: Settings, shape: BatchShape) -> Program:
    """Encode, select, and search for summaries of `shape.target` tokens: the largest number of steps."""
    model = settings.model()
    config = dataclasses.replace(settings.generate, max_length=shape.target, min_length=0)

    def summarize(params: Any, batch: Example) -> Any:
        keys = jax.random.split(jax.random.key(0), shape.documents)

        def one(document: Document, key: Any) -> Any:
            compacted = encode_and_select(params, model, document, select_key=key).compacted
            return generate(params, model, config, compacted)

        return over_documents(one)(batch.document, keys)

    return Program(
        function=summarize,
        model=jax.eval_shape(partial(init_params, model=model), jax.random.key(0)),
        rules=model.sharding_rules,
        batch=batch_arrays(shape, settings.simcas.chunk_length),
        donate=False,
        flops=flops.generation(
            settings.backbone_config, document_shape(settings, shape), config.rules(model.backbone).num_beams
        ),
    )


# Without a GPU its compiler cannot try out which algorithm is the fastest.
WITHOUT_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
STAGES = {"train": train_program, "ppo": ppo_program, "generate": generate_program}


def on_mesh(program: Program, mesh: Mesh) -> tuple[Any, Example]:
    """Model and batch as shapes with the shardings of training."""

    def place(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    model = jax.tree.map(place, program.model, state_shardings(mesh, program.model, program.rules))
    return model, jax.tree.map(place, program.batch, batch_shardings(mesh, program.batch))


def mesh_sizes(settings: Settings, shape: BatchShape, devices: int) -> dict[str, int]:
    """The axes of config.mesh on the slice.

    Raises:
      UserError: they leave devices idle, or documents or chunks do not divide over them.
    """
    try:
        sizes = fitted(settings.mesh, devices, shape.documents)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None
    shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    if math.prod(sizes.values()) < devices or shape.documents % (sizes["data"] * sizes["fsdp"]):
        raise UserError(
            f"--documents={shape.documents}: config.mesh gives {shown} on {devices} devices; expected a multiple of "
            "data x fsdp, with every device in the mesh"
        )
    length = settings.simcas.chunk_length
    if length % sizes["chunk"]:
        raise UserError(f"config.simcas.chunk_length={length} does not divide over config.mesh.chunk ({shown})")
    return sizes


def compile_stage(stage: str, settings: Settings, shape: BatchShape, target: Topology) -> Result:
    """Compiles one stage for the slice; whatever the compiler refuses becomes `problem`."""
    program = STAGES[stage](settings, shape)
    started = time.monotonic()
    mesh = make_mesh(mesh_sizes(settings, shape, len(target.devices)), target.devices)
    try:
        compiled = _compile(program, mesh, target.chip)
    except jax.errors.JaxRuntimeError as error:
        return Result(stage, problem=problem_of(str(error)), memory=target.chip.memory)
    statistics, text = compiled.memory_analysis(), compiled.as_text()
    assert statistics is not None and text is not None
    analysis = cost.analyze(text)
    seconds = analysis.cycles / target.chip.clock if target.chip.clock else None
    model_flops = program.flops * shape.documents / len(target.devices)
    outputs = statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    return Result(
        stage,
        arguments=statistics.argument_size_in_bytes,
        temporaries=statistics.temp_size_in_bytes + outputs,
        peak=getattr(statistics, "peak_memory_in_bytes", 0),
        memory=target.chip.memory,
        flops=model_flops,
        seconds=seconds,
        utilisation=model_flops / (seconds * target.chip.peak) if seconds else None,
        compile_seconds=time.monotonic() - started,
        analysis=analysis,
    )


def _compile(program: Program, mesh: Mesh, chip: Chip) -> Any:
    """The program compiled for the devices of a mesh."""
    model, batch = on_mesh(program, mesh)
    options: Any = {}
    if program.donate:  # a step: its state keeps its shardings
        options = {
            "donate_argnums": 0,
            "out_shardings": (jax.tree.map(lambda x: x.sharding, model), replicated(mesh)),
            "compiler_options": compiler_options(mesh.devices.flat[0].device_kind),
        }
    with jax.set_mesh(mesh):
        traced = jax.jit(program.function, **options).trace(model, batch)
        lowered = traced.lower(lowering_platforms=(chip.platform,))
        return lowered.compile(compiler_options=WITHOUT_GPU if chip.platform == "cuda" else None)


def problem_of(message: str) -> str:
    """The compiler's message as one line: how much memory is needed of how much, where it says so."""
    for pattern in (r"Used (\S+) of (\S+) hbm", r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)"):
        if large := re.search(pattern, message):
            return f"needs {large.group(1)} of {large.group(2)} memory"
    return " ".join(message.split())[:300]
