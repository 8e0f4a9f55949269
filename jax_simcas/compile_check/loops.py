"""How often each instruction of a compiled module runs: trip counts of its loops, and a walk from its entry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jax_simcas.compile_check.hlo import Instruction, Module

MOVES = ("copy", "bitcast", "convert", "copy-start", "copy-done")  # whose result is their operand's value
Computation = Mapping[str, Instruction]


@dataclass(frozen=True)
class Loop:
    """A while loop. `trips` per time it is reached; None where the text does not say (then it counts once).

    at_most: it may end earlier, on a condition on data.
    """

    name: str
    op_name: str
    trips: int | None
    at_most: bool


class Value(NamedTuple):
    """What a name in a loop's condition stands for: a "counter" with its start, a "constant", or something "other"."""

    kind: str
    number: int | None = None


OTHER = Value("other")


def loop_of(module: Module, computation: str, loop: Instruction) -> Loop:
    """Trip count: what the compiler states, or the bound less the start of a counter that grows by one."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return Loop(loop.name, loop.op_name, int(known.group(1)), False)
    condition = re.search(r"\bcondition=%([^\s,})]+)", loop.attributes)
    assert condition is not None, loop.name
    starts = _tuple_constants(module.computations[computation], loop.operands[0])
    bounds, others = _bounds(module, condition.group(1), starts, {})
    return Loop(loop.name, loop.op_name, min(bounds) if bounds else None, bool(bounds) and others)


def _tuple_constants(computation: Computation, name: str) -> dict[int, int]:
    """The elements of a tuple that are integer constants."""
    values = ((index, _constant(computation, operand)) for index, operand in enumerate(computation[name].operands))
    return {index: value for index, value in values if value is not None}


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.get(name)
    if instruction is None:
        return None
    if instruction.opcode in MOVES and instruction.operands:
        return _constant(computation, instruction.operands[0])
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    return None


def _value(computation: Computation, name: str, starts: Mapping[int, int], parameters: Mapping[int, Value]) -> Value:
    """What a name in a condition stands for; `starts` and `parameters` as in `_bounds`."""
    instruction = computation[name]
    constant = _constant(computation, name)
    if constant is not None:
        return Value("constant", constant)
    if instruction.opcode == "parameter":
        return parameters.get(int(instruction.arguments), OTHER)
    if instruction.opcode == "get-tuple-element":
        index = re.search(r"\bindex=(\d+)", instruction.attributes)
        assert index is not None, name
        return Value("counter", starts.get(int(index.group(1))))
    if instruction.opcode in MOVES and instruction.operands:
        return _value(computation, instruction.operands[0], starts, parameters)
    return OTHER


def _bounds(
    module: Module, name: str, starts: Mapping[int, int], parameters: Mapping[int, Value]
) -> tuple[list[int], bool]:
    """Trip counts allowed by comparisons of a counter with a constant, and whether anything else decides as well.

    Args:
      name: of the condition's computation, or of one fused into it.
      starts: constants among the elements of the loop's tuple before its first trip.
      parameters: what a fused computation's parameters stand for.
    """
    computation = module.computations[name]
    bounds: list[int] = []
    others = False
    for instruction in computation.values():
        values = [
            _value(computation, operand, starts, parameters)
            for operand in instruction.operands
            if instruction.opcode in ("fusion", "compare")
        ]
        if instruction.opcode == "fusion":
            more, further = _bounds(module, instruction.called[0], {}, dict(enumerate(values)))
            bounds, others = bounds + more, others or further
        elif instruction.opcode == "compare":
            trips = _trips(instruction, *values)
            bounds, others = (bounds, True) if trips is None else ([*bounds, trips], others)
        elif instruction.opcode in ("and", "or", "reduce"):
            others = True
    return bounds, others


def _trips(compare: Instruction, left: Value, right: Value) -> int | None:
    """The trips that `counter < bound` or `counter <= bound` allows; None for any other comparison."""
    extra = {"LT": 0, "LE": 1}.get(compare.direction)
    # A bound that the loop carries along unchanged looks like a second counter.
    if left.kind != "counter" or right.kind == "other" or right.number is None or extra is None:
        return None
    return max(right.number - (left.number or 0) + extra, 0)


class Execution(NamedTuple):
    """An instruction of a computation, and how many times it runs."""

    computation: str
    instruction: Instruction
    times: int


def executions(module: Module) -> Iterator[Execution]:
    """Everything reached from the entry, fused computations included; of a conditional, its costliest branch."""
    return _walk(module, module.entry, 1)


def _walk(module: Module, name: str, times: int) -> Iterator[Execution]:
    for instruction in module.computations[name].values():
        yield Execution(name, instruction, times)
        called, trips = instruction.called, 1
        if instruction.opcode == "while":
            known = loop_of(module, name, instruction).trips
            trips = 1 if known is None else known
        elif instruction.opcode == "conditional":
            called = (max(called, key=lambda branch: _cycles(module, branch)),)
        elif instruction.opcode.endswith(("-update", "-done")):
            called = ()  # they name what their start has run
        for inner in called:
            yield from _walk(module, inner, times * trips)


def _cycles(module: Module, name: str) -> int:
    return sum(step.times * (step.instruction.cycles or 0) for step in _walk(module, name, 1))
