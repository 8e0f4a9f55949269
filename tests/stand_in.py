"""gcloud, Slurm's programs, gcsfuse, nvidia-smi and the workers' Python: one stand-in under many names.

python stand_in.py NAME ARGUMENT...

Every call is recorded as a JSON line of its arguments, so that their boundaries are seen; what it plays is in
$PLACE/plays.json (launching.py writes it).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
        for i in workers():
            (place / f"home-{i}").mkdir(exist_ok=True)
            shutil.copy(arguments[3], place / f"home-{i}" / arguments[4].split(":")[1])
    elif verb == "ssh":
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
            log = open(Path(flag("--output-directory")) / f"{i}.log", "w") if flag("--output-directory") else None  # noqa: SIM115
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
    (Path(arguments[2]) / "bin").mkdir(parents=True)
    shutil.copy(place / "bin" / "python3.13", Path(arguments[2]) / "bin" / "python")
elif name == "python" and "jax_simcas.train" in arguments:
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
    sys.exit(subprocess.run(arguments).returncode)
elif name in ("sbatch", "scontrol"):
    record(place / f"{name}.jsonl")
