"""Several processes on this machine, each with virtual devices: they train, resume and fail as one."""

import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import CONFIGS, as_flags, environment, one_line_error

from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common.errors import UserError
from jax_simcas.common.metric_log import read_metrics
from jax_simcas.run.failures import EXIT_LOST, HANG_SECONDS, hang_seconds
from jax_simcas.run.processes import HEARTBEAT_SECONDS, guarded_job, join

CHANGES = {"data.batch_size": 8, "data.embedded.chunks": 4, "loop.eval_documents": 10, "loop.seed": 3}


# Training whose third batch cannot be placed.
SABOTAGE = """
import runpy
from jax_simcas.run import processes

def put_batch(*arguments, put=processes.put_batch, calls=[]):
    calls.append(arguments)
    if len(calls) == 3:
        raise OSError("the file went away")
    return put(*arguments)

processes.put_batch = put_batch
runpy.run_module("jax_simcas.train", run_name="__main__", alter_sys=True)
"""


# Training whose third batch is never read.
HANG = """
import runpy, time
from jax_simcas.run import failures

def take_up_batch(take=failures.take_up_batch, calls=[]):
    calls.append(0)
    if len(calls) == 3:
        time.sleep(10_000)
    take()

failures.take_up_batch = take_up_batch
runpy.run_module("jax_simcas.train", run_name="__main__", alter_sys=True)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(workdir, cache, processes, devices, settings=CHANGES, sabotaged=None, sabotage=SABOTAGE, **changes):
    """The training program in so many processes of so many devices each; one of them may be sabotaged."""
    where = f"127.0.0.1:{free_port()},{processes}"
    env = environment(JAX_SIMCAS_CACHE=cache, JAX_NUM_CPU_DEVICES=devices)
    flags = [f"--config={CONFIGS / 'embedded.py'}", f"--workdir={workdir}", *as_flags(settings | changes)]
    return [
        subprocess.Popen(
            [sys.executable, *(["-c", sabotage] if index == sabotaged else ["-m", "jax_simcas.train"]), *flags]
            + ([f"--distributed={where},{index}"] if processes > 1 else []),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def finish(running, timeout=300):
    """(exit code, output) of each."""
    return [(process.wait(timeout), output) for process in running for output in [process.communicate()[0]]]


def train(*arguments, **changes):
    done = finish(start(*arguments, **changes))
    assert [code for code, _ in done] == [0] * len(done), done
    return done


def figures(workdir, split="validation"):
    rows = read_metrics(workdir / "metrics.jsonl")
    return {row["step"]: row["nll"] for row in rows if row["split"] == split}


def assert_same_run(one, other, steps):
    for split in ("train", "validation"):
        expected, found = figures(one, split), figures(other, split)
        assert sorted(found) == sorted(expected)
        np.testing.assert_allclose([found[s] for s in expected], list(expected.values()), rtol=2e-3)
    a, b = (load_params(folder / "checkpoints", steps)[0] for folder in (one, other))
    np.testing.assert_allclose(a["model"]["shared"]["embedding"], b["model"]["shared"]["embedding"], atol=2e-3)


def assert_silent(output):
    """Only process 0 prints."""
    said = [line for line in output.splitlines() if "connected peer ranks" not in line]
    assert not any(said), said


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("alone")
    train(folder, cache, 1, 1)
    return folder


def test_two_processes_train_as_one(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    done = train(tmp_path / "run", trained.cache, 2, 2, settings={})
    # Programs of several processes on CPUs must not come from the cache: see `join`.
    assert not list(tmp_path.glob("compiled/*"))
    assert "step 4: validation" in done[0][1]
    assert_silent(done[1][1])
    assert_same_run(trained.workdir, tmp_path / "run", 4)


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on_with_another_mesh(alone, cache, tmp_path):
    # Each process finds the buckets that the other run was given.
    done = train(tmp_path, cache, 2, 2, **{"loop.steps": 2, "data.fit_buckets": True, "data.chunk_buckets": ()})
    assert "step 2: validation" in done[0][1]
    assert_silent(done[1][1])
    done = train(tmp_path, cache, 1, 4, **{"mesh.chunk": 2, "mesh.fsdp": 2})
    assert "resuming at step 2" in done[0][1]
    assert_same_run(alone, tmp_path, 4)


@pytest.mark.slow
def test_one_process_trains_and_four_go_on(alone, cache, tmp_path):
    train(tmp_path, cache, 1, 2, **{"loop.steps": 2, "mesh.tensor": 2})
    train(tmp_path, cache, 4, 2, **{"mesh.chunk": 4})
    assert_same_run(alone, tmp_path, 4)


@pytest.mark.slow
def test_sigterm_to_one_stops_all_at_the_same_step(cache, tmp_path):
    running = start(tmp_path, cache, 2, 1, **{"loop.steps": 100_000, "loop.checkpoint_every": 100_000})
    while not (tmp_path / "metrics.jsonl").exists() or len(read_metrics(tmp_path / "metrics.jsonl")) < 3:
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    running[1].send_signal(signal.SIGTERM)
    done = finish(running)
    assert [code for code, _ in done] == [75, 75], done
    assert "the same command resumes" in done[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "count"), [(0, 2), (1, 2), (3, 4)])
def test_a_process_that_dies_takes_the_others_down(cache, tmp_path, victim, count):
    running = start(tmp_path, cache, count, 1, **{"loop.steps": 100_000})
    while not (tmp_path / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    running[victim].kill()
    started = time.monotonic()
    done = finish(running)
    assert time.monotonic() - started < HEARTBEAT_SECONDS, done
    for code, output in done[:victim] + done[victim + 1 :]:
        if code == -signal.SIGABRT:  # jax was faster, as it is when process 0 dies
            assert victim == 0 and "Either the leader task was preempted/died" in output, output
        else:
            assert code == EXIT_LOST, output
            assert f"process {victim} of {count} on {socket.gethostname()} does not answer" in one_line_error(output)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, ValueError])
def test_a_collective_that_fails_may_be_another_process_that_died(error, monkeypatch):
    def run():
        raise error("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    def end_if_one_is_lost():
        raise SystemExit(EXIT_LOST)

    monkeypatch.setattr("jax_simcas.run.processes.several", lambda: True)
    monkeypatch.setattr("jax_simcas.run.failures.end_if_one_is_lost", end_if_one_is_lost)
    monkeypatch.setattr("jax_simcas.run.failures.end_all", lambda code, why: pytest.fail(f"ends with {code}: {why}"))
    with pytest.raises(SystemExit, match=str(EXIT_LOST)):
        guarded_job(run)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_process_ends_all_by_its_name(cache, tmp_path, victim):
    running = start(tmp_path, cache, 2, 1, sabotaged=victim, **{"loop.steps": 100_000})
    done = finish(running, 100)
    assert [code for code, _ in done] == [1, 1], done
    name = f"error: process {victim} of 2 on {socket.gethostname()} failed"
    assert "OSError: the file went away\n" in done[victim][1] and "Traceback" in done[victim][1]
    assert f"{name}, and the others end with it\n" in done[victim][1]
    assert one_line_error(done[1 - victim][1]) == f"{name}: the file went away"


@pytest.mark.slow
def test_a_process_that_cannot_print_ends_all(cache, tmp_path):
    running = start(tmp_path, cache, 2, 1, **{"loop.steps": 100_000})
    while not (tmp_path / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    running[0].stdout.close()
    assert running[0].wait(100) == 1
    ((code, output),) = finish(running[1:], 100)
    assert code == 1 and "process 0 of 2" in one_line_error(output) and "Broken pipe" in output


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_ends_all_by_its_name(cache, tmp_path, victim, monkeypatch):
    monkeypatch.setenv("JAX_SIMCAS_HANG_SECONDS", "100")
    running = start(tmp_path, cache, 2, 1, sabotaged=victim, sabotage=HANG, **{"loop.steps": 100_000})
    done = finish(running, 300)
    assert [code for code, _ in done] == [EXIT_LOST, EXIT_LOST], done
    for _, output in done:
        assert one_line_error(output) == (
            f"error: process {victim} of 2 on {socket.gethostname()} hangs: no batch for 100 s, and the others wait; "
            "the same command resumes"
        )


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_seconds_until_a_job_hangs(given, monkeypatch):
    assert hang_seconds() == HANG_SECONDS
    monkeypatch.setenv("JAX_SIMCAS_HANG_SECONDS", given)
    with pytest.raises(UserError, match=f"JAX_SIMCAS_HANG_SECONDS={given}: expected seconds, or 0 for no limit"):
        hang_seconds()


@pytest.mark.parametrize("where", ["here", "127.0.0.1:1,2", "127.0.0.1:1,2,2", "127.0.0.1,2,1"])
def test_a_wrong_address_is_one_line(where):
    with pytest.raises(UserError, match="--distributed"):
        join(where)


@pytest.mark.slow
def test_two_processes_evaluate_each_document_once(trained, tmp_path):
    env = environment(JAX_SIMCAS_CACHE=trained.cache, JAX_NUM_CPU_DEVICES=2)
    where = f"127.0.0.1:{free_port()},2"
    common = [
        sys.executable,
        "-m",
        "jax_simcas.evaluate",
        f"--workdir={trained.workdir}",
        "--limit=5",
        "--batch-size=2",
    ]
    commands = [[*common, f"--output={tmp_path / 'one'}"]]
    commands += [[*common, f"--output={tmp_path / 'two'}", f"--distributed={where},{index}"] for index in range(2)]
    running = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands
    ]
    done = finish(running)
    assert [code for code, _ in done] == [0, 0, 0], done
    one, two = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two"))
    assert one == two and one.count("\n") == 5


@pytest.mark.slow
def test_what_one_of_two_processes_cannot_read_neither_uses(cache, tmp_path):
    """Each reads its own part of the parameters: the other would resume from a newer step."""
    mesh = {"mesh.fsdp": 2, "loop.checkpoint_every": 1}
    train(tmp_path, cache, 2, 1, **mesh, **{"loop.steps": 3})
    parts = sorted((tmp_path / "checkpoints" / "3" / "state").glob("ocdbt.process_1/d/*"))
    assert parts
    for part in parts:
        part.write_bytes(part.read_bytes()[:20])
    done = train(tmp_path, cache, 2, 1, **mesh)
    assert "resuming at step 2 of 4" in done[0][1] and "checkpoints/3: skipped, damaged" in done[0][1]
