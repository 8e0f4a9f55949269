"""What tests of the launch scripts share: a checkout of their own, and stand-ins on PATH for what the scripts call."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
STAND_IN = Path(__file__).with_name("stand_in.py")
BASE = ("--name=night-1", "--zone=us-west4-a", "--project=lab")
VERBS = ["run", "create", "wait", "copy", "install", "start", "logs", "status", "stop", "resume", "fetch", "delete"]
TRAIN = ("--config=configs/small.py", "--config.data.data_dir=gs://data/x", """--config.text=it's "a"  $HOME; `b`""")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def place(tmp_path):
    """A small checkout of its own, stand-ins on PATH, and a place for what they record."""
    checkout, programs = tmp_path / "check out", tmp_path / "bin"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "configs").mkdir()
    (checkout / "configs" / "small.py").write_text("tracked\n")
    for name in ("setup.py", "constraints.txt"):
        (checkout / name).write_text("")
    git = ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    programs.mkdir()
    names = ["gcloud", "gcsfuse", "mountpoint", "nvidia-smi", "srun", "sbatch", "scontrol"]
    for name, role in [("python3.13", "python"), *((name, name) for name in names)]:
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -SE "{STAND_IN}" {role} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "home").mkdir()
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("SIMCAS", "JAX", "PYTHON", "SLURM", "CUDA"))
    }
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PLACE": str(tmp_path), "HOME": str(tmp_path / "home")}
    environment["SIMCAS_TPU_POLL"] = "0.05"

    def plays(**scenario):
        (tmp_path / "plays.json").write_text(json.dumps({"workers": 2, "train": [0]} | scenario))

    def run(script, *arguments, **more):
        command = ["bash", str(checkout / "launch" / script), *arguments]
        done = subprocess.run(
            command,
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    def calls(*words):
        """gcloud's calls that begin with these words, after `compute tpus`."""
        every = [call[2:] if call[:2] == ["compute", "tpus"] else call for call in lines(tmp_path / "gcloud.jsonl")]
        return [call for call in every if call[: len(words)] == list(words)]

    plays()
    here = SimpleNamespace(
        path=tmp_path,
        checkout=checkout,
        programs=programs,
        environment=environment,
        plays=plays,
        run=run,
        tpu=lambda verb, *flags, **more: run("tpu.sh", verb, *BASE, *flags, **more),
        calls=calls,
        trained=lambda worker: lines(tmp_path / f"home-{worker}" / "train.jsonl"),
        home=lambda worker: tmp_path / f"home-{worker}",
    )
    yield here
    plays(train=[0])
    for lock in tmp_path.rglob("lock"):  # no job outlives its test
        subprocess.run(["bash", str(ROOT / "launch" / "job.sh"), "stop", str(lock.parent), "0"], capture_output=True)


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited for 10 seconds")
