"""Cost analysis of compiled HLO text: estimated cycles, loops, collectives, kernels, large arrays. Pure functions.

`cost_analysis` of XLA counts a loop's body once; here it counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from jax_simcas.compile_check.hlo import Instruction, Module, parse_module, shape_bytes
from jax_simcas.compile_check.loops import Execution, Loop, executions, loop_of

KERNEL = "tpu_custom_call"  # a Pallas (Mosaic) kernel
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# What the method's functions name their parts by.
SCOPES = ("encode", "select", "compact", "decode", "loss", "values", "reward", "ppo", "update", "generate")
NAMES_ONLY = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call")
# Opcodes that do work even without an estimate; others start or await a copy, or handle a scalar.
WORK = ("fusion", "sort", "gather", "scatter", "reduce", "reduce-window", "convolution", "dot", "copy")
SCALARS = 8 * 128 * 4  # bytes up to which a copy counts as no work: one tile, the least that an array takes


@dataclass(frozen=True)
class Scheduled:
    """One scheduled instruction.

    cycles: the compiler's estimate of one execution; None where it has none.
    bytes: of its result as the device holds it, padding to tiles included.
    phase: forward, recomputed (for the backward pass) or backward; "" outside differentiation.
    """

    name: str
    opcode: str
    shape: str
    executions: int
    cycles: int | None
    bytes: int
    source: str
    phase: str
    op_name: str

    @property
    def total_cycles(self) -> int:
        return self.executions * (self.cycles or 0)


@dataclass(frozen=True)
class PlaceCost:
    """The cycles of all executions of one place in the program, in one phase."""

    source: str
    phase: str
    cycles: int


@dataclass(frozen=True)
class Collective:
    """One collective operation and how often a device takes part in it.

    bytes: of its full array (what is reduced; what is gathered, together; what is sent) per execution and device.
    group: number of devices that take part in it together; None: all.
    """

    kind: str
    executions: int
    bytes: int
    group: int | None
    op_name: str

    @property
    def total_bytes(self) -> int:
        return self.executions * self.bytes


@dataclass(frozen=True)
class Analysis:
    """What the text of one compiled program contains.

    kernels: (name, executions) of Pallas kernels, which the compiler does not look into.
    missing: (what, executions) of other work without an estimate: gathers, scatters, sorts.
    """

    instructions: tuple[Scheduled, ...]
    loops: tuple[Loop, ...]
    collectives: tuple[Collective, ...]  # most bytes first
    kernels: tuple[tuple[str, int], ...]
    missing: tuple[tuple[str, int], ...]

    @property
    def cycles(self) -> int:
        """The sum of the compiler's estimates, without collectives, `kernels` and `missing`."""
        return sum(instruction.total_cycles for instruction in self.instructions)

    def places(self) -> tuple[PlaceCost, ...]:
        """Cycles per source and phase, largest first."""
        totals: Counter[tuple[str, str]] = Counter()
        for instruction in self.instructions:
            totals[instruction.source, instruction.phase] += instruction.total_cycles
        return tuple(PlaceCost(*key, cycles) for key, cycles in totals.most_common() if cycles)

    def scopes(self) -> dict[str, int]:
        """Cycles per part of the method (`jax.named_scope`, the outermost of SCOPES), most first; "" for the rest."""
        totals: Counter[str] = Counter()
        for instruction in self.instructions:
            totals[scope(instruction.op_name)] += instruction.total_cycles
        return {name: cycles for name, cycles in totals.most_common() if cycles}

    def slowest(self, count: int) -> tuple[Scheduled, ...]:
        return tuple(sorted(self.instructions, key=lambda instruction: -instruction.total_cycles)[:count])

    def largest(self, count: int) -> tuple[Scheduled, ...]:
        return tuple(sorted(self.instructions, key=lambda instruction: -instruction.bytes)[:count])


def analyze(text: str) -> Analysis:
    """Walks a compiled module's text from its entry."""
    module = parse_module(text)
    visited = list(executions(module))
    fused = {name for each in visited if each.instruction.opcode == "fusion" for name in each.instruction.called}
    visible = [each for each in visited if each.computation not in fused]  # a fusion stands for what it contains
    kernels: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for _, instruction, times in visible:
        if instruction.target == KERNEL:
            kernels[instruction.op_name or instruction.name] += times
        elif instruction.cycles is None and (work := _unestimated(instruction)):
            missing[work] += times
    loops = {
        each.instruction.name: loop_of(module, each.computation, each.instruction)
        for each in visible
        if each.instruction.opcode == "while"
    }
    return Analysis(
        instructions=tuple(_scheduled(module, each) for each in visible if each.instruction.opcode not in NAMES_ONLY),
        loops=tuple(loops.values()),
        collectives=_collectives(module, visited),
        kernels=tuple(kernels.most_common()),
        missing=tuple(missing.most_common()),
    )


def _scheduled(module: Module, execution: Execution) -> Scheduled:
    instruction = execution.instruction
    return Scheduled(
        name=instruction.name,
        opcode=instruction.opcode,
        shape=instruction.shape,
        executions=execution.times,
        cycles=instruction.cycles,
        bytes=shape_bytes(instruction.shape, padded=True),
        source=source(module, instruction),
        phase=phase(instruction.op_name),
        op_name=instruction.op_name,
    )


def source(module: Module, instruction: Instruction) -> str:
    """`function (file:line)` of the innermost frame outside installed libraries; else the operation's name."""
    stack = module.stack(instruction)
    frames = [frame for frame in stack if "site-packages" not in frame.file] or list(stack)
    if frames:
        return f"{frames[0].function} ({frames[0].file.rsplit('/', 1)[-1]}:{frames[0].line})"
    return instruction.op_name or f"{instruction.opcode} added by the compiler"


def phase(op_name: str) -> str:
    """forward, recomputed (for the backward pass), backward, or "" outside differentiation."""
    if "rematted_computation" in op_name:
        return "recomputed"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else ""


def scope(op_name: str) -> str:
    """The outermost part of the method in the path of an operation, "jit(step)/transpose(jvp(encode))/dot"; or ""."""
    parts = (re.sub(r"^(?:\w+\()*|\)*$", "", part) for part in op_name.split("/")[:-1])
    return next((part for part in parts if part in SCOPES), "")


def _unestimated(instruction: Instruction) -> str:
    """A name for work without an estimate; "" for an instruction that does none."""
    if instruction.opcode not in WORK:
        return ""
    if instruction.opcode == "copy" and shape_bytes(instruction.shape) <= SCALARS:
        return ""
    # The compiler names fusions after their contents: gather_fusion.3.
    return re.sub(r"[._\d]*$", "", instruction.name) if instruction.opcode == "fusion" else instruction.opcode


def _collectives(module: Module, visited: Sequence[Execution]) -> tuple[Collective, ...]:
    """Collectives of a walk, each channel once: an asynchronous one's start, done and fused parts share it.

    A start runs as often as the collective does; parts fused with other work may lie in a loop within.
    """
    found: dict[str, Collective] = {}
    for computation, instruction, times in visited:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        operands = [module.computations[computation][name] for name in instruction.operands]
        size = sum(shape_bytes(operand.shape) for operand in operands)
        group = _group(instruction.attributes)
        if kind == "all-gather":  # a start's result contains its operands as well
            size = shape_bytes(instruction.shape) - (size if instruction.opcode.endswith("-start") else 0)
        if computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as the compiler fuses it: an all-reduce and a slice of its result
        key = instruction.channel or instruction.name
        before = found.get(key)
        if before is None or times < before.executions:
            found[key] = Collective(kind, times, size, group, instruction.op_name)
    return tuple(sorted(found.values(), key=lambda collective: -collective.total_bytes))


def _group(attributes: str) -> int | None:
    """Devices of one group: `{{0,1},{2,3}}`, `[2,2]<=[4]` and `mesh['x'=2,'y'=2] {'y'}` have 2; {} is everybody."""
    named = re.search(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        # A part of an axis is written 'x':(1)4.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    iota = re.search(r"\breplica_groups=\[[\d,]*?(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(1))
    listed = re.search(r"\breplica_groups=\{\{([\d,]+)\}", attributes)
    return len(listed.group(1).split(",")) if listed else None


def by_kind(collectives: Sequence[Collective]) -> dict[str, tuple[int, int]]:
    """kind -> (executions, total bytes)."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for collective in collectives:
        totals[collective.kind][0] += collective.executions
        totals[collective.kind][1] += collective.total_bytes
    return {kind: (executions, size) for kind, (executions, size) in totals.items()}
