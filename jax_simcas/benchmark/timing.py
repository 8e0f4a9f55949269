"""Runs each task in a process of its own and collects its figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax_simcas
from jax_simcas.benchmark.stages import PEERS, Task, flops_of
from jax_simcas.common import progress
from jax_simcas.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Released:
    """The authors' code: the user's clone, and the Python that can run it."""

    clone: Path
    python: str

    def problem(self) -> str | None:
        """What is missing to run it; None if nothing is."""
        if not (self.clone / "modeling_bart_ours.py").is_file():
            return f"{self.clone} is no clone of xjw-nlp/SimCAS (no modeling_bart_ours.py)"
        needs = "import torch, transformers; assert transformers.__version__.startswith('4.')"
        try:
            probe = subprocess.run([self.python, "-c", needs], capture_output=True, check=False)
        except OSError as error:
            return f"--released-python={self.python}: {error.strerror}"
        if probe.returncode:
            return f"--released-python={self.python} lacks torch or transformers 4 (the authors used 4.42.4)"
        return None


@dataclasses.dataclass(frozen=True)
class Others:
    """What runs the sides that are not ours: torch_python the PyTorch peer, released the authors' code."""

    torch_python: str = sys.executable
    released: Released | None = None


OURS = Others()


def check_torch(sides: Sequence[str], python: str = sys.executable) -> None:
    """Checks that the PyTorch peer can run if it is to be measured.

    Raises:
      UserError: `python` lacks PyTorch, or what this package needs.
    """
    peers = [side for side in sides if side in PEERS]
    if not peers:
        return
    if python == sys.executable:
        if importlib.util.find_spec("torch") is None:
            raise UserError(f"--sides={peers[0]}: needs PyTorch; pip install 'jax_simcas[torch]'")
        return
    command = [python, "-c", "import torch, jax_simcas.benchmark.torch_peer_stages"]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, check=False, env=package_environment(python))
    except OSError as error:
        raise UserError(f"--torch-python={python}: {error.strerror}") from None
    if probe.returncode:
        line = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--torch-python={python}: lacks PyTorch or what jax_simcas needs ({line})")


def package_environment(python: str) -> dict[str, str]:
    """The environment in which another Python imports this very package."""
    if python == sys.executable:
        return dict(os.environ)
    paths = [str(Path(jax_simcas.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def machine() -> str:
    """The processor and its cores, such as `AMD EPYC 9B14, 2 cores`.

    Raises:
      OSError: no /proc, as on other systems than Linux.
    """
    models = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return f"{models.group(1) if models else platform.machine()}, {os.cpu_count()} cores"


def python_of(task: Task, others: Others) -> str:
    """The Python of the task's process."""
    if task.side == "released":
        assert others.released is not None
        return others.released.python
    return others.torch_python if task.side in PEERS else sys.executable


def worker_argv(task: Task, others: Others) -> list[str]:
    """The command of the task's process."""
    fields, python = dataclasses.asdict(task), python_of(task, others)
    if task.side != "released":
        return [python, "-m", "jax_simcas.benchmark.worker", json.dumps(fields)]
    assert others.released is not None
    fields["bart"] = {k: v for k, v in task.shape.to_hf().items() if k not in ("architectures", "model_type")}
    script = Path(__file__).with_name("released.py")
    return [python, str(script), json.dumps(fields), str(others.released.clone.resolve())]


def worker_environment(task: Task, others: Others) -> dict[str, str]:
    """Where the task's process computes. On a GPU it takes memory as it needs it, and only our side's JAX sees it."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error"}  # it warns of a head that is not tied
    inherited = dict(os.environ) if task.side == "released" else package_environment(python_of(task, others))
    if task.device == "cpu":
        return quiet | {"JAX_PLATFORMS": "cpu"} | inherited
    platforms = "cuda,cpu" if task.side == "jax" else "cpu"
    own = {"JAX_PLATFORMS": platforms, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return quiet | {"TORCHINDUCTOR_COMPILE_THREADS": "4"} | inherited | own  # one process per core is for a task alone


class Worker:
    """A process that holds one compiled task."""

    def __init__(self, task: Task, others: Others = OURS) -> None:
        self.task = task
        self._process = subprocess.Popen(
            worker_argv(task, others),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=worker_environment(task, others),
        )

    def read(self, end: float | None = None) -> dict[str, float]:
        """The next line of figures: start and memory first, then the seconds of each run.

        Args:
          end: waits no longer, on time.monotonic's clock.

        Raises:
          UserError: the process ended instead, most often because it ran out of memory, or it has not answered in time.
        """
        assert self._process.stdout is not None
        what = f"{self.task.stage} ({self.task.side}) at {self.task.length} tokens"
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([self._process.stdout], [], [], left)[0]:
            raise UserError(f"{what}: not ready within the time limit")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UserError(f"{what}: the process ended with code {code}")
        return json.loads(line)

    def run(self) -> float:
        """Seconds of one run.

        Raises:
          UserError: the process ended instead.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # read() reports how it ended
        return self.read()["seconds"]

    def kill(self) -> None:
        """Ends the process, without waiting for it."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process, and waits until it has given its memory back."""
        self.kill()
        self._process.communicate()


def time_tasks(
    tasks: Sequence[Task],
    repeats: int,
    others: Others = OURS,
    together: int = 1,
    seconds: float | None = None,
    on_results: Callable[[list[dict[str, Any]]], None] = lambda results: None,
) -> list[dict[str, Any]]:
    """The figures of every task. All are compiled first and then run in turns, so that all see the same noise.

    A task whose process ends, most often for lack of memory, is named on stderr and skipped.

    Args:
      together: so many tasks are made and compiled at the same time.
      seconds: the time for everything. What is not ready after three quarters of it is skipped; what is runs at least
        once.
      on_results: called after every run with the figures of what has run, so that a program that is stopped keeps them.
    """
    started = time.monotonic()
    ready, end = (None, None) if seconds is None else (started + 0.75 * seconds, started + seconds)
    workers: list[Worker] = []
    try:
        with progress.Progress(len(tasks) * (repeats + 1), unit="runs") as bar:
            running = []
            for first in range(0, len(tasks), together):
                beside = [Worker(task, others) for task in tasks[first : first + together]]
                workers += beside
                for worker in beside:
                    running += _first_figures(worker, ready)
                    bar.update(1)
            for done in range(repeats):
                for pair in list(running):
                    if end is not None and done and time.monotonic() > end:
                        break
                    if not _timed(*pair, bar):
                        running.remove(pair)
                    on_results([result for _, result in running if result["seconds"]])
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.close()
    return [result for _, result in running]


def _first_figures(worker: Worker, end: float | None) -> list[tuple[Worker, dict[str, Any]]]:
    """The worker with the figures of its start; nothing if its process ended or is not ready."""
    try:
        own = dataclasses.asdict(worker.task) | {"flops": flops_of(worker.task)}
        return [(worker, own | worker.read(end) | {"seconds": []})]
    except UserError as error:
        print(f"skipped: {error}", file=sys.stderr)
        worker.close()  # or it would still compile, or warm up, beside those that are timed
        return []


def _timed(worker: Worker, result: dict[str, Any], bar: progress.Progress) -> bool:
    """Adds the seconds of one run to the result; False if the process ended."""
    try:
        result["seconds"].append(worker.run())
        return True
    except UserError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return False
    finally:
        bar.update(1)
