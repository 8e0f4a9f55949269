"""launch/gpu.sh against stand-ins for Slurm and the GPUs."""

import subprocess

from launching import TRAIN, lines, wait_until


def test_gpu_trains_in_the_background(place):
    place.plays(train=["wait"])
    workdir = f"--workdir={place.path}/a run"
    begin = ("start", workdir, "--gpus=0,1", "--", *TRAIN)
    done = place.run("gpu.sh", *begin)
    assert done.code == 0, done.err
    wait_until((place.path / "home" / "ready").exists)
    assert "running already" in place.run("gpu.sh", *begin).out
    assert place.run("gpu.sh", "status", workdir).code == 4
    assert place.run("gpu.sh", "stop", workdir).code == 0
    stopped = place.run("gpu.sh", "status", workdir)
    assert stopped.code == 1 and stopped.out == "job: exit 75\n"
    assert place.run("gpu.sh", "logs", workdir).out == "training\nsaved\n"
    (call,) = lines(place.path / "home" / "train.jsonl")
    platforms, visible, *command = call
    assert (platforms, visible) == ("cuda,cpu", "0,1")
    assert command[:3] == ["-u", "-m", "jax_simcas.train"] and set(command[3:]) == {workdir, *TRAIN}


def test_gpu_says_what_is_missing(place):
    (place.programs / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    begin = (f"--workdir={place.path}/run", "--", *TRAIN)
    done = place.run("gpu.sh", "start", *begin)
    assert done.code == 1 and done.err == "error: no GPU: nvidia-smi is missing, or finds none\n"
    assert place.run("gpu.sh", "start", "--dry-run", *begin).code == 0
    for arguments, message in (
        (["start", "--", *TRAIN], "no workdir"),
        (["status"], "no workdir"),
        (["start", "--workdir=a"], "no config"),
        (["slurm", *begin], "--gpus=''"),
        (["slurm", "--gpus=8", *begin], "--time=''"),
        (["go"], "no such verb: 'go'"),
    ):
        done = place.run("gpu.sh", *arguments)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_slurm_submits_a_script_that_queues_again_when_stopped(place):
    flags = (f"--workdir={place.path}/a run", "--nodes=2", "--gpus=4", "--time=1:00:00", "--sbatch-flags=-p gpu")
    printed = place.run("gpu.sh", "slurm", *flags, "--dry-run", "--", *TRAIN)
    assert printed.code == 0 and not (place.path / "sbatch.jsonl").exists()
    done = place.run("gpu.sh", "slurm", *flags, "--", *TRAIN)
    assert done.code == 0, done.err
    script = place.path / "a run" / "job.sbatch"
    (submitted,) = lines(place.path / "sbatch.jsonl")
    assert submitted[-1] == str(script) and {"-p", "gpu", f"--output={place.path}/a run/slurm-%j.log"} <= set(submitted)
    assert script.read_text() == printed.out
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--signal=TERM@300", "--requeue"):
        assert f"\n#SBATCH {line}\n" in printed.out
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in printed.out
    for plays, code, again in ((75, 75, [["requeue", "12"]]), (1, 1, []), (0, 0, [])):
        (place.path / "home" / "train.jsonl").unlink(missing_ok=True)
        (place.path / "scontrol.jsonl").unlink(missing_ok=True)
        place.plays(train=[plays])
        run = subprocess.run(["bash", script], env=place.environment | {"SLURM_JOB_ID": "12"}, capture_output=True)
        assert run.returncode == code and lines(place.path / "scontrol.jsonl") == again
        (call,) = lines(place.path / "home" / "train.jsonl")
        assert set(call[2:]) == {"-u", "-m", "jax_simcas.train", "--distributed=auto", flags[0], *TRAIN}
