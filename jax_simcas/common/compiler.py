"""What XLA is told beside a program: options whose defaults are not the best for ours."""

from __future__ import annotations

# KiB of a TPU's fast memory that one operation may use, by device kind. A v5e has 128 MiB; within the 16 that are the
# default, its compiler takes small blocks for the products of a feed-forward layer.
SCOPED_MEMORY = {"TPU v5 lite": 32 * 1024}


def compiler_options(device_kind: str) -> dict[str, str]:
    """Options for `jax.jit` of a training step on such devices (`jax.Device.device_kind`)."""
    kibibytes = SCOPED_MEMORY.get(device_kind)
    return {} if kibibytes is None else {"xla_tpu_scoped_vmem_limit_kib": str(kibibytes)}
