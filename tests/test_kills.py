"""The benchmark of faults sees what a killed program loses, and only that."""

import json
import random
import re
import signal

import pytest
from helpers import ROOT

from jax_simcas.benchmark import fault_cases, fault_kills, faults
from jax_simcas.benchmark.fault_programs import Ended, Program, difference, left

# Writes ten numbers, one after the other; goes on where it was, or, where it is careless, repeats the last one.
WRITER = """
import json, pathlib, signal, sys, time

signal.signal(signal.SIGINT, signal.SIG_DFL)
folder, careless = pathlib.Path(sys.argv[1]), CARELESS
folder.mkdir(parents=True, exist_ok=True)
done, temporary = folder / "done.json", folder / ".done.json.tmp"
numbers = json.loads(done.read_text()) if done.exists() else []
numbers += numbers[-1:] if careless else []
while len(numbers) < 10:
    time.sleep(0.05)
    numbers.append(len(numbers))
    temporary.write_text(json.dumps(numbers))
    temporary.replace(done)
temporary.unlink(missing_ok=True)
"""


@pytest.mark.parametrize("careless", [False, True])
def test_a_program_that_loses_something_when_it_is_killed_is_found(careless, tmp_path, monkeypatch, capsys):
    (tmp_path / "writer.py").write_text(WRITER.replace("CARELESS", str(careless)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(fault_kills, "LOADED", 0.1)
    program = Program("writer", lambda folder: ["writer", str(folder)])
    made = fault_kills.kill(program, tmp_path, tmp_path / "kills", 6, random.Random(0))
    assert sum(strike.landed for strike in made.strikes) == 6 and made.rounds >= 1
    assert not (tmp_path / "kills" / "0").exists()
    if careless:
        assert any("done.json differs" in problem for problem in made.problems)
    else:
        assert made.problems == []
    (row,) = fault_kills.rows([(program, made)])
    assert row["kills"] == row["SIGKILL"] + row["SIGTERM"] + row["SIGINT"] == 6
    assert row["faults"] == len(made.problems)


def test_what_two_runs_left_is_compared_without_times(tmp_path):
    for name, seconds, value in (("one", 1, 5), ("two", 2, 5), ("three", 1, 6)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps({"seconds": seconds, "nll": value}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", "nll": value}) + "\n{")
        (folder / "log.txt").write_text(name)
    one, two, three = (left(tmp_path / name) for name in ("one", "two", "three"))
    assert difference(one, two) == ""
    assert difference(one, three) == "metrics.jsonl differs (1 lines for 1, the first at 0)"
    assert difference({**one, "more": 1}, two) == "more is left over"
    assert difference(one, {**two, "more": 1}) == "more is missing"


@pytest.mark.parametrize(
    ("how", "ended", "problem"),
    [
        (signal.SIGKILL, Ended(-9, ""), ""),
        (signal.SIGTERM, Ended(75, "stopped"), ""),
        (signal.SIGTERM, Ended(0, ""), "exit code 0 after SIGTERM"),
        (signal.SIGINT, Ended(130, "Traceback (most recent call last):"), "a traceback after SIGINT"),
    ],
)
def test_how_a_killed_program_may_end(how, ended, problem, tmp_path):
    found = fault_kills.first_problem(how, ended, True, tmp_path)
    assert found.startswith(problem) and bool(found) == bool(problem)


def test_a_half_written_file_is_a_fault(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')  # appended to, and read without its last line
    assert fault_kills.first_problem(signal.SIGKILL, Ended(-9, ""), True, tmp_path) == ""
    (tmp_path / "predictions.jsonl").write_text('{"id": 1}\n{"i')
    found = fault_kills.first_problem(signal.SIGKILL, Ended(-9, ""), True, tmp_path)
    assert found == "not whole after SIGKILL: predictions.jsonl"


def test_an_error_is_one_line_that_says_what_is_expected():
    full = Ended(1, "note\nerror: x: cannot be written (No space left on device)\n")
    assert fault_cases.one_line(full, fault_cases.NO_SPACE) == ""
    for err in ("", "error: something else", "error: No space left on device\nTraceback (most recent call last):"):
        assert fault_cases.one_line(Ended(1, err), fault_cases.NO_SPACE)


@pytest.mark.slow
def test_the_program_disturbs_a_training_and_prints_what_happens(capsys):
    assert faults.main(["--only=workdir"]) == 0
    line = r"\| two trainings in one folder \| +the second ends with one line \| +1 \|"
    assert re.search(line, capsys.readouterr().out)
