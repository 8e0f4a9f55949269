"""Runs the commands of an experiment one after another; finished ones are not repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, files, progress
from jax_simcas.common.errors import UserError
from jax_simcas.experiments.plan import Command

STATE, LOG = "step.json", "log.txt"
RESUME = "the same command resumes"
# What may change when an experiment resumes, since no result depends on it. Shorter than what may change when a
# training resumes: how often it validates and saves decides which checkpoint is the best one.
FREE = ("data.cache", "data.data_dir", "data.workers", "loop.log_every", "mesh.")


def seconds_of(command: Command) -> float | None:
    """How long a finished command took; None for one that has not finished.

    Raises:
      UserError: its folder holds the result of other settings.
    """
    path = command.folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        before, seconds = dict(state["given"]), state["seconds"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); remove {command.folder} to run it again") from None
    changed = [
        f"{name}: {before[name]!r} -> {value!r}"
        for name, value in command.request.items()
        if name in before and before[name] != value and not name.startswith(FREE)
    ]
    if changed:
        raise UserError(
            f"{command.folder} holds other settings ({'; '.join(changed)}): use these, or another --workdir"
        )
    return seconds


def moved_data(commands: Sequence[Command]) -> list[str]:
    """A warning for each other folder of data that what has begun was given."""
    moved: dict[str, None] = {}
    for command in commands:
        try:
            before = json.loads((command.folder / STATE).read_text(encoding="utf-8"))["given"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue  # `seconds_of` reports it
        name = "data.data_dir"
        if name in before and before[name] != command.request.get(name, before[name]):
            moved[f"config.{name}={before[name]}, and now it is {command.request[name]}"] = None
    return [
        f"warning: some of this was done with {change}: it counts as done, as if the data had moved; other data need "
        "another --workdir"
        for change in moved
    ]


def write_state(command: Command, seconds: float | None) -> None:
    text = json.dumps({"given": command.request, "seconds": seconds}, indent=1)
    files.replace_file(command.folder / STATE, f"{text}\n".encode())


def execute(command: Command, lock: int) -> str:
    """Runs one command as a child process and returns why it failed; "" if it did not.

    Its output goes to standard error and to its log. The child holds `lock` too, so that no other experiment takes
    over its folder while it lives. SIGTERM ends the child after a checkpoint. Ctrl-C reaches it as well: the steps
    after its last checkpoint are lost. SIGKILL ends only this program.
    """
    write_state(command, None)
    started = time.monotonic()
    with (command.folder / LOG).open("a", encoding="utf-8") as log:
        code, error = _copy_output(command.argv, log, lock)
    if code == 0:
        write_state(command, round(time.monotonic() - started, 1))
        return ""
    if code in (cli.EXIT_STOPPED, -signal.SIGTERM):
        return f"stopped by SIGTERM; {RESUME}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; {RESUME}"
    return error or f"exit code {code}; see {command.folder / LOG}"


def _copy_output(argv: Sequence[str], log: Any, lock: int) -> tuple[int, str]:
    """The exit code of a child process, and its last `error: ` line; its output is copied line by line."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    error = ""
    with subprocess.Popen(argv, pass_fds=(lock,), **pipes) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                log.write(line)
                log.flush()
                sys.stderr.write(f"  {line}")
                error = line.removeprefix("error: ").strip() if line.startswith("error: ") else error
        except BaseException:
            child.terminate()
            child.communicate()
            raise
    return child.returncode, error


def run_all(commands: Sequence[Command], lock: int) -> list[str]:
    """Runs what has not finished, with progress on standard error, and returns one line per command that failed."""
    seconds = [seconds_of(command) for command in commands]
    failed: set[Path | None] = set()
    problems = []
    for number, command in enumerate(commands):
        if seconds[number] is not None:
            continue
        if reason := _unmet(command, failed):
            failed.add(command.folder)
            problems.append(f"{command.name}: skipped, the training that it needs {reason}")
            continue
        left = time_left([other.program for other in commands], seconds, number)
        print(f"[{number + 1}/{len(commands)}] {command.name}{left}", file=sys.stderr, flush=True)
        problem = execute(command, lock)
        if problem:
            failed.add(command.folder)
            problems.append(f"{command.name}: {problem}")
            print(f"  failed: {problem}", file=sys.stderr, flush=True)
        seconds[number] = seconds_of(command)
    return problems


def _unmet(command: Command, failed: set[Path | None]) -> str:
    """What is wrong with the training that a command needs; "" if nothing is."""
    if command.needs is None:
        return ""
    if command.needs in failed:
        return "failed"
    try:
        finished = json.loads((command.needs / STATE).read_text(encoding="utf-8"))["seconds"] is not None
    except FileNotFoundError:
        finished = False
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"has a state that cannot be read ({command.needs / STATE}: {error!r})"
    return "" if finished else f"has not finished ({command.needs}): run it first"


def time_left(programs: Sequence[str], seconds: Sequence[float | None], now: int) -> str:
    """`, about 12:30 left` from command `now` on, once a command of each kind that remains has finished."""
    known: dict[str, list[float]] = {}
    for kind, taken in zip(programs, seconds, strict=True):
        known.setdefault(kind, []).extend([] if taken is None else [taken])
    left = [kind for kind, taken in zip(programs[now:], seconds[now:], strict=True) if taken is None]
    if not all(known[kind] for kind in left):
        return ""
    return f", about {progress.duration(sum(sum(known[kind]) / len(known[kind]) for kind in left))} left"


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit(75), once, so that the running command is ended in order."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(cli.EXIT_STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        print(f"stopped by SIGTERM; {RESUME}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def exclusive(workdir: Path) -> Iterator[int]:
    """Waits until no other process works in the folder; yields the lock, for children to hold too."""
    note = f"waiting: another process works in {workdir}"
    with files.locked(workdir / ".lock", lambda: print(note, file=sys.stderr, flush=True)) as lock:
        yield lock
