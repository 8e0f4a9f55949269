"""Measures one task in a process of its own, so that its peak memory is its own.

Started by jax_simcas.benchmark with a task as JSON. Writes one line of JSON once the task is compiled, warmed up and
measured for memory, then one line per line that it reads: the seconds of another run.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def serve(prepare: Callable[[], tuple[Callable[[], Any], float]]) -> None:
    """Prepares the task, measures its memory, then times one run per line read; `prepare` gives compile seconds too."""

    def report(**figures: float) -> None:
        print(json.dumps(figures), flush=True)

    started = time.monotonic()
    run, compile_seconds = prepare()
    prepare_seconds = time.monotonic() - started
    run()
    # Memory is measured in a separate run: after trimming, every page must be requested again, which is slower.
    reset_peak()
    rest = resident("VmRSS")
    run()
    peak = resident("VmHWM")
    report(prepare_seconds=prepare_seconds, compile_seconds=compile_seconds, peak_bytes=peak, working_bytes=peak - rest)
    for _ in sys.stdin:
        started = time.monotonic()
        run()
        report(seconds=time.monotonic() - started)


def main() -> None:
    from jax_simcas.benchmark.stages import Task, compiled

    task = Task(**json.loads(sys.argv[1]))
    if task.side == "torch":
        from jax_simcas.benchmark.torch_peer_stages import prepared

        serve(lambda: (prepared(task), 0.0))
    else:
        serve(lambda: compiled(task))


if __name__ == "__main__":
    main()
