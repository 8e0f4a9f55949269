"""The order of rows in runs that are killed and resumed: the check itself, and a small run of it."""

import itertools
import random
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import environment, several_devices
from jax.sharding import NamedSharding

from jax_simcas.benchmark import data_order
from jax_simcas.benchmark.order_check import Attempt, Reading, compared, ended, planned, problem
from jax_simcas.benchmark.order_reader import RECORD, Share, places_of
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import MeshConfig, fitted, make_mesh, partition

ROWS, EPOCHS, SIZE = 7, 2, 4  # four batches, of which the second holds rows of both epochs


def recorded(order, first=1):
    """RECORDs of rows in that order, from step `first` on."""
    out = np.zeros(len(order), RECORD)
    at = np.arange(len(order))
    out["step"], out["place"], out["row"], out["digest"] = first + at // SIZE, at % SIZE, order, np.array(order) + 100
    return out


ORDER = [3, 0, 6, 1, 2, 5, 4, 0, 2, 4, 6, 1, 3, 5, 6, 6]
ALONE = recorded(ORDER)


def found(*readings):
    return compared(ALONE, [Reading(*reading) for reading in readings], ROWS, EPOCHS, SIZE)


def test_a_resumed_run_repeats_steps_and_is_the_same():
    """Killed in step 3, which only one of two processes has read, and resumed after step 1."""
    first = np.concatenate([recorded(ORDER[:8]), recorded(ORDER[8:12], 3)[:2]])
    assert found((0, first), (1, recorded(ORDER[4:], 2))) == (0, 0, [], 2)
    shuffled = first[np.random.default_rng(0).permutation(len(first))]  # files of processes come in any order
    assert found((0, shuffled), (1, recorded(ORDER[4:], 2))) == (0, 0, [], 2)


def test_what_is_wrong_is_found():
    lost = found((0, recorded(ORDER[:4])), (2, recorded(ORDER[8:], 3)))
    assert (lost.missing, lost.twice, lost.differing) == (4, 0, [2])  # three of the first epoch, one of the second
    swapped = [ORDER[1], ORDER[0], *ORDER[2:]]
    assert found((0, recorded(swapped))) == (0, 0, [1], 0)
    doubled = [ORDER[1], *ORDER[1:]]
    assert found((0, recorded(doubled))) == (1, 1, [1], 0)
    drawn = ALONE.copy()
    drawn["digest"][9] += 1  # another summary
    assert found((0, drawn)) == (0, 0, [3], 0)
    # Even where the resumed run reads it as it should be.
    assert found((0, recorded(swapped[:8])), (0, ALONE)) == (0, 0, [1], 2)
    assert found((0, np.concatenate([ALONE, ALONE[5:6]]))).differing == [2]


def test_a_problem_is_one_line():
    line = {"setting": "file", "rows missing": 0, "rows twice": 2, "batches that differ": 1}
    assert problem(line | {"first": 9}) == "file: 2 rows twice, 1 batches that differ, the first at step 9"
    assert problem(line | {"rows twice": 0, "batches that differ": 0}) == ""


def test_each_attempt_has_another_number_of_processes():
    attempts = planned(20, 1000, (1, 2, 3, 4), (0, 1, 2), random.Random(0))
    counts = [attempt.processes for attempt in attempts]
    assert len(attempts) == 21 and attempts[-1].kill_at is None and {*counts} == {1, 2, 3, 4}
    assert all(one != other for one, other in itertools.pairwise(counts))
    assert {attempt.workers for attempt in attempts} == {0, 1, 2}
    assert all(0 <= attempt.kill_at < 1000 for attempt in attempts[:-1])
    assert planned(0, 10, (2,), (0,), random.Random(0)) == [Attempt(2, 0, None, pytest.approx(0.15, abs=0.15))]


def test_a_process_that_fails_is_one_line(tmp_path):
    shares = [Share(number, 2, tmp_path, 0, 9, False, 1, None, None, None) for number in range(2)]
    processes = lambda *codes: [SimpleNamespace(exitcode=code) for code in codes]
    assert ended(processes(0, 0), shares) and not ended(processes(0, None), shares)
    with pytest.raises(UserError, match=r"^process 1 of 2: ended with exit code -9$"):
        ended(processes(0, -9), shares)
    shares[0].file("log").write_text("Traceback\nOSError: gone\n")
    with pytest.raises(UserError, match=r"^process 0 of 2: ended with exit code 1; OSError: gone$"):
        ended(processes(1, None), shares)
    shares[0].file("error").write_text("row 3: its document is empty")
    with pytest.raises(UserError, match=r"^process 0 of 2: row 3: its document is empty$"):
        ended(processes(1, None), shares)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_read_what_a_mesh_gives_them(count):
    """With one device each."""
    several_devices(count)
    mesh = make_mesh(fitted(MeshConfig(), count, 24), jax.devices()[:count])
    shares = NamedSharding(mesh, partition(("documents",))).devices_indices_map((24,))
    for number, device in enumerate(mesh.devices.ravel()):
        assert range(24)[shares[device][0]] == places_of(number, count, 24)


def test_a_batch_that_processes_cannot_divide_is_a_wrong_flag(capsys):
    assert data_order.main(["--batch-size=10", "--processes=1,4"]) == 2
    assert "--batch-size=10: expected a multiple of --processes, such as 4" in capsys.readouterr().err


def order_of(*flags):
    command = [sys.executable, "-m", "jax_simcas.benchmark.data_order", *flags]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def cells(done):
    """The cells of each line of the table."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_small_run_is_killed_and_resumed():
    done = order_of("--rows=500", "--kills=2", "--save-every=8", "--processes=1,2", "--workers=0")
    assert done.returncode == 0, done.stderr
    for name, (setting, kills, steps, _, *figures, _) in zip(("file", "cache, sorted"), cells(done), strict=True):
        assert (setting, kills, steps, *figures) == (name, "2", "42", "1000", "0", "0", "0")
    assert done.stderr.count("attempt") == 6 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_larger_run_with_workers_is_killed_and_resumed():
    done = order_of("--rows=5000", "--kills=8", "--seed=1", "--epochs=3")
    assert done.returncode == 0, done.stderr
    assert [line[4:8] for line in cells(done)] == [["15000", "0", "0", "0"]] * 2
