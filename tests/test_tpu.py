"""launch/tpu.sh against stand-ins for gcloud and the workers: what it asks for, says, and leaves behind."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from types import SimpleNamespace

import pytest
from launching import BASE, ROOT, TRAIN, VERBS, lines, wait_until

WORKDIR = "--workdir=gs://bucket/runs/a"


def installed(place, *, create=True):
    """A machine with the code on it."""
    for verb, flags in (("create", ["--type=v5litepod-16"]), ("copy", []), ("install", [])):
        if create or verb != "create":
            done = place.tpu(verb, *flags)
            assert done.code == 0, done.err


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
    machine = {"--node-id=night-1", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"}
    assert created[2] == "night-1" and {*machine, "--spot"} <= set(created)
    assert {"--zone=us-west4-a", "--project=lab", "--quiet"} <= set(created)
    for worker in range(2):
        code = place.home(worker) / "simcas" / "code"
        assert (code / "configs" / "small.py").read_text() == "changed, not committed\n"
        assert not (code / "configs" / "forgotten.py").exists()
        (call,) = place.trained(worker)
        platforms, _, *command = call
        assert platforms == "tpu,cpu"  # never silently on the host's CPU
        assert command[:3] == ["-u", "-m", "jax_simcas.train"]
        arguments = {"--distributed=auto", WORKDIR, TRAIN[0], "--config.data.data_dir=../buckets/data/x", TRAIN[2]}
        assert set(command[3:]) == arguments  # data are read where they are mounted
        (mounted,) = lines(place.home(worker) / "gcsfuse.jsonl")  # the data, not the workdir, which train writes itself
        assert "ro" in mounted and mounted[-2:] == ["data", f"{place.home(worker)}/simcas/buckets/data"]
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
    # Long enough for a busy machine, where waiting is to end before.
    done = place.tpu("wait", f"--timeout={1 if code == 4 else 60}")
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


def test_run_makes_no_machine_anew_that_somebody_deletes(place):
    place.plays(states=["WAITING_FOR_RESOURCES", "DELETING", "DELETING", "NONE"])
    done = place.tpu("run", "--type=v4-8", WORKDIR, "--", *TRAIN)
    assert done.code != 0 and len(place.calls("queued-resources", "create")) == 1


def test_a_training_of_another_run_is_no_success(place):
    place.plays(train=["wait"])
    assert place.tpu("run", "--type=v4-8", WORKDIR, "--dry-run", "--", *TRAIN).code == 0
    installed(place)
    assert place.tpu("start", WORKDIR, "--", *TRAIN).code == 0
    done = place.tpu("start", "--workdir=gs://bucket/runs/other", "--", *TRAIN)
    assert done.code == 1 and "another job is running" in done.err


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
