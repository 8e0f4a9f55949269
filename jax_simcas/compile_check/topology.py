"""TPU topologies for ahead-of-time compilation by libtpu, without a TPU, and the capabilities of their chips.

Uses only libtpu's compiler (extra `tpu`); any Linux CPU will do.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

from jax_simcas.common.errors import FlagError, UserError
from jax_simcas.common.tables import GIB

HOST = (2, 2, 1)  # chips of one host, at most


@dataclass(frozen=True)
class Chip:
    """One jax device of a TPU generation: a chip of two cores for v4 and v5p, half a chip for tpu7x.

    memory: bytes that the compiler lets a program have, as its message says when one is too large.
    peak: bfloat16 FLOP/s. Source: the published figures, from jax's Pallas (`tpu_info`).
    clock: Hz, ASSUMED: peak over the products of the matrix units per cycle.
    torus: sides of at least this many chips have links that close to a ring (a whole pod of v5e and v6e; slices of the
      others are built of 4x4x4 cubes).
    """

    dimensions: int
    memory: int
    peak: float
    clock: float
    torus: int
    options: tuple[tuple[str, str], ...] = ()


CHIPS = {
    "v4": Chip(3, int(30.75 * GIB), 275e12, 1.05e9, 4, (("chip_config_name", "megacore"),)),
    "v5e": Chip(2, int(15.75 * GIB), 197e12, 1.5e9, 16),
    "v5p": Chip(3, int(95.74 * GIB), 459e12, 1.75e9, 4),
    "v6e": Chip(2, int(31.25 * GIB), 918e12, 1.75e9, 16),
    "tpu7x": Chip(3, int(94.75 * GIB), 1155e12, 2.2e9, 4),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16 or tpu7x:4x4x4"


@dataclass(frozen=True)
class Topology:
    """A slice of a pod: its name, its chip and its compile-only devices."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5e:16x16` -> the chip and the sides of the slice in chips.

    Raises:
      FlagError: not of that form, or of an unknown generation.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    generation = found.group(1) if found else name
    if found is None or generation not in CHIPS:
        raise FlagError(f"{name}: expected one of {', '.join(CHIPS)} with its chips, such as {EXAMPLES}")
    chip, sides = CHIPS[generation], tuple(int(side) for side in found.group(2).split("x"))
    if len(sides) != chip.dimensions or 0 in sides:
        shape = "x".join("N" * chip.dimensions)
        raise FlagError(f"{name}: {generation} comes as {generation}:{shape}, such as {EXAMPLES}")
    return chip, sides


def prepare_environment() -> None:
    """Lets libtpu load without a TPU, quietly and in several processes. Call it before jax's first device is used."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # what does run runs on the CPU
    jax.config.update("jax_enable_compilation_cache", False)  # useless for programs that are not run
    for variable, value in (
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)


def describe(name: str) -> Topology:
    """The slice as the compiler describes it; call `prepare_environment` first.

    Raises:
      UserError: no libtpu, or a slice that does not exist.
    """
    chip, sides = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"{name}: needs libtpu, which has the TPU compiler: pip install 'jax_simcas[tpu]'")
    from jax.experimental import topologies

    three = (*sides, 1)[:3]
    options = {
        **dict(chip.options),
        "chips_per_host_bounds": tuple(min(side, most) for side, most in zip(three, HOST, strict=True)),
        "wrap": tuple(side % chip.torus == 0 for side in sides) + (False,) * (3 - len(sides)),
    }
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:  # jax raises whatever the plugin's C interface returns
        raise UserError(f"{name}: {error}; try {EXAMPLES}") from None
    return Topology(name, chip, tuple(devices))
