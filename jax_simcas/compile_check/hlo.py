"""Reads the text of a compiled XLA module: computations, instructions, call stacks, sizes of arrays.

`compiled.as_text()` of XLA:TPU is a scheduled module: every instruction of the entry and of its loops' bodies runs in
the order of the text, and most carry the compiler's own estimate of their cycles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

SENTINEL = 2**63 - 1  # the compiler's "no estimate"
BITS = {"pred": 8, "token": 0, "opaque": 0}  # others name their width: f32, bf16, s4, f8e4m3fn, c64


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
    def direction(self) -> str:
        """LT, LE and so on, of a comparison."""
        return self._attribute(r"\bdirection=(\w+)") or ""

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


def parse_module(text: str) -> Module:
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
