"""launch/answer.py: what the quickstart prints of one document."""

import re
import subprocess
import sys

from helpers import ROOT


def test_it_prints_what_was_found_where(tmp_path):
    command = [sys.executable, "launch/answer.py", "examples/quickstart_model", str(tmp_path / "document.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    document = (tmp_path / "document.txt").read_text().strip()
    chunks = re.findall(r"^  (\d)  (.*(?:\n     .*)*)", done.stdout, re.MULTILINE)
    assert [number for number, _ in chunks] == list("12345678")
    assert " ".join(" ".join(text.split()) for _, text in chunks).replace("[", "").replace("]", "") == document
    facts = re.findall(r"^  chunk (\d): (\w+ .*?\.) +kept$", done.stdout, re.MULTILINE)
    assert len({chunk for chunk, _ in facts}) == 3 and all(fact in document for _, fact in facts)
    [expected] = re.findall(r"^expected answer: +(.*)$", done.stdout, re.MULTILINE)
    assert f"the model's answer:  {expected}  (right)\n" in done.stdout
    for place in expected.split(", "):
        [(fact, chunk)] = re.findall(rf"% of its attention: (.*\[{place}\]\.)  \(chunk (\d)\)", done.stdout)
        assert (chunk, fact.replace("[", "").replace("]", "")) in facts


def test_another_model_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "launch/answer.py", str(tmp_path / "nothing"), str(tmp_path / "document.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "document.txt").exists()
