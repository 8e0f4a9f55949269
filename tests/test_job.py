"""launch/job.sh: the background job that the other launch scripts start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from launching import ROOT, wait_until


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


def test_another_job_is_no_success(tmp_path):
    """Whoever starts it would take the end of the first for its own."""
    folder = tmp_path / "job"
    assert job("start", folder, "sleep", "30")[0] == 0
    assert job("start", folder, "sleep", "30") == (
        0,
        f"job: running already, pid {(folder / 'pid').read_text().strip()}: not started again\n",
    )
    done = subprocess.run(
        ["bash", ROOT / "launch/job.sh", "start", folder, "sleep", "31"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "another job is running in" in done.stderr and "It is sleep 30" in done.stderr
    assert job("stop", folder)[0] == 0
    assert job("start", folder, "true")[0] == 0


def test_a_job_outlives_the_session_that_started_it(tmp_path):
    folder = tmp_path / "job"
    script = f"bash {ROOT}/launch/job.sh start {folder} bash -c 'sleep 1; exit 0'; sleep 60"
    command = ["env", "--default-signal=HUP", "bash", "-c", script]  # under nohup it would be ignored
    session = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
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
