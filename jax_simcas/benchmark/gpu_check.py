"""Checks and measures this checkout on a GPU within a time limit; `launch/gpu_check.sh` starts it.

Parts: environment (card, driver, versions), parity with the arrays of the released code, tests of the method, resume
(bit-identical), training (configs/embedded.py, for some steps), benchmark (beside the PyTorch peer). A part that fails
or runs out of time is reported, and the others go on. gpu_check.json and gpu_check.md in --output are written after
each part, gpu_check.log has what the programs printed. With --device cpu and a tiny model it is its own rehearsal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax_simcas.benchmark import comparison, gpu
from jax_simcas.benchmark.__main__ import add_models
from jax_simcas.benchmark.parts import Failed, Part, Programs, Report, Stopped
from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import plural

EXAMPLES = """\
  python -m jax_simcas.benchmark.gpu_check --output runs/gpu_check
  python -m jax_simcas.benchmark.gpu_check --device cpu --size tiny --lengths 1024,2048 --parts environment,benchmark
"""
CHECKOUT = Path(__file__).parents[2]
PARTS = ("environment", "parity", "tests", "resume", "training", "benchmark")
TESTS = ("align", "chunk", "select", "reward", "ppo", "model", "layers", "fused_attention", "update", "generate")
PEERS = ("torch-bf16", "torch-bf16-compile")
SAME = ("repeats", "chunk_length", "target", "selected", "attention")  # flags of the benchmark that are passed on
STAGES = ("encode", "transformer", "selector", "generate")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # no atomic sums, no choice of kernels by a race
# Tolerances are those of float32. XLA multiplies float32 matrices in TF32 on a GPU, with 10 bits, unless told not to:
# users get that default, comparisons must not.
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
# What the parts import; a machine without an index may lack some.
NEEDED = (
    *("grain", "ml_collections", "rouge_score", "tensorboardX", "orbax.checkpoint", "pytest", "beartype", "jaxtyping"),
    *("jax_simcas.run.loop", "jax_simcas.benchmark.stages", "jax_simcas.parity"),
)
VERSIONS = """
import importlib.metadata as m, json, platform, jax
names = ("jax", "jaxlib", "nvidia-cudnn-cu13", "flax", "optax", "orbax-checkpoint", "torch", "transformers", "numpy")
own = {}
for name in names:
    try:
        own[name] = m.version(name)
    except m.PackageNotFoundError:
        own[name] = None
device = jax.devices()[0]
print(json.dumps({"python": platform.python_version(), "platform": device.platform, "device": device.device_kind,
                  "client": device.client.platform_version.splitlines()[0], "packages": own}))
"""


def last_json(output: str) -> Any:
    """The JSON object that ends a program's output.

    Raises:
      Failed: there is none.
    """
    start = max(output.rfind("\n{"), 0 if output.startswith("{") else -1)
    try:
        return json.loads(output[start:])
    except ValueError:
        raise Failed("it printed no figures") from None


def environment(run: Programs) -> dict[str, Any]:
    """Card, driver, clocks and versions."""
    card = gpu.card()._asdict() if run.on_gpu else None
    versions = last_json(run.python("-c", VERSIONS).stdout)
    run.python("-c", f"import {', '.join(NEEDED)}", env={"JAX_PLATFORMS": "cpu"})
    if run.on_gpu and versions["platform"] != "gpu":
        raise Failed(f"JAX computes on {versions['device']}, not on the GPU")
    return {"card": card} | versions


def parity(run: Programs) -> dict[str, Any]:
    """Every comparison with the arrays of the released code."""
    done = run.python("-m", "jax_simcas.parity", CHECKOUT / "tests/data/parity", "--json", env=EXACT, check=False)
    checks = last_json(done.stdout)["checks"]
    beyond = [check for check in checks if not check["holds"]]
    # How near the limits: the comparison that came nearest to its tolerance.
    nearest = max((c["error"] / c["tolerance"] for c in checks if c["tolerance"] and c["error"] is not None), default=0)
    figures = {"comparisons": len(checks), "of the tolerance at most": round(nearest, 3), "beyond": beyond}
    if beyond or not checks:
        names = ", ".join(f"{check['case']}: {check['quantity']}" for check in beyond[:5])
        raise Failed(f"{len(beyond)} of {len(checks)} comparisons are beyond their tolerance: {names}", figures)
    return figures


def tests(run: Programs) -> dict[str, Any]:
    """The fast tests of the method, on this device."""
    chosen = [path for name in TESTS if (path := CHECKOUT / f"tests/test_{name}.py").is_file()]
    results = run.folder / "tests.xml"
    workers = max(1, min(12, (os.cpu_count() or 2) - 2))
    # Warnings are errors in our own runs; here they may be of packages that we did not choose.
    flags = ["-q", "-W", "default", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={results}"]
    flags += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    done = run.python("-m", "pytest", *flags, *chosen, env=EXACT | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}, check=False)
    if not results.is_file():
        raise Failed(f"pytest ended with {done.returncode} before it had results")
    cases = list(ElementTree.parse(results).iter("testcase"))
    name = lambda case: f"{case.get('classname')}::{case.get('name')}"
    failed = [name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [name(case) for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    figures = {"tests": len(cases), "passed": passed, "skipped": len(skipped), "failed": failed}
    if failed or not cases:
        raise Failed(f"{len(failed)} of {len(cases)} tests failed: {', '.join(failed[:5])}", figures)
    return figures


def train(run: Programs, name: str, steps: int, env: dict[str, str], *flags: str) -> Path:
    """Trains the model of configs/embedded.py; the workdir."""
    workdir = run.folder / name
    config = f"--config={CHECKOUT / 'configs/embedded.py'}"
    run.python(
        *("-m", "jax_simcas.train", config, f"--workdir={workdir}", f"--config.loop.steps={steps}"), *flags, env=env
    )
    return workdir


def digests(workdir: Path) -> dict[str, Any]:
    """The digest of every array in the newest checkpoint."""
    newest = max(
        (path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()), key=lambda p: int(p.name)
    )
    meta = json.loads(json.loads((newest / "meta" / "metadata").read_text(encoding="utf-8"))["json"])
    return {name: array["digest"] for name, array in meta["arrays"].items()}


def resume(run: Programs) -> dict[str, Any]:
    """A run that stops and resumes, beside one that does not: with XLA's deterministic kernels, and with its default.

    The deterministic ones must end in the same bits. The default is reported only: there, sums by atomics and kernels
    chosen by a race may differ between processes.
    """
    flags = ("--config.loop.eval_every=1000", "--config.loop.eval_documents=8")
    given = os.environ.get("XLA_FLAGS", "")

    def differing(kind: str, env: dict[str, str]) -> list[str]:
        whole = digests(train(run, f"{kind}-whole", 8, env, *flags))
        train(run, f"{kind}-resumed", 4, env, *flags)
        again = digests(train(run, f"{kind}-resumed", 8, env, *flags))
        return sorted(name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name))

    with ThreadPoolExecutor(2) as pool:
        deterministic = pool.submit(differing, "deterministic", {"XLA_FLAGS": f"{given} {DETERMINISTIC}".strip()})
        default = pool.submit(differing, "default", {})
    figures = {f"arrays that differ, {DETERMINISTIC}": deterministic.result(), "arrays that differ": default.result()}
    if differ := deterministic.result():
        raise Failed(f"{len(differ)} arrays of the resumed run differ, such as {differ[0]}", figures)
    return figures


def training(run: Programs, steps: int) -> dict[str, Any]:
    """The training of configs/embedded.py for some steps: the time of a step, and that the loss falls."""
    every = 10
    rare = f"--config.loop.eval_every={steps}"
    workdir = train(run, "training", steps, {}, f"--config.loop.log_every={every}", rare)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    times = sorted(row["tokens"] / row["tokens_per_second"] for row in rows[1:])
    figures = {"steps": steps, "milliseconds per step": round(1000 * times[len(times) // 2], 2)}
    figures |= {"loss at first": round(rows[0]["loss"], 3), "loss at last": round(rows[-1]["loss"], 3)}
    if not figures["loss at last"] < figures["loss at first"]:
        raise Failed("the loss did not fall", figures)
    return figures


def benchmark(run: Programs, *flags: str) -> dict[str, Any]:
    """One call of the benchmark, in bfloat16."""
    folder = Path(tempfile.mkdtemp(dir=run.folder))
    left = max(run.end - time.monotonic() - 30, 1)  # so that it ends by itself, with what it has
    own = ("--dtypes=bfloat16", f"--device={run.device}", f"--output={folder}", f"--seconds={left:.0f}")
    try:
        done = run.python("-m", "jax_simcas.benchmark", *own, *flags, check=False)
    except Stopped as stopped:
        done, problem = stopped.done, str(stopped)
    else:
        problem = f"it ended with {done.returncode}" if done.returncode else ""
    skipped = [line.removeprefix("skipped: ") for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    path = folder / "benchmark.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    figures = {"results": results, "skipped": skipped}
    if problem or not results:
        raise Failed(f"{problem}; {plural(len(results), 'task')} measured, {len(skipped)} skipped", figures)
    return figures


def benchmark_parts(arguments: Any) -> list[Part]:
    """The calls of the benchmark, what matters most first; in long training each side is alone, for its memory."""
    sides, remats, gpu_side = ("jax", *arguments.peers), tuple(arguments.remat), arguments.device == "gpu"
    same = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in SAME]

    def part(
        size: str, length: int, stages: Sequence[str], sides: Sequence[str], remats: Sequence[str], *more: str
    ) -> Part:
        together = len(stages) * (len(sides) + len(remats)) if gpu_side else 1
        flags = [f"--model={size}", f"--lengths={length}", f"--stages={','.join(stages)}", f"--sides={','.join(sides)}"]
        flags += [f"--together={together}", *same, f"--remat={','.join(remats)}", *more]
        name = f"benchmark {size} {length:,} {', '.join(stages)} of {', '.join(sides)} {' '.join(more)}".strip()
        return Part(name, arguments.benchmark_seconds, lambda run: benchmark(run, *flags))

    shortest, *longer = sorted(arguments.lengths)
    parts = [part(size, shortest, arguments.stages, sides, remats) for size in arguments.size]
    if fused := [stage for stage in arguments.stages if stage in ("encode", "transformer")] if gpu_side else []:
        parts.insert(1, part(arguments.size[0], shortest, fused, ["jax"], remats[:1], "--attention=cudnn"))
    for length in longer:
        for size in arguments.size:
            others = [stage for stage in arguments.stages if stage != "transformer"]
            if others:
                parts.append(part(size, length, others, sides, remats))
            if others != arguments.stages:
                alone = [("jax", remat) for remat in remats] + [(side, remats[0]) for side in arguments.peers]
                parts += [part(size, length, ["transformer"], [side], [remat]) for side, remat in alone]
    return parts


def groups_of_parts(arguments: Any) -> list[list[Part]]:
    """The parts in order, what no other machine tells first; those of one group run together, as none is timed."""
    checks = [Part("parity", 150, parity), Part("tests", 200, tests), Part("resume", 170, resume)]
    trains = Part("training", 90, lambda run: training(run, arguments.steps))
    first, *others = [[part] for part in benchmark_parts(arguments)] if "benchmark" in arguments.parts else [[]]
    groups = [[Part("environment", 60, environment)], first, checks, [trains], *others]
    named = lambda part: part.name.split()[0]
    return [chosen for group in groups if (chosen := [part for part in group if named(part) in arguments.parts])]


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not (CHECKOUT / "tests/data/parity").is_dir():
        raise UserError(f"{CHECKOUT} is no checkout of jax_simcas: the check needs its tests/ and configs/")
    folder = files.make_folder(Path(arguments.output), "--output")
    report = Report(folder, "gpu_check", comparison.markdown)
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as scratch, open(folder / "gpu_check.log", "w", encoding="utf-8") as log:
        programs = Programs(arguments.device, CHECKOUT, Path(scratch), log, end)
        for group in groups_of_parts(arguments):
            with ThreadPoolExecutor(len(group)) as pool:
                for part in group:
                    own = dataclasses.replace(
                        programs, end=min(end, time.monotonic() + arguments.patience * part.seconds)
                    )
                    pool.submit(report.add, part, own)
            if report.failed == ["environment"]:  # something is missing that all others need
                break
    print((folder / "gpu_check.md").read_text(encoding="utf-8"))
    return cli.EXIT_ERROR if report.failed else 0


def parser() -> cli.Parser:
    made = cli.parser("benchmark.gpu_check", __doc__ or "", EXAMPLES)
    made.add_argument("--output", type=cli.text, default="runs/gpu_check", help="for gpu_check.json, .md and .log")
    made.add_argument("--minutes", type=cli.number(float, 0), default=8.0, help="for everything (default 8)")
    made.add_argument(
        "--patience", type=cli.number(float, 0), default=1.0, help="times the limits of the parts (default 1)"
    )
    made.add_argument("--parts", type=cli.some_of(PARTS), default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    made.add_argument("--device", default="gpu", choices=("gpu", "cpu"), help="cpu: a rehearsal (default gpu)")
    add_models(made, ["large", "base"])
    made.add_argument("--lengths", type=cli.numbers(1), default=(16_384, 131_072), help="tokens of its documents")
    made.add_argument("--stages", type=cli.some_of(STAGES), default=list(STAGES), help=f"some of {', '.join(STAGES)}")
    made.add_argument("--peers", type=cli.names, default=list(PEERS), help="sides beside ours, as in the benchmark")
    made.add_argument("--remat", type=cli.names, default=["dots", "layer"], help="as in the benchmark")
    made.add_argument("--attention", default="auto", help="as in the benchmark")
    made.add_argument("--repeats", type=cli.positive, default=7, help="timed runs per task (default 7)")
    made.add_argument("--steps", type=cli.positive, default=100, help="of the training (default 100)")
    made.add_argument("--benchmark-seconds", type=cli.number(float, 0), default=150.0, help="per call (default 150)")
    made.add_argument("--chunk-length", type=cli.positive, default=512)
    made.add_argument("--target", type=cli.positive, default=256, help="tokens of the summary")
    made.add_argument("--selected", type=cli.positive, default=2_048, help="states that generation reads")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
