"""Trainings of several processes that lose one of them, or reach each other no more for a while."""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jax_simcas.benchmark.fault_cases import Place, Tried, await_step, namespaces, one_line
from jax_simcas.benchmark.fault_programs import Ended, Left, difference, environment, finished, left, training

Running = subprocess.Popen[str]
PROCESSES = (2, 4)
LOST_SECONDS = 20  # without a connection: less than what the processes take for a death


def lost_processes(place: Place, _: int) -> Iterator[Tried]:
    """Loses the first and the last of two and of four processes, or all connections for a while, and resumes."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        print("left out: losing a connection needs `ip` and `nsenter`", file=sys.stderr)
        return
    if not namespaces("-rn"):
        return
    for processes in PROCESSES:
        with network() as join:
            calm = place.folder / "calm"
            ends = [finished(process) for process in _started(place, calm, join, processes)]
            if problem := _failed(ends):
                yield Tried(f"{processes} processes", "undisturbed", "", problem)
                continue
            expected = left(calm)
            shutil.rmtree(calm)
            for how, number in itertools.product((signal.SIGKILL, signal.SIGSTOP), (0, processes - 1)):
                fault = f"process {number} of {processes} {'is killed' if how == signal.SIGKILL else 'hangs'}"
                yield _disturbed(fault, place, join, processes, partial(_lose, number, how), expected)
            fault = f"{processes} processes without a connection for {LOST_SECONDS} s"
            yield _disturbed(fault, place, join, processes, partial(_disconnect, join), expected)


@contextmanager
def network() -> Iterator[list[str]]:
    """A network of its own. Yields what goes before a command that is to use it."""
    script = 'ip link set lo up && echo up && exec sleep "$0"'
    holder = subprocess.Popen(["unshare", "-rn", "sh", "-c", script, "100000"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield ["nsenter", "-t", str(holder.pid), "-U", "-n", "--preserve-credentials"]
    finally:
        holder.kill()
        holder.wait()


def _started(place: Place, folder: Path, join: Sequence[str], processes: int) -> list[Running]:
    """The training in so many processes of one device each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*join, sys.executable, "-m", *training().arguments(folder)]
    env = environment(place.base, folder, JAX_NUM_CPU_DEVICES="1")
    return [
        subprocess.Popen(
            [*command, f"--distributed=127.0.0.1:{port},{processes},{index}"],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def _lose(number: int, how: signal.Signals, running: list[Running]) -> list[Running]:
    running[number].send_signal(how)
    return [process for process in running if process is not running[number]]


def _disconnect(join: Sequence[str], running: list[Running]) -> list[Running]:
    subprocess.run([*join, "ip", "link", "set", "lo", "down"], check=True)
    time.sleep(LOST_SECONDS)
    subprocess.run([*join, "ip", "link", "set", "lo", "up"], check=True)
    return running


def _disturbed(
    fault: str,
    place: Place,
    join: Sequence[str],
    processes: int,
    disturb: Callable[[list[Running]], list[Running]],  # returns those that must end by themselves
    expected: Left,
) -> Tried:
    """A training that is disturbed at a random step, and resumed if it does not come to its end."""
    folder = place.folder / "lost"
    running = _started(place, folder, join, processes)
    try:
        await_step(running[0], folder, place.rng.randint(2, 10))
        left_alone = disturb(running)
        begun = time.monotonic()
        ends = [finished(process) for process in left_alone]
        seconds = time.monotonic() - begun
    finally:
        for process in running:
            process.kill()
            process.wait()
    codes = sorted({ended.code for ended in ends})
    resumed = [finished(process) for process in _started(place, folder, join, processes)] if any(codes) else []
    # Where process 0 is gone, jax may abort the others with a message of its own before ours.
    explained = [ended for ended in ends if ended.code not in (0, -signal.SIGABRT)]
    problem = next((unclear for ended in explained if (unclear := one_line(ended, ("",)))), "")
    problem = problem or _failed(resumed) or difference(left(folder), expected)
    shutil.rmtree(folder)
    exits = f"exit code {', '.join(map(str, codes))}"
    ended = f"the others end ({exits}) within {seconds:.0f} s, resumes" if any(codes) else "continues"
    return Tried(fault, "", ended, problem)


def _failed(ends: Sequence[Ended]) -> str:
    """What each process that did not end well says; "" if all did."""
    return "; ".join(f"exit code {ended.code}: {ended.err.strip()[-300:]}" for ended in ends if ended.code)
