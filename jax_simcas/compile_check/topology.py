"""TPU slices and GPUs for ahead-of-time compilation without them, and the capabilities of their chips.

Uses only the compilers: libtpu's (extra `tpu`), or that of jax's plugin for CUDA (extra `cuda13`), on any Linux CPU.
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
DEFAULT_SHARE = 0.75  # of a GPU's memory, which JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card, as XLA's compiler must be told of it. Source: what CUDA and the data sheet say of the card.

    bandwidth: of its memory, bytes/s; l2_cache, shared_memory (of a multiprocessor, and of a block at most): bytes.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    memory: int
    bandwidth: int
    l2_cache: int
    shared_memory: tuple[int, int]
    clock_ghz: float

    def description(self, cuda: int) -> str:
        """XLA's text form of a compilation target, with that major version of CUDA."""
        major, minor = self.capability
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": 2048,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "core_count": self.cores,
            "fpus_per_core": 128,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.l2_cache,
            "shared_memory_per_block": 48 * 2**10,
            "shared_memory_per_core": self.shared_memory[0],
            "shared_memory_per_block_optin": self.shared_memory[1],
            "cuda_compute_capability": {"major": major, "minor": minor},
        }
        return _text(
            {
                "gpu_device_info": device,
                "platform_name": '"CUDA"',
                "dnn_version_info": {"major": 9},
                "runtime_version": {"major": cuda},
                "device_description_str": f'"{self.name}"',
            }
        )


def _text(fields: dict[str, Any]) -> str:
    """Nested fields as protocol buffers write them."""
    inner = lambda value: f" {{ {_text(value)} }}" if isinstance(value, dict) else f": {value}"
    return " ".join(f"{name}{inner(value)}" for name, value in fields.items())


H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    memory=84_929_347_584,
    bandwidth=3_352_320_000_000,
    l2_cache=50 * 2**20,
    shared_memory=(228 * 2**10, 227 * 2**10),
    clock_ghz=1.98,
)


@dataclass(frozen=True)
class Chip:
    """One jax device: a GPU, or of a TPU a chip (of two cores for v4 and v5p, half a one for tpu7x).

    memory: bytes that a program may have: as the TPU's compiler says when one is too large; on a GPU the share that
      JAX takes by default.
    peak: bfloat16 FLOP/s. Source: the published figures, from jax's Pallas (`tpu_info`), and of GPUs the data sheets.
    clock: Hz, ASSUMED: peak over the products of the matrix units per cycle. None: the compiler estimates no time.
    torus: sides of at least this many chips have links that close to a ring (a whole pod of v5e and v6e; slices of the
      others are built of 4x4x4 cubes).
    gpu: what the compiler must know of a GPU; None for a TPU.
    """

    dimensions: int
    memory: int
    peak: float
    clock: float | None = None
    torus: int = 1
    options: tuple[tuple[str, str], ...] = ()
    gpu: Gpu | None = None

    @property
    def platform(self) -> str:
        return "tpu" if self.gpu is None else "cuda"


CHIPS = {
    "v4": Chip(3, int(30.75 * GIB), 275e12, 1.05e9, 4, (("chip_config_name", "megacore"),)),
    "v5e": Chip(2, int(15.75 * GIB), 197e12, 1.5e9, 16),
    "v5p": Chip(3, int(95.74 * GIB), 459e12, 1.75e9, 4),
    "v6e": Chip(2, int(31.25 * GIB), 918e12, 1.75e9, 16),
    "tpu7x": Chip(3, int(94.75 * GIB), 1155e12, 2.2e9, 4),
    "h100": Chip(1, int(DEFAULT_SHARE * H100.memory), 989e12, gpu=H100),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4 or h100:8"


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
    """Lets the compilers load without a device, quietly and in several processes. Call it before jax's first device."""
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
    """The slice, or the GPUs of one host, as the compiler describes them; call `prepare_environment` first.

    Raises:
      UserError: no compiler for them, or a slice that does not exist.
    """
    chip, sides = parse_topology(name)
    if chip.gpu is not None:
        return _gpus(name, chip, chip.gpu, sides[0])
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


def _gpus(name: str, chip: Chip, gpu: Gpu, count: int) -> Topology:
    plugin = next((each for each in CUDA_PLUGINS if importlib.util.find_spec(each)), None)
    if plugin is None:
        raise UserError(
            f"{name}: needs jax's plugin for CUDA, which has the compiler: pip install 'jax_simcas[cuda13]'"
        )
    from jax.experimental import topologies

    target = gpu.description(cuda=13 if plugin == CUDA_PLUGINS[0] else 12)
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=target, topology=f"1x1x{count}"
        )
    except Exception as error:  # as above
        raise UserError(f"{name}: {error}") from None
    return Topology(name, chip, tuple(found.devices))
