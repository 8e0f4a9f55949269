"""Training that is killed, stopped or out of disk ends as if nothing had happened, or says what it lost."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import ROOT, as_flags, environment, figures, one_line_error, with_disk

from jax_simcas.common import metric_log
from jax_simcas.common.errors import UserError
from jax_simcas.run.processes import Stop

EVERY = 2  # steps between checkpoints
STOPPED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130}  # exit codes, once in the loop
# What Python prints of a Ctrl-C that fell into a callback of garbage collection, and drops.
DROPPED = re.compile(r"Exception ignored in: .*\nTraceback \(most recent.*\n(?:  .*\n)+KeyboardInterrupt: *\n")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def command(workdir, steps, **changes):
    counts = {"loop.steps": steps, "loop.checkpoint_every": EVERY, "loop.eval_every": 2 * EVERY, "loop.log_every": 1}
    flags = as_flags(counts | changes)
    return [sys.executable, "-m", "jax_simcas.train", "--config=configs/embedded.py", f"--workdir={workdir}", *flags]


def start(workdir, cache, steps, **changes):
    options = {"env": environment(JAX_SIMCAS_CACHE=cache), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(workdir, steps, **changes), cwd=ROOT, text=True, **options)


def checkpoints(workdir):
    """The steps whose checkpoint is complete; 0, the beginning, always is."""
    folder = workdir / "checkpoints"
    return [0, *(int(path.name) for path in folder.glob("*") if path.name.isdecimal())]


def logged(workdir):
    """The last step in metrics.jsonl."""
    with contextlib.suppress(UserError):
        return max((row["step"] for row in metric_log.read_metrics(workdir / "metrics.jsonl")), default=0)
    return 0


def everything(workdir):
    """What a run leaves: figures, arrays of the newest checkpoint, sums of open windows."""
    newest = workdir / "checkpoints" / str(max(checkpoints(workdir)))
    with warnings.catch_warnings(action="ignore"):  # that the arrays come back on the devices they were on
        arrays = ocp.PyTreeCheckpointer().restore(newest / "state")
    meta = json.loads(json.loads((newest / "meta" / "metadata").read_text())["json"])["meta"]
    return figures(workdir), arrays, meta


def assert_same(given, expected):
    assert given[0] == expected[0]
    assert {"params", "transformer_optimizer", "selector_optimizer", "key"} <= given[1].keys()
    for (path, a), (other, b) in zip(flat(given[1]), flat(expected[1]), strict=True):
        assert path == other
        np.testing.assert_array_equal(a, b, strict=True)
    assert given[2:] == expected[2:]


def flat(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def wait(child, happened):
    end = time.monotonic() + 200
    while not happened():
        assert child.poll() is None and time.monotonic() < end, child.stderr.read()
        time.sleep(0.002)


def strike(child, workdir, how, moment, rng, startup):
    """Sends the signal `how` at a random time of the start, after a random step, or while a save is under way."""
    log = workdir / "metrics.jsonl"
    inode = lambda: log.stat().st_ino if log.exists() else 0
    before, begun = inode(), max(checkpoints(workdir))
    if moment == "start":
        time.sleep(rng.uniform(0, startup))
    else:
        wait(child, lambda: inode() != before)  # the lines after the checkpoint are taken back
    if moment == "step":
        target = begun + rng.randint(1, 2 * EVERY)
        wait(child, lambda: logged(workdir) >= target)
        time.sleep(rng.uniform(0, 0.05))
    elif moment == "save":
        wait(child, lambda: list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")))
        time.sleep(rng.uniform(0, 0.02))
    child.send_signal(how)
    if how == signal.SIGTERM and moment != "start":
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(how)  # asked twice, it still saves


def hit(workdir, cache, strikes, seed, **changes):
    """A run that all `strikes`, pairs of (signal, moment), hit one after the other in random order, then left alone."""
    print(f"JAX_SIMCAS_FAULT_SEED={seed}")
    rng, steps = random.Random(seed), EVERY * (2 * len(strikes) + 2)
    began = time.monotonic()
    with start(workdir / "calm", cache, steps, **changes) as child:
        wait(child, lambda: logged(workdir / "calm"))
        startup = time.monotonic() - began
        assert child.wait(300) == 0, child.stderr.read()
    folder = workdir / "struck"
    for how, moment in rng.sample(strikes, len(strikes)):
        held = max(checkpoints(folder))
        with start(folder, cache, steps, **changes) as child:
            strike(child, folder, how, moment, rng, min(startup, 6))
            err = child.communicate(timeout=100)[1]
        newest, reached = max(checkpoints(folder)), logged(folder)
        moved = f"code {child.returncode}, checkpoint {held} -> {newest}, logged {reached}"
        print(f"{time.monotonic() - began:.0f} s: {how.name} at {moment}: {moved}")
        resumed = re.search(r"resuming at step (\d+)", err)
        assert resumed is None or int(resumed[1]) == held, err
        if how == signal.SIGINT:
            err = DROPPED.sub("", err)
        assert "Traceback" not in err and "damaged" not in err and "gone" not in err, err
        codes = {STOPPED[how], -how} if moment == "start" else {STOPPED[how]}
        assert child.returncode in codes, (child.returncode, err)
        if child.returncode == 75:
            assert f"step {newest} is saved, the same command resumes" in err and newest >= reached
        # A save waits for the one before, and comes after its own step's line: what the step after it has seen.
        assert newest >= max(held, EVERY * ((reached - 1) // EVERY - 1))
    with start(folder, cache, steps, **changes) as child:
        err = child.communicate(timeout=100)[1]
    assert child.returncode == 0, err
    assert len(figures(folder)) == steps + steps // (2 * EVERY) + (steps % (2 * EVERY) != 0)
    assert_same(everything(folder), everything(workdir / "calm"))


def seed():
    return int(os.environ.get("JAX_SIMCAS_FAULT_SEED") or random.randrange(10**6))


@pytest.mark.slow
def test_a_struck_run_ends_as_an_undisturbed_one(tmp_path, cache):
    strikes = [(signal.SIGKILL, "save"), (signal.SIGTERM, "step")]
    # Without the selector's updates, which take half of the time to compile; the slow tests have them.
    hit(tmp_path, cache, strikes, seed(), **{"loop.selector_every": 0})


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_a_run_killed_thirty_times_ends_as_an_undisturbed_one(tmp_path, cache, part):
    """Ten kills a part, and signals that ask for the end."""
    strikes = [(signal.SIGKILL, moment) for moment in 2 * ("start", "step", "step", "save", "save")]
    strikes += [(how, moment) for how in (signal.SIGTERM, signal.SIGINT) for moment in ("step", "save")]
    strikes += [(signal.SIGTERM, "start")]  # SIGINT while Python imports is Python's to tell
    hit(tmp_path, cache, strikes, seed() + part)


def test_an_interrupt_that_a_callback_dropped_ends_training_after_the_step():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Stop() as stop:
            assert not stop.now(1)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                stop.now(2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Stop():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# The numbers are what is left of the disk, in KiB.
FULL_DISK = """
disk=$1 out=$2; shift 2
sh -c "$FIRST" 2>"$out/first.err" || exit 98
for free in "$@"; do
  head -c 32m /dev/zero >"$disk/filler" 2>/dev/null
  truncate -s "-${free}K" "$disk/filler"
  sh -c "$ALL" 2>"$out/$free.err"
  echo $? >"$out/$free.code"
  rm "$disk/filler"
  cp -r "$disk/run" "$out/$free"
done
sh -c "$ALL" 2>"$out/last.err" || exit 97
cp -r "$disk/run" "$out/run"
"""


def fill(tmp_path, cache, free, steps):
    """Trains for four steps, then on with only so much of the disk free, then on with all of it."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir(), out.mkdir()
    first, again = (" ".join(command(disk / "run", n)).replace("(4,)", "'(4,)'") for n in (2 * EVERY, steps))
    env = environment(JAX_SIMCAS_CACHE=cache, FIRST=first, ALL=again)
    script = [*with_disk(disk, 16), "sh", "-c", FULL_DISK, "sh", disk, out, *map(str, free)]
    ran = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, (ran, [path.read_text() for path in out.glob("*.err")])
    for amount in free:
        err, code = (out / f"{amount}.err").read_text(), int((out / f"{amount}.code").read_text())
        print(amount, code, err)
        if code:
            assert code == 1 and re.search("[Nn]o space left|could not be written", one_line_error(err))
        # What was good before still is.
        left = out / str(amount)
        assert max(checkpoints(left)) >= 2 * EVERY
        assert json.loads((left / "config.json").read_text())["loop"]["steps"] in (2 * EVERY, steps)
        assert figures(left)[: 2 * EVERY] == figures(out / "run")[: 2 * EVERY]
        assert not list(left.glob(".*.tmp"))
    return out


@pytest.mark.slow
def test_a_full_disk_stops_training_in_one_line_and_loses_nothing(tmp_path, cache):
    out = fill(tmp_path, cache, [0, 24], steps=3 * EVERY)
    assert "config.json: cannot be written (No space left on device)" in (out / "0.err").read_text()
    message = one_line_error((out / "24.err").read_text())
    assert f"the last good one is {tmp_path}/disk/run/checkpoints/4; make room" in message
    assert max(checkpoints(out / "run")) == 3 * EVERY


DROPPED_WRITE = """
import asyncio
from jax_simcas.common import cli

async def failing():
    raise OSError("No space left on device")

async def main():
    asyncio.ensure_future(failing())
    await asyncio.sleep(0.1)

cli.prepare_jax()
asyncio.run(main())
"""


def test_a_failed_write_that_a_library_dropped_is_no_traceback():
    ran = subprocess.run([sys.executable, "-c", DROPPED_WRITE], env=environment(), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.slow
def test_a_disk_that_fills_anywhere_loses_nothing(tmp_path, cache):
    number = seed()
    print(f"JAX_SIMCAS_FAULT_SEED={number}")
    rng = random.Random(number)
    fill(tmp_path, cache, sorted({4 * round(2 ** rng.uniform(0, 8)) for _ in range(12)}), steps=4 * EVERY)
