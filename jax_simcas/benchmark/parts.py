"""Parts of a check, each with a time limit: a failure is kept beside the figures, and the other parts go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jax_simcas.common import files
from jax_simcas.common.errors import UserError


class Failed(Exception):
    """A part that did not hold, with the figures that it has all the same."""

    def __init__(self, problem: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(problem)
        self.figures = dict(figures or {})


class Done(NamedTuple):
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


class Stopped(Failed):
    """A program that took too long; done: what it had printed."""

    def __init__(self, problem: str, done: Done) -> None:
        super().__init__(problem)
        self.done = done


@dataclass(frozen=True)
class Programs:
    """Runs programs of this Python on a device, until a point in time.

    device: "gpu" or "cpu".
    checkout: where they run; it goes before other places of modules.
    folder: for what they leave.
    log: gets what they print.
    end: on time.monotonic's clock; who runs then is stopped.
    """

    device: str
    checkout: Path
    folder: Path
    log: TextIO
    end: float
    lock: contextlib.AbstractContextManager[bool] = field(default_factory=threading.Lock)

    @property
    def on_gpu(self) -> bool:
        return self.device == "gpu"

    def environment(self) -> dict[str, str]:
        """For the programs: on a GPU they take memory as they need it, since several run side by side."""
        path = os.pathsep.join(filter(None, (str(self.checkout), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_SIMCAS_CACHE": str(self.folder / "cache")}
        if self.on_gpu:
            own |= {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return os.environ | own

    def python(self, *arguments: Any, env: Mapping[str, str] | None = None, check: bool = True) -> Done:
        """Runs this Python with these arguments and more environment.

        Raises:
          Failed: no time is left; it took too long (Stopped); or (`check`) it ended with another code than 0.
        """
        command = [sys.executable, *map(str, arguments)]
        left = self.end - time.monotonic()
        if left <= 0:
            raise Failed("no time was left")
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                cwd=self.checkout,
                env=self.environment() | dict(env or {}),
                start_new_session=True,
            )
            try:
                code = child.wait(left)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # and whatever it started
                child.wait()
            done = Done(-signal.SIGKILL if code is None else code, *(_read(file) for file in (out, err)))
        self._write(command, done)
        if code is None:
            raise Stopped(f"stopped after {left:.0f} s", done)
        if check and code:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise Failed(f"ended with code {code}: {last[:300]}")
        return done

    def _write(self, command: list[str], done: Done) -> None:
        with self.lock:
            self.log.write(f"$ {' '.join(command)[:2_000]}\n{done.stdout}\n{done.stderr}\n[{done.returncode}]\n\n")
            self.log.flush()


def _read(file: Any) -> str:
    file.seek(0)
    return file.read()


class Part(NamedTuple):
    """What one part is called, its time limit in seconds, and what it does: the figures, or Failed."""

    name: str
    seconds: float
    do: Callable[[Programs], dict[str, Any]]


class Report:
    """What is known so far, in NAME.json and NAME.md of a folder; both are whole at any time."""

    def __init__(self, folder: Path, name: str, text_of: Callable[[dict[str, Any]], str]) -> None:
        self._json, self._markdown, self._text_of = folder / f"{name}.json", folder / f"{name}.md", text_of
        self._lock = threading.Lock()
        self.content: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "parts": []}
        self._write()

    @property
    def failed(self) -> list[str]:
        """The names of the parts that failed."""
        return [part["name"] for part in self.content["parts"] if part["problem"]]

    def add(self, part: Part, programs: Programs) -> None:
        """Does a part and writes what came of it."""
        started, problem = time.monotonic(), ""
        try:
            figures = part.do(programs)
        except Failed as error:
            problem, figures = str(error), error.figures
        except UserError as error:
            problem, figures = str(error), {}
        except Exception as error:  # a fault in the check itself must not cost the other parts
            problem, figures = f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()}
        seconds = round(time.monotonic() - started, 1)
        with self._lock:
            row = {"name": part.name, "problem": problem, "seconds": seconds, "figures": figures}
            self.content["parts"].append(row)
            self._write()
        print(f"{part.name}: {problem or 'ok'} ({seconds:.0f} s)", file=sys.stderr, flush=True)

    def _write(self) -> None:
        text = json.dumps(files.json_ready(self.content), indent=1)
        files.replace_file(self._json, f"{text}\n".encode())
        files.replace_file(self._markdown, self._text_of(self.content).encode())
