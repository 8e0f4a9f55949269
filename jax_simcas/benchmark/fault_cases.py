"""Disks that fill, a folder that two trainings use, and a clock that is set back."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax_simcas.benchmark.fault_programs import (
    LIMIT,
    Ended,
    Left,
    Program,
    difference,
    environment,
    finished,
    left,
    start,
    training,
)
from jax_simcas.common.metric_log import METRICS, read_metrics

NO_SPACE = ("No space left on device", "could not be written", "cannot be written")
DISK = 64  # MiB: more than a training leaves
DAYS = 3  # that the clock is set back
# Once a file is there, whatever asks the C library for the time of day gets one in the past.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
  const char *file = getenv("CLOCK_IS_SET_BACK_IF");
  return file && access(file, F_OK) == 0 ? atol(getenv("CLOCK_SECONDS")) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, now);
  if (code == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec -= shift();
  return code;
}

int gettimeofday(struct timeval *now, void *zone) {
  int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
  int code = real(now, zone);
  if (code == 0) now->tv_sec -= shift();
  return code;
}

time_t time(time_t *place) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (place) *place = now.tv_sec;
  return now.tv_sec;
}
"""


class Tried(NamedTuple):
    """A fault, where it was, how the processes that it met ended, in words, and what was wrong, or ""."""

    fault: str
    where: str
    ended: str
    problem: str


class Place(NamedTuple):
    """What a case gets: the folder with compiled programs, one to write to, random numbers, and what must be left."""

    base: Path
    folder: Path
    rng: random.Random
    expected: Left  # by an undisturbed training


Case = Callable[[Place, int], Iterator[Tried]]  # with how often it is to be tried, where that is a choice


def full_disks(place: Place, fills: int) -> Iterator[Tried]:
    """Trains on a disk of a random size that is too small, and on with more space."""
    program = training()
    if not namespaces("-rm"):
        return
    size = _written(program, place)
    for _ in range(fills):
        room = place.rng.randint(1, size)
        yield _full_disk(program, place, room)


def namespaces(which: str) -> bool:
    """Whether processes can be given namespaces of their own here; says if not."""
    made = shutil.which("unshare") and not subprocess.run(["unshare", which, "true"], capture_output=True).returncode
    if not made:
        print(f"left out: `unshare {which}` is not allowed here", file=sys.stderr)
    return bool(made)


def _written(program: Program, place: Place) -> int:
    """KiB that the program leaves on the disk."""
    folder = place.folder / "size"
    finished(start(program, place.base, folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024
    shutil.rmtree(folder)
    return size


def _full_disk(program: Program, place: Place, room: int) -> Tried:
    fault, folder, out = ("a disk that fills", f"after {room} KiB"), place.folder / "disk", place.folder / "out"
    for made in (folder, out):
        made.mkdir(parents=True)
    script = (
        f'mount -t tmpfs -o size={room}k none "$0" && "$@" 2>"$OUT/first"; echo $? >"$OUT/code"; '
        f'mount -o remount,size={DISK}m "$0" && "$@" 2>"$OUT/second"; code=$?; cp -r "$0" "$OUT/left"; exit $code'
    )
    command = [sys.executable, "-m", *program.arguments(folder)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(folder), *command],
        env=environment(place.base, folder, OUT=str(out)),
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
    )
    try:
        first = Ended(int((out / "code").read_text()), (out / "first").read_text())
        again = (out / "second").read_text()
        if first.code and (problem := one_line(first, NO_SPACE)):
            return Tried(*fault, "", problem)
        if done.returncode or "Traceback" in again:
            return Tried(*fault, "", f"with more space: exit code {done.returncode}: {again.strip()[-300:]}")
        ended = "ends with one line, resumes" if first.code else "warns"
        return Tried(*fault, ended, difference(left(out / "left"), place.expected))
    finally:
        for made in (folder, out):
            shutil.rmtree(made)


def one_line(ended: Ended, texts: Sequence[str]) -> str:
    """What is wrong with a program that should have ended with one line which has one of the texts; "" if nothing."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or "Traceback" in ended.err or not any(text in lines[0] for text in texts):
        return f"exit code {ended.code}: {ended.err.strip()[-600:]}"
    return ""


def two_trainings(place: Place, _: int) -> Iterator[Tried]:
    """Starts a training in the folder of one that is at work."""
    program = training()
    folder = place.folder / "shared"
    first = start(program, place.base, folder)
    await_step(first, folder, 2)
    second = finished(start(program, place.base, folder))
    ended = finished(first)
    problem = one_line(second, ("another training is at work there",))
    problem = problem or (f"the first one: exit code {ended.code}: {ended.err[-300:]}" if ended.code else "")
    problem = problem or difference(left(folder), place.expected)
    yield Tried("two trainings in one folder", "", "the second ends with one line", problem)
    shutil.rmtree(folder)


def await_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Waits until a training has logged a step, or ends."""
    log = folder / "run" / METRICS
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        if log.exists() and any(row["step"] >= step for row in read_metrics(log)):
            return
        time.sleep(0.02)


def clock_set_back(place: Place, _: int) -> Iterator[Tried]:
    """Sets the clock back within a training, and between a training that is stopped and its resumption."""
    if shutil.which("cc") is None:
        print("left out: setting the clock back needs a C compiler, `cc`", file=sys.stderr)
        return
    program = training()
    source, library, switch = (place.folder / name for name in ("clock.c", "clock.so", "set-back"))
    source.write_text(CLOCK, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    env = {"LD_PRELOAD": str(library), "CLOCK_IS_SET_BACK_IF": str(switch), "CLOCK_SECONDS": str(DAYS * 86_400)}
    if problem := _clock_problem(env, switch):
        yield Tried("the clock set back", "", "", problem)
    for stop in (False, True):
        folder = place.folder / "clock"
        process = start(program, place.base, folder, **env)
        await_step(process, folder, 6)
        if stop:
            process.send_signal(signal.SIGTERM)
            finished(process)
        switch.touch()
        ended = finished(start(program, place.base, folder, **env) if stop else process)
        code = f"exit code {ended.code}: {ended.err[-300:]}" if ended.code or "Traceback" in ended.err else ""
        where = "before a resumption" if stop else "within a training"
        yield Tried(
            f"the clock set back {DAYS} days", where, "no effect", code or difference(left(folder), place.expected)
        )
        switch.unlink()
        shutil.rmtree(folder)


def _clock_problem(env: Mapping[str, str], switch: Path) -> str:
    """What is wrong with the clock that is to be set back; "" if nothing is."""
    switch.touch()
    command = [sys.executable, "-c", "import time; print(time.time())"]
    shown = float(subprocess.run(command, env={**os.environ, **env}, capture_output=True, check=True).stdout)
    switch.unlink()
    return "" if time.time() - shown > (DAYS - 1) * 86_400 else "it cannot be set back"
