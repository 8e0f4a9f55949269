"""Measures one task in a process of its own, so that its peak memory is its own.

Started by jax_simcas.benchmark with a task as JSON. Writes one line of JSON once the task is compiled, warmed up and
measured for memory, then one line per line that it reads: the seconds of another run.

Importing it needs the standard library only: the released code's Python runs it too.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

CLEAR = Path("/proc/self/clear_refs")


def resident(field: str, process: str = "self") -> int:
    """Bytes of resident memory: now ("VmRSS") or the peak since the last `reset_peak` ("VmHWM"); Linux only."""
    status = Path(f"/proc/{process}/status")
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{status} has no {field}")


def reset_peak() -> None:
    """Returns free memory to the kernel and restarts its count of the peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    CLEAR.write_text("5")


@runtime_checkable
class Memory(Protocol):
    """How much memory the task holds."""

    def start(self) -> int:
        """Bytes at rest, from where the peak counts."""

    def peak(self) -> int:
        """The most bytes since `start`."""


class ProcessMemory:
    """Resident memory of this process: for a task on the CPU."""

    def start(self) -> int:
        reset_peak()
        return resident("VmRSS")

    def peak(self) -> int:
        return resident("VmHWM")


class TorchMemory:
    """What PyTorch's allocator gave out of the GPU's memory."""

    def start(self) -> int:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        import torch

        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


class JaxMemory:
    """What JAX's allocator gave out of the accelerator's memory.

    Its peak counts from the start of the process. So what the task reads must not have taken more memory while it was
    made than a run takes: `stages.compiled` makes it on the CPU.
    """

    def start(self) -> int:
        return self._figure("bytes_in_use")

    def peak(self) -> int:
        return self._figure("peak_bytes_in_use")

    def _figure(self, name: str) -> int:
        import jax

        return jax.local_devices()[0].memory_stats()[name]


def serve(prepare: Callable[[], tuple[Callable[[], Any], float]], memory: Memory | None = None) -> None:
    """Prepares the task, measures its memory, then times one run per line read; `prepare` gives compile seconds too."""
    memory = memory or ProcessMemory()

    def report(**figures: float) -> None:
        print(json.dumps(figures), flush=True)

    started = time.monotonic()
    run, compile_seconds = prepare()
    prepare_seconds = time.monotonic() - started
    run()
    # Memory is measured in a separate run: after trimming, every page must be requested again, which is slower.
    rest = memory.start()
    run()
    peak = memory.peak()
    report(prepare_seconds=prepare_seconds, compile_seconds=compile_seconds, peak_bytes=peak, working_bytes=peak - rest)
    for _ in sys.stdin:
        started = time.monotonic()
        run()
        report(seconds=time.monotonic() - started)


def main() -> None:
    from jax_simcas.benchmark.stages import Task

    task = Task(**json.loads(sys.argv[1]))
    on_gpu = task.device == "gpu"
    if task.side == "jax":
        from jax_simcas.benchmark.stages import compiled

        serve(lambda: compiled(task), JaxMemory() if on_gpu else None)
    else:
        from jax_simcas.benchmark.torch_peer_stages import prepared

        serve(lambda: (prepared(task), 0.0), TorchMemory() if on_gpu else None)


if __name__ == "__main__":
    main()
