"""The check on a GPU: its parts, its report after each of them, and the script around it; rehearsed on the CPU."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from jax_simcas.benchmark import comparison, gpu, gpu_check, stages, timing
from jax_simcas.benchmark.parts import Done, Failed, Part, Programs, Report, Stopped
from jax_simcas.common.errors import UserError

CARD = gpu.Card("NVIDIA H100 80GB HBM3", "580.1", "81559 MiB", "1980 MHz", "1980 MHz", "2619 MHz", "700.00 W")


def result(side, seconds, peak_bytes, **changes):
    task = stages.Task("transformer", side=side, size="large", dtype="bfloat16", device="gpu")
    figures = {"flops": int(1e12), "peak_bytes": peak_bytes, "working_bytes": peak_bytes, "seconds": seconds}
    return vars(task) | figures | {"compile_seconds": 1.0, "prepare_seconds": 2.0} | changes


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi that prints `text` and ends with `code`."""

    def plays(text, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'EOT'\n{text}\nEOT\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return plays


def test_the_card_is_read_and_its_peak_known(nvidia_smi):
    nvidia_smi(", ".join(CARD))
    assert gpu.card() == CARD and CARD.peak == 989e12
    assert CARD._replace(name="NVIDIA H100 PCIe").peak == 756e12
    assert CARD._replace(name="NVIDIA GeForce GT 710").peak is None


@pytest.mark.parametrize(("text", "code"), [("No devices were found", 6), ("", 0), ("Driver/library mismatch", 18)])
def test_without_a_card_one_line_says_so(nvidia_smi, text, code, tmp_path, capsys):
    nvidia_smi(text, code)
    with pytest.raises(UserError, match=f"no GPU: nvidia-smi says {text or 'nothing'}"):
        gpu.card()


def test_ours_is_beside_the_fastest_other_side():
    results = [
        result("jax", [0.05, 0.04, 0.06], 3 * 2**30),
        result("torch", [0.2], 9 * 2**30),
        result("torch-bf16", [0.1], 6 * 2**30),
        result("jax", [1.0], 2**30, length=32_768),  # with nobody beside it
    ]
    (row,) = comparison.beside_fastest(results, CARD)
    assert row["fastest other side"] == "torch-bf16" and row["tokens"] == "16,384"
    assert (row["times as fast"], row["memory"], row["of peak"]) == ("2.00", "0.50", "0.02")


def test_a_result_has_the_rate_of_its_model_flops():
    encode = stages.Task("encode", size="large", dtype="bfloat16")
    transformer = stages.Task("transformer", size="large", dtype="bfloat16")
    bart = encode.shape
    weights = bart.encoder_layers * (4 * bart.d_model**2 + 2 * bart.d_model * bart.encoder_ffn_dim)
    assert stages.flops_of(encode) == pytest.approx(2 * weights * encode.length, rel=0.1)  # and attention's products
    assert 3 < stages.flops_of(transformer) / stages.flops_of(encode) < 5
    assert stages.flops_of(stages.Task("reward")) is None


def programs(tmp_path, log, seconds=60.0):
    return Programs("cpu", ROOT, tmp_path, log, time.monotonic() + seconds)


@pytest.fixture
def log(tmp_path):
    with open(tmp_path / "log", "w+", encoding="utf-8") as file:
        yield file


def test_programs_that_fail_or_take_too_long_are_stopped_and_logged(tmp_path, log):
    run = programs(tmp_path, log)
    assert run.python("-c", "import os; print(os.environ['JAX_PLATFORMS'], os.environ['MORE'])", env={"MORE": "1"}) == (
        *(0, "cpu 1\n"),
        "",
    )
    with pytest.raises(Failed, match="ended with code 1: ValueError: no"):
        run.python("-c", "raise ValueError('no')")
    assert run.python("-c", "raise SystemExit(3)", check=False).returncode == 3
    child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {LATE!r}, {str(tmp_path)!r}])"
    with pytest.raises(Failed, match="stopped after"):
        programs(tmp_path, log, 1.5).python("-c", f"{child}; time.sleep(60)")
    with pytest.raises(Failed, match="no time was left"):
        programs(tmp_path, log, 0.0).python("-c", "")
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()  # what it had started is gone too
    log.seek(0)
    assert "ValueError: no" in log.read()


LATE = "import pathlib, sys, time; time.sleep(3); pathlib.Path(sys.argv[1], 'late').touch()"


def test_the_report_is_whole_after_every_part(tmp_path, log, capsys):
    report = Report(tmp_path, "check", comparison.markdown)

    def fails(run):
        raise Failed("it did not hold", {"results": [result("jax", [0.5], 2**30), result("torch", [1.0], 2**30)]})

    parts = [Part("environment", 9, lambda run: {"card": CARD._asdict()}), Part("one", 9, fails)]
    parts += [Part("broken", 9, lambda run: 1 // 0)]
    seen = []
    for part in parts:
        report.add(part, programs(tmp_path, log))
        seen.append(len(json.loads((tmp_path / "check.json").read_text())["parts"]))
    assert seen == [1, 2, 3] and report.failed == ["one", "broken"]
    page = (tmp_path / "check.md").read_text()
    assert "it did not hold" in page and "ZeroDivisionError" in page and re.search(r"\| +2\.00 \|", page)
    assert "one: it did not hold" in capsys.readouterr().err


def test_parts_are_in_order_and_long_training_is_alone():
    arguments = gpu_check.parser().parse_args(["--parts=parity,benchmark", "--size=large"])
    groups = [[part.name for part in group] for group in gpu_check.groups_of_parts(arguments)]
    sides = "jax, torch-bf16, torch-bf16-compile"
    assert groups == [
        [f"benchmark large 16,384 encode, transformer, selector, generate of {sides}"],
        ["parity"],
        ["benchmark large 16,384 encode, transformer of jax --attention=cudnn"],
        [f"benchmark large 131,072 encode, selector, generate of {sides}"],
        ["benchmark large 131,072 transformer of jax"],
        ["benchmark large 131,072 transformer of jax"],
        ["benchmark large 131,072 transformer of torch-bf16"],
        ["benchmark large 131,072 transformer of torch-bf16-compile"],
    ]


def test_a_benchmark_that_is_stopped_keeps_what_it_measured(tmp_path):
    class Slow(Programs):
        def python(self, *arguments, **options):
            folder = next(a.removeprefix("--output=") for a in arguments if str(a).startswith("--output="))
            (Path(folder) / "benchmark.json").write_text('{"results": [{"seconds": [1.0]}]}')
            raise Stopped("stopped after 9 s", Done(-9, "", "skipped: one\nother\n"))

    expected = "stopped after 9 s; 1 task measured, 1 skipped"
    with (tmp_path / "log").open("w") as log, pytest.raises(Failed, match=expected) as caught:
        gpu_check.benchmark(Slow("cpu", ROOT, tmp_path, log, time.monotonic() + 60))
    assert caught.value.figures == {"results": [{"seconds": [1.0]}], "skipped": ["one"]}


def test_figures_are_given_as_they_come():
    task, seen = stages.Task("encode", size="tiny", length=128, chunk_length=32), []
    timing.time_tasks([task], 2, on_results=lambda results: seen.append([len(r["seconds"]) for r in results]))
    assert seen == [[1], [2]]


def test_tasks_that_are_not_ready_in_time_are_skipped(capsys):
    task = stages.Task("encode", size="tiny", length=128, chunk_length=32)
    assert timing.time_tasks([task, task], 1, together=2, seconds=0.1) == []
    assert capsys.readouterr().err.count("skipped: encode (jax) at 128 tokens: not ready within the time limit") == 2


def test_weights_in_bfloat16_are_for_bfloat16_only(capsys):
    assert benchmark_tasks("--sides=torch,torch-bf16", "--dtypes=float32,bfloat16", "--stages=encode") == [
        ("torch", "float32"),
        ("torch", "bfloat16"),
        ("torch-bf16", "bfloat16"),
    ]


def benchmark_tasks(*flags):
    from jax_simcas.benchmark import __main__ as program
    from jax_simcas.benchmark import lengths

    arguments = program.parser().parse_args([*flags, "--lengths=1024"])
    tasks = lengths.tasks_of(arguments, arguments.sides, arguments.stages)
    return [(task.side, task.dtype) for task in tasks]


def script(*arguments, **environment):
    command = ["bash", ROOT / "launch" / "gpu_check.sh", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_the_script_checks_what_it_is_given(tmp_path):
    done = script("--python=/nowhere/python")
    assert done.returncode == 2 and done.stderr == "error: --python=/nowhere/python cannot be run\n"
    done = script("--wheels=/tmp")
    assert done.returncode == 2 and "unknown flag --wheels=/tmp" in done.stderr
    done = script(f"--python={sys.executable}", WHEELS=str(tmp_path))
    assert done.returncode == 1 and "cannot be installed" in done.stderr


def test_the_script_writes_what_it_found(tmp_path):
    done = script(f"--python={sys.executable}", f"--output={tmp_path}/out", "--", "--device=cpu", "--parts=environment")
    assert done.returncode == 0, done.stderr
    (part,) = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    assert part["problem"] == "" and part["figures"]["platform"] == "cpu" and part["figures"]["packages"]["jax"]
    assert part["figures"]["python"] in done.stdout


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu_holds(tmp_path):
    flags = ["--device=cpu", "--parts=environment,parity,resume,training", "--steps=20", f"--output={tmp_path}"]
    assert gpu_check.main([*flags, "--minutes=20", "--patience=9"]) == 0
    parts = {part["name"]: part["figures"] for part in json.loads((tmp_path / "gpu_check.json").read_text())["parts"]}
    assert parts["parity"]["comparisons"] > 100 and parts["resume"]["arrays that differ"] == []
    assert parts["training"]["milliseconds per step"] > 0
