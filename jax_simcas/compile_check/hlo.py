"""What a compiled module's text tells: estimated cycles, loops, collectives, kernels, large arrays. Pure functions.

`compiled.as_text()` of XLA:TPU is a scheduled module: every instruction of the entry and of its loops' bodies runs in
the order of the text, and most carry the compiler's own estimate of their cycles. `cost_analysis` counts a loop's body
once; here it counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SENTINEL = 2**63 - 1  # the compiler's "no estimate"
KERNEL = "tpu_custom_call"  # a Pallas (Mosaic) kernel
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BITS = {"pred": 8, "token": 0, "opaque": 0}  # others name their width: f32, bf16, s4, f8e4m3fn, c64
NAMES_ONLY = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call")
# What of an instruction without an estimate is work; the others start or await a copy, or are a scalar's.
WORK = ("fusion", "sort", "gather", "scatter", "reduce", "reduce-window", "convolution", "dot", "copy")
SCALARS = 4096  # bytes of a copy that is no work


@dataclass(frozen=True)
class Instruction:
    """One line. `shape` is its type as written; `operands` and `called` are names."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses: a constant's value, a parameter's number
    attributes: str
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs, as written; those that reduce, sort or scatter elements are not meant."""
        single = re.findall(r"\b(?:calls|body|true_computation|false_computation)=%([^\s,})]+)", self.attributes)
        groups = re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes)
        if self.opcode == "call":
            single += re.findall(r"\bto_apply=%([^\s,})]+)", self.attributes)
        return tuple(single + [name for group in groups for name in re.findall(r"%([^\s,}]+)", group)])

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one execution; None where it has none."""
        found = self._attribute(r'"estimated_cycles":"?(\d+)')
        return None if found is None or int(found) >= SENTINEL else int(found)

    @property
    def op_name(self) -> str:
        """What traced it: `jit(step)/jvp(vmap())/while/body/...`; "" when the compiler made it up."""
        return self._attribute(r'\bop_name="((?:[^"\\]|\\.)*)"') or ""

    @property
    def channel(self) -> str | None:
        return self._attribute(r"\bchannel_id=(\d+)")

    @property
    def target(self) -> str:
        return self._attribute(r'\bcustom_call_target="([^"]*)"') or ""

    def _attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return None if found is None else found.group(1)


@dataclass(frozen=True)
class Frame:
    """A place in the traced program."""

    function: str
    file: str
    line: int


@dataclass(frozen=True)
class Module:
    """Computations by name, each by instruction name in order, and the call stacks that instructions refer to."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    stacks: Mapping[int, tuple[Frame, ...]]  # innermost first

    def stack(self, instruction: Instruction) -> tuple[Frame, ...]:
        found = re.search(r"\bstack_frame_id=(\d+)", instruction.attributes)
        return self.stacks.get(int(found.group(1)), ()) if found else ()


def parse(text: str) -> Module:
    """Reads a module's text.

    Raises:
      ValueError: it has no ENTRY computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line)
            if head:
                current = computations.setdefault(head.group(2), {})
                entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation: expected that of a compiled HLO module")
    return Module(computations, entry, _stacks(text))


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?(\S+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing - 1]
    operands = tuple(re.findall(r"%([^\s,()]+)", arguments))
    return Instruction(
        head.group(2), rest[:opening], shape, operands, arguments, rest[closing:], head.group(1) is not None
    )


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return start + found.end()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _stacks(text: str) -> dict[int, tuple[Frame, ...]]:
    """The tables FileNames, FunctionNames, FileLocations and StackFrames that follow the module's head."""

    def table(name: str, row: str) -> dict[int, tuple[str, ...]]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        lines = found.group(1).splitlines() if found else []
        matches = (re.match(rf"(\d+) {row}", line) for line in lines)
        return {int(match.group(1)): match.groups()[1:] for match in matches if match}

    files, functions = table("FileNames", r'"(.*)"'), table("FunctionNames", r'"(.*)"')
    places = table("FileLocations", r"\{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)")
    stacks: dict[int, tuple[Frame, ...]] = {}
    for number in sorted(frames):
        place, parent = map(int, frames[number])
        file, function, line = map(int, places[place])
        own = Frame(functions[function][0], files[file][0], line)
        # A parent is written one too high, so that 1 says "none".
        stacks[number] = (own, *stacks.get(parent - 1, ()))
    return stacks


# Shapes


def shape_bytes(shape: str, padded: bool = False) -> int:
    """Bytes of a type as written, a tuple's all together; `padded` to the tiles in which the device holds it."""
    total = 0
    for kind, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        sizes = [int(size) for size in dims.split(",") if size]
        total += -(-math.prod(_tiled(sizes, layout) if padded else sizes) * _bits(kind) // 8)
    return total


def _bits(kind: str) -> int:
    if kind in BITS:
        return BITS[kind]
    width = re.match(r"[a-z]+(\d+)", kind)
    return int(width.group(1)) if width else 0


def _tiled(sizes: list[int], layout: str) -> list[int]:
    """The sizes from major to minor, the last ones rounded up to the tile of `{1,0:T(8,128)(2,1)}`."""
    order = re.match(r"\{([\d,]+)", layout)
    tile = re.search(r":T\(([\d,]+)\)", layout)
    if not order or not tile or not sizes:
        return sizes
    physical = [sizes[int(axis)] for axis in reversed(order.group(1).split(","))]
    steps = [int(step) for step in tile.group(1).split(",")][-len(physical) :]
    kept = len(physical) - len(steps)
    return physical[:kept] + [-(-size // step) * step for size, step in zip(physical[kept:], steps, strict=True)]


# Loops


@dataclass(frozen=True)
class Loop:
    """A while loop. `trips` a time that it is reached; None where the text does not tell (then it counts once).

    at_most: it may end earlier, on a condition on data.
    """

    name: str
    op_name: str
    trips: int | None
    at_most: bool


def loop_of(module: Module, computation: str, loop: Instruction) -> Loop:
    """Trip count: what the compiler notes, or the counter's bound less its start, for a counter that grows by one."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return Loop(loop.name, loop.op_name, int(known.group(1)), False)
    condition_name = re.search(r"\bcondition=%([^\s,})]+)", loop.attributes)
    assert condition_name is not None, loop.name
    starts = _tuple_constants(module.computations[computation], loop.operands[0])
    condition = module.computations[condition_name.group(1)]
    bounds, others = _bounds(module, condition, starts, {})
    return Loop(loop.name, loop.op_name, min(bounds) if bounds else None, bool(bounds) and others)


def _tuple_constants(instructions: Mapping[str, Instruction], name: str) -> dict[int, int]:
    """Those elements of a tuple that are integer constants."""
    values = ((index, _constant(instructions, operand)) for index, operand in enumerate(instructions[name].operands))
    return {index: value for index, value in values if value is not None}


def _constant(instructions: Mapping[str, Instruction], name: str) -> int | None:
    instruction = instructions.get(name)
    if instruction is None:
        return None
    if instruction.opcode in ("copy", "bitcast", "convert", "copy-start", "copy-done") and instruction.operands:
        return _constant(instructions, instruction.operands[0])
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    return None


def _bounds(
    module: Module,
    instructions: Mapping[str, Instruction],
    starts: Mapping[int, int],
    given: Mapping[int, tuple[str, int | None]],
) -> tuple[list[int], bool]:
    """Trip counts that comparisons of a counter with a constant allow, and whether anything else decides as well.

    Args:
      starts: constants among the elements of the loop's tuple before its first trip.
      given: of a fused computation's parameters: ("counter", start) or ("constant", value).
    """

    def role(name: str) -> tuple[str, int | None]:
        instruction = instructions[name]
        constant = _constant(instructions, name)
        if constant is not None:
            return "constant", constant
        if instruction.opcode == "parameter" and int(instruction.arguments) in given:
            return given[int(instruction.arguments)]
        if instruction.opcode == "get-tuple-element":
            found = re.search(r"\bindex=(\d+)", instruction.attributes)
            assert found is not None, name
            return "counter", starts.get(int(found.group(1)))
        if instruction.opcode in ("copy", "bitcast", "convert", "copy-start", "copy-done") and instruction.operands:
            return role(instruction.operands[0])
        return "other", None

    bounds: list[int] = []
    others = False
    for instruction in instructions.values():
        if instruction.opcode == "fusion":
            inner = {index: role(name) for index, name in enumerate(instruction.operands)}
            more, further = _bounds(module, module.computations[instruction.called[0]], {}, inner)
            bounds, others = bounds + more, others or further
        elif instruction.opcode == "compare":
            (left, start), (right, bound) = map(role, instruction.operands)
            extra = {"LT": 0, "LE": 1}.get(str(instruction._attribute(r"\bdirection=(\w+)")))
            # A bound that the loop carries along unchanged looks like a second counter.
            if left == "counter" and right != "other" and bound is not None and extra is not None:
                bounds.append(max(bound - (start or 0) + extra, 0))
            else:
                others = True
        elif instruction.opcode in ("and", "or", "reduce"):
            others = True
    return bounds, others


# Executions


def executions(module: Module) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, times it runs) for all that is reached from the entry, fused computations included.

    Of a conditional's branches the one with the most cycles counts.
    """

    def cost(name: str) -> int:
        return sum(times * (instruction.cycles or 0) for _, instruction, times in walk(name, 1))

    def walk(name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in module.computations[name].values():
            yield name, instruction, times
            called, trips = instruction.called, 1
            if instruction.opcode == "while":
                known = loop_of(module, name, instruction).trips
                trips = 1 if known is None else known
            elif instruction.opcode == "conditional":
                called = (max(called, key=cost),)
            elif instruction.opcode.endswith(("-update", "-done")):
                called = ()  # they name what their start has run
            for inner in called:
                yield from walk(inner, times * trips)

    return walk(module.entry, 1)


# The report


@dataclass(frozen=True)
class Step:
    """One scheduled instruction.

    cycles: the compiler's estimate of one execution; None where it has none.
    bytes: of its result as the device holds it, tiles' padding included.
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
class Share:
    """What one place in the program takes in one phase, in cycles of all executions."""

    source: str
    phase: str
    cycles: int


@dataclass(frozen=True)
class Collective:
    """One collective operation and how often a device takes part in it.

    bytes: of its full array (what is reduced; what is gathered, together; what is sent) in one execution, a device.
    group: devices that take part in it together; None: all.
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
class Report:
    """What the text of one compiled program says.

    kernels: (name, executions) of Pallas kernels, which the compiler does not look into.
    missing: (what, executions) of other work without an estimate: gathers, scatters, sorts.
    """

    steps: tuple[Step, ...]
    loops: tuple[Loop, ...]
    collectives: tuple[Collective, ...]  # most bytes first
    kernels: tuple[tuple[str, int], ...]
    missing: tuple[tuple[str, int], ...]

    @property
    def cycles(self) -> int:
        """The sum of the compiler's estimates. It contains no collectives and nothing of `kernels` and `missing`."""
        return sum(step.total_cycles for step in self.steps)

    def shares(self) -> tuple[Share, ...]:
        """Cycles by source and phase, largest first."""
        totals: Counter[tuple[str, str]] = Counter()
        for step in self.steps:
            totals[step.source, step.phase] += step.total_cycles
        return tuple(Share(*key, cycles) for key, cycles in totals.most_common() if cycles)

    def slowest(self, count: int) -> tuple[Step, ...]:
        return tuple(sorted(self.steps, key=lambda step: -step.total_cycles)[:count])

    def largest(self, count: int) -> tuple[Step, ...]:
        return tuple(sorted(self.steps, key=lambda step: -step.bytes)[:count])


def report(text: str) -> Report:
    """Walks a compiled module's text from its entry."""
    module = parse(text)
    visited = list(executions(module))
    fused = {name for _, i, _ in visited if i.opcode == "fusion" for name in i.called}
    kernels: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    loops: dict[str, Loop] = {}
    steps: list[Step] = []
    for computation, instruction, times in visited:
        if computation in fused:
            continue  # the fusion speaks for them
        if instruction.opcode == "while":
            loops[instruction.name] = loop_of(module, computation, instruction)
        if instruction.opcode in NAMES_ONLY:
            continue
        if instruction.target == KERNEL:
            kernels[instruction.op_name or instruction.name] += times
        elif instruction.cycles is None and (what := _unestimated(instruction)):
            missing[what] += times
        steps.append(
            Step(
                name=instruction.name,
                opcode=instruction.opcode,
                shape=instruction.shape,
                executions=times,
                cycles=instruction.cycles,
                bytes=shape_bytes(instruction.shape, padded=True),
                source=source(module, instruction),
                phase=phase(instruction.op_name),
                op_name=instruction.op_name,
            )
        )
    return Report(
        steps=tuple(steps),
        loops=tuple(loops.values()),
        collectives=collectives(module, visited),
        kernels=tuple(kernels.most_common()),
        missing=tuple(missing.most_common()),
    )


def source(module: Module, instruction: Instruction) -> str:
    """`function (file:line)` of the innermost frame that is no installed library's; else the operation's name."""
    stack = module.stack(instruction)
    own = [frame for frame in stack if "site-packages" not in frame.file] or list(stack)
    if own:
        return f"{own[0].function} ({own[0].file.rsplit('/', 1)[-1]}:{own[0].line})"
    return instruction.op_name or f"{instruction.opcode} that the compiler added"


def phase(op_name: str) -> str:
    """forward, recomputed (for the backward pass), backward, or "" outside differentiation."""
    if "rematted_computation" in op_name:
        return "recomputed"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else ""


def _unestimated(instruction: Instruction) -> str:
    """A word for work without an estimate; "" for what is none."""
    if instruction.opcode not in WORK:
        return ""
    if instruction.opcode == "copy" and shape_bytes(instruction.shape) <= SCALARS:
        return ""
    # A fusion's name tells what it is: gather_fusion.3.
    return re.sub(r"[._\d]*$", "", instruction.name) if instruction.opcode == "fusion" else instruction.opcode


def collectives(module: Module, visited: list[tuple[str, Instruction, int]]) -> tuple[Collective, ...]:
    """Collectives of a walk, each channel once: an asynchronous one's start, done and fused steps share it.

    A start runs as often as the collective does; steps that are fused with other work may lie in a loop within.
    """
    found: dict[str, Collective] = {}
    for computation, instruction, times in visited:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        operands = [module.computations[computation][name] for name in instruction.operands]
        size = sum(shape_bytes(operand.shape) for operand in operands)
        group = _group(instruction.attributes)
        if kind == "all-gather":  # a start's result has what goes in as well
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


def by_kind(collectives: tuple[Collective, ...]) -> dict[str, tuple[int, int]]:
    """kind -> (executions, bytes of them all)."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for collective in collectives:
        totals[collective.kind][0] += collective.executions
        totals[collective.kind][1] += collective.total_bytes
    return {kind: (executions, size) for kind, (executions, size) in totals.items()}
