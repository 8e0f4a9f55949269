"""The processes of a job: joining, one mesh over their devices, stopping together, and which documents each reads."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jax_simcas.common import cli
from jax_simcas.common.errors import FlagError, UserError, first_line
from jax_simcas.common.sharding import MeshConfig, fitted, local_documents, make_mesh, put_batch
from jax_simcas.data.batches import as_example, pad_to
from jax_simcas.data.features import Features
from jax_simcas.method.document import Example
from jax_simcas.run import failures

HEARTBEAT_SECONDS = 30  # after one process dies, the others end within this time


class Job(NamedTuple):
    """The mesh, and the positions in each batch of `batch_size` documents that lie on this process's devices."""

    mesh: Mesh
    batch_size: int
    places: tuple[int, ...]

    def put(self, batch: Features, pad: int) -> Example:
        """This process's rows of a batch as global arrays, padded alike in all processes."""
        failures.take_up_batch()
        chunks, target = batch["input_ids"].shape[1], batch["target_ids"].shape[1]
        if jax.process_count() > 1:
            chunks, target = multihost_utils.process_allgather(np.array([chunks, target])).max(axis=0)
        along = self.mesh.shape["chunk"]
        batch = pad_to(batch, -(-int(chunks) // along) * along, int(target), pad)
        return put_batch(as_example(batch), self.mesh, self.places, self.batch_size)


def join(where: str) -> None:
    """Joins the other processes; call before the first use of a device.

    Args:
      where: "" for a single process; "auto" where JAX detects the cluster (TPU pods, Slurm, several hosts of a cloud);
        "HOST:PORT,COUNT,INDEX" anywhere: address of process 0, number of processes, index of this one.

    Raises:
      FlagError: none of these. UserError: the others cannot be reached.
    """
    if not where:
        return
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    if where != "auto":
        address, *numbers = where.split(",")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or ":" not in address:
            raise FlagError(f"--distributed={where}: expected auto or HOST:PORT,COUNT,INDEX, such as 10.0.0.2:8476,4,0")
        count, index = map(int, numbers)
        if index >= count:
            raise FlagError(f"--distributed={where}: INDEX counts from 0, so {count} processes have 0 to {count - 1}")
        options |= {"coordinator_address": address, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--distributed={where}: cannot join the other processes ({error})") from None
    if several():
        failures.listen()
        if jax.default_backend() == "cpu":
            # XLA:CPU does not keep the order of two programs' collectives where it took one of them from the cache:
            # the processes then receive what belongs to another collective, and end.
            jax.config.update("jax_enable_compilation_cache", False)


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is process 0, which prints and writes metrics."""
    return jax.process_index() == 0


def notify(*lines: str) -> None:
    """Prints to standard error, once for all processes."""
    if is_main():
        for line in lines:
            print(line, file=sys.stderr)


def wait_for_all(what: str) -> None:
    """A barrier: returns once every process has called it with the same `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def make_job(config: MeshConfig, batch_size: int) -> Job:
    """A mesh over all devices, or over as many of a single process's as a batch can use.

    Raises:
      UserError: a batch size that the mesh does not divide; several processes with idle devices.
    """
    devices = jax.devices()
    try:
        sizes = fitted(config, len(devices), batch_size)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None
    documents = sizes["data"] * sizes["fsdp"]
    if batch_size % documents:
        raise UserError(
            f"config.data.batch_size={batch_size}: the mesh splits a batch over {documents} devices (data x fsdp); "
            f"make it a multiple of {documents}, or config.mesh smaller"
        )
    used = int(np.prod(list(sizes.values())))
    if used < len(devices):
        idle = f"config.data.batch_size={batch_size} uses {used} of {len(devices)} devices"
        if jax.process_count() > 1:
            raise UserError(f"{idle}: raise it, or spread each document with config.mesh.chunk")
        print(f"note: {idle}", file=sys.stderr)
    for name, size in sizes.items():
        if (asked := getattr(config, name)) > size:
            notify(f"note: config.mesh.{name}={asked} becomes {size}, which divides the {len(devices)} devices")
    mesh = make_mesh(sizes, devices[:used])
    return Job(mesh, batch_size, local_documents(mesh, batch_size))


def local_mesh(documents: int) -> Mesh:
    """A mesh over as many of this process's own devices as divide the batch: for independent work."""
    devices = jax.local_devices()
    sizes = fitted(MeshConfig(), len(devices), documents)
    return make_mesh(sizes, devices[: sizes["data"]])


class Stop:
    """Records SIGTERM so the loop checkpoints and exits after the current step: all processes after the same one.

    Ctrl-C raises KeyboardInterrupt at once, and again after the step: an exception raised inside a callback (jax has
    one in garbage collection) is printed and dropped by Python.
    """

    requested = interrupted = False

    def __enter__(self) -> Stop:
        # Among several processes jax's own handler passes the signal on.
        self._before = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._record)} if jax.process_count() == 1 else {}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        # A second SIGTERM must not cut short what the first has begun.
        if self.requested and signal.SIGTERM in self._before:
            self._before[signal.SIGTERM] = signal.SIG_IGN
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self, step: int) -> bool:
        """Whether to stop after this step."""
        if self.interrupted:
            raise KeyboardInterrupt
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def _record(self, *_: object) -> None:
        self.requested = True

    def _interrupt(self, *_: object) -> None:
        self.interrupted = True
        raise KeyboardInterrupt


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, in order of their index, on every process."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size])).ravel()
    every = multihost_utils.process_allgather(np.pad(own, (0, sizes.max() - own.size)))
    return [json.loads(bytes(row[:size])) for row, size in zip(every.reshape(len(sizes), -1), sizes, strict=True)]


def guarded_job(run: Callable[[], int]) -> int:
    """`cli.guarded`; when one of several processes fails or dies, all print which one and why, and exit."""
    why = ""

    def recording_why() -> int:
        nonlocal why
        try:
            return run()
        except (Exception, KeyboardInterrupt) as error:
            failures.stand_aside()
            # A collective that fails raises either: a ValueError where it fails while it is being started.
            if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and several():
                failures.end_if_one_is_lost()
            why = first_line(error)
            raise

    try:
        code = cli.guarded(recording_why)
    except Exception:
        if not several():
            raise
        traceback.print_exc()
        code = cli.EXIT_ERROR
    if why and several():
        failures.end_all(code, why)
    return code
