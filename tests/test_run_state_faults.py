"""Training checkpoints on folders that cannot be written, full disks and under kills: the last good one stays."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import complaints, with_disk
from states import assert_same, make_state, steps_in

from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common.errors import UserError

ROOT = Path(__file__).parents[1]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint folder .*/file/run: cannot be written \(NotADirectory"):
        Checkpointer(tmp_path / "file" / "run")


def test_a_folder_that_goes_with_its_last_file(tmp_path, monkeypatch):
    """As in a bucket, where a new run's folder is gone again after it proved to be writable."""
    kind = type(epath.Path())
    unlink = kind.unlink

    def unlink_with_folder(path):
        unlink(path)
        path.parent.rmdir()

    with monkeypatch.context() as bucket:
        bucket.setattr(kind, "unlink", unlink_with_folder)
        checkpointer = Checkpointer(tmp_path / "run")
    with checkpointer:
        assert checkpointer.restore(make_state(0)) is None
        checkpointer.save(1, make_state(1), None, {})
    assert steps_in(tmp_path / "run") == [1]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_full_disk_leaves_the_last_good_one(tmp_path, asynchronous, capfd):
    def state(step):
        return {"w": jax.random.normal(jax.random.key(step), (200, 200)), "step": jnp.int32(step)}

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpointer = Checkpointer(tmp_path, keep_latest=1, asynchronous=asynchronous)
    checkpointer.save(1, state(1), {"loss": 1.0}, {})
    checkpointer.wait()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # bytes a file: as good as a full disk
        with pytest.raises(UserError, match=rf"{tmp_path}/2: could not be .*good one is {tmp_path}/1; make room"):
            checkpointer.save(2, state(2), {"loss": 0.0}, {})
            checkpointer.close()
        checkpointer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert complaints(capfd.readouterr().err) == ""
    with Checkpointer(tmp_path, keep_latest=1) as checkpointer:
        found = checkpointer.restore(state(0))
        assert found.step == checkpointer.best_step() == 1
        assert_same(found.state, state(1))
        checkpointer.save(2, state(2), None, {})
    assert steps_in(tmp_path) == [1, 2]


FILL = """
import sys
import jax
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common.errors import UserError

state = {str(i): jax.random.normal(jax.random.key(i), (25_000,)) for i in range(40)}
try:
    with Checkpointer(sys.argv[1], asynchronous=bool(int(sys.argv[2]))) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, state, None, {})
except UserError as error:
    print(error)
with Checkpointer(sys.argv[1]) as checkpointer:
    print(checkpointer.restore(state)[::3])
"""


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_really_full_disk(tmp_path, asynchronous):
    """Nothing on standard error up to the process's end, when orbax logs late."""
    command = [*with_disk(tmp_path, 10), sys.executable, "-c", FILL, str(tmp_path), str(int(asynchronous))]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    message, restored = child.stdout.splitlines()
    assert f"{tmp_path}/3: could not be written" in message and f"last good one is {tmp_path}/2; make room" in message
    assert restored == f"(2, ('{tmp_path}/3.orbax-checkpoint-tmp: skipped, its save never finished',))"
    assert complaints(child.stderr) == ""


CHILD = """
import os, signal, sys
import jax, jax.numpy as jnp
from jax_simcas.checkpoints.run_state import Checkpointer

size, last = int(sys.argv[2]), int(sys.argv[3])
with Checkpointer(sys.argv[1]) as checkpointer:
    found = checkpointer.restore({"params": {"w": jnp.zeros(size)}})
    for step in range(found.step + 1 if found else 1, last + 1):
        checkpointer.save(step, {"params": {"w": jnp.full(size, float(step))}}, None, {})
        if last == 2 and step == 1:
            checkpointer.wait()
        print(step, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_saving(tmp_path):
    size = 8_000_000
    child = subprocess.run([sys.executable, "-c", CHILD, tmp_path, str(size), "2"], cwd=ROOT, timeout=120)
    assert child.returncode == -signal.SIGKILL
    with Checkpointer(tmp_path) as checkpointer:
        found = checkpointer.restore({"params": {"w": jnp.zeros(size)}})
    # How far the second one came before the kill is up to the machine.
    assert found.step >= 1 and (np.asarray(found.state["params"]["w"]) == found.step).all()
    assert all("/2.orbax-checkpoint-tmp: skipped" in warning for warning in found.warnings)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    size, reached, rng = 200_000, 0, random.Random(0)
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path, str(size), "100000"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            begun = int(child.stdout.readline())
            time.sleep(rng.random())
            child.kill()
            begun = int((child.stdout.read().split() or [begun])[-1])
        with Checkpointer(tmp_path) as checkpointer:
            found = checkpointer.restore({"params": {"w": jnp.zeros(size)}})
        assert found.step >= max(begun - 1, reached)
        assert (np.asarray(found.state["params"]["w"]) == found.step).all()
        assert all("never finished" in warning for warning in found.warnings)
        reached = found.step
