"""What compile_check prints and writes: a table, remarks on what the estimate leaves out, the slowest places, JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jax_simcas.common import tables
from jax_simcas.common.tables import GIB, MIB
from jax_simcas.compile_check import cost
from jax_simcas.compile_check.programs import BatchShape, Result
from jax_simcas.compile_check.topology import Topology

COLUMNS = (
    *("stage", "fits", "arguments GiB", "temporaries GiB", "peak GiB", "memory GiB"),
    *("model TFLOP", "estimate ms", "utilisation", "collectives", "collective MiB", "compile s"),
)


def stage_cells(result: Result) -> dict[str, Any]:
    """The row of a stage, under COLUMNS."""
    row: dict[str, Any] = {"stage": result.stage, "fits": "yes" if result.fits else "NO"}
    row["memory GiB"] = result.memory / GIB
    if result.analysis is None:
        return row
    collectives = result.analysis.collectives
    return row | {
        "arguments GiB": result.arguments / GIB,
        "temporaries GiB": result.temporaries / GIB,
        "peak GiB": result.peak / GIB if result.peak else None,
        "model TFLOP": result.flops / 1e12,
        "estimate ms": None if result.seconds is None else 1e3 * result.seconds,
        "utilisation": result.utilisation,
        "collectives": sum(collective.executions for collective in collectives),
        "collective MiB": sum(collective.total_bytes for collective in collectives) / MIB,
        "compile s": result.compile_seconds,
    }


def printed_lines(results: Sequence[Result], slowest: int, clock: float | None) -> Iterator[str]:
    """The table, the remarks, and for each stage the `slowest` places and instructions, and the largest arrays."""
    yield tables.markdown_table([stage_cells(result) for result in results], COLUMNS)
    for result in results:
        yield from remarks(result)
    for result in results:
        if slowest and result.analysis is not None:
            yield f"\n{result.stage}: {'where the estimated time goes' if clock else 'the largest arrays'}\n"
            yield slowest_tables(result.analysis, slowest, clock)


def remarks(result: Result) -> list[str]:
    """What the estimate leaves out, and what it assumes."""
    if result.analysis is None:
        return [f"{result.stage}: not compiled: {result.problem}"]
    if result.seconds is None:
        return []
    notes = []
    if result.analysis.kernels:
        notes.append(f"excludes the time of Pallas kernels: {_listed(result.analysis.kernels)}")
    if result.analysis.missing:
        notes.append(f"has no estimate for: {_listed(result.analysis.missing)}")
    for kind, (count, size) in cost.by_kind(result.analysis.collectives).items():
        notes.append(f"excludes the time of {count} {kind}, {size / MIB:.1f} MiB")
    for loop in result.analysis.loops:
        if loop.trips is None:
            notes.append(f"counts one trip of a loop of unknown length: {loop.op_name or loop.name}")
        elif loop.at_most:
            notes.append(f"counts all {loop.trips} trips of a loop that may end earlier: {loop.op_name or loop.name}")
    return [f"{result.stage}: {note}" for note in notes]


def _listed(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts)


def slowest_tables(analysis: cost.Analysis, count: int, clock: float | None) -> str:
    """Time per part of the method, the slowest places and instructions, the largest arrays: these alone if no clock."""
    arrays = [
        {"MiB": each.bytes / MIB, "opcode": each.opcode, "phase": each.phase, "place": each.source, "shape": each.shape}
        for each in analysis.largest(count)
    ]
    timed = _timed_rows(analysis, count, clock) if clock else ()
    return "\n\n".join(tables.markdown_table(rows, list(rows[0])) for rows in (*timed, arrays) if rows)


def _timed_rows(analysis: cost.Analysis, count: int, clock: float) -> tuple[list[dict[str, Any]], ...]:
    """The parts of the method, the slowest places, and the slowest instructions."""
    total = max(analysis.cycles, 1)
    parts = [
        {"ms": 1e3 * cycles / clock, "%": 100 * cycles / total, "part": part or "others"}
        for part, cycles in analysis.scopes().items()
    ]
    places = [
        {"ms": 1e3 * p.cycles / clock, "%": 100 * p.cycles / total, "phase": p.phase, "place": p.source}
        for p in analysis.places()[:count]
    ]
    instructions = [
        {
            "ms": 1e3 * each.total_cycles / clock,
            "times": each.executions,
            "instruction": each.name,
            "phase": each.phase,
            "place": each.source,
            "operation": each.op_name.rsplit("/", 1)[-1],
            "shape": each.shape,
        }
        for each in analysis.slowest(count)
    ]
    return parts, places, instructions


def as_json(result: Result, count: int) -> dict[str, Any]:
    """All figures of a stage; of its scheduled instructions the `count` slowest and largest."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "analysis"}
    fields["fits"] = result.fits
    if (analysis := result.analysis) is not None:
        fields |= {
            "cycles": analysis.cycles,
            "collectives": [dataclasses.asdict(c) | {"total_bytes": c.total_bytes} for c in analysis.collectives],
            "kernels": dict(analysis.kernels),
            "missing": dict(analysis.missing),
            "loops": [dataclasses.asdict(loop) for loop in analysis.loops],
            "parts": analysis.scopes(),
            "places": [dataclasses.asdict(place) for place in analysis.places()],
            "slowest": [dataclasses.asdict(each) for each in analysis.slowest(count)],
            "largest": [dataclasses.asdict(each) for each in analysis.largest(count)],
        }
    return fields


def json_of(results: Sequence[Result], shape: BatchShape, target: Topology, count: int) -> dict[str, Any]:
    """The contents of --json."""
    return {
        "topology": target.name,
        "devices": len(target.devices),
        **dataclasses.asdict(shape),
        "clock": target.chip.clock,
        "peak": target.chip.peak,
        "stages": [as_json(result, count) for result in results],
    }
