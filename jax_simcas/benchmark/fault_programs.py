"""The programs that `jax_simcas.benchmark.faults` disturbs, on a tiny task, and what each leaves on the disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_simcas.common.errors import UserError
from jax_simcas.common.metric_log import METRICS, read_metrics

# A model and rows of the synthetic task that train in seconds.
TINY: dict[str, Any] = {
    "bart.d_model": 16,
    "bart.encoder_ffn_dim": 32,
    "bart.decoder_ffn_dim": 32,
    "bart.encoder_attention_heads": 2,
    "bart.decoder_attention_heads": 2,
    "data.batch_size": 4,
    "data.embedded.chunks": 4,
    "data.embedded.held_out_rows": 6,
    "data.chunk_buckets": (4,),
    "loop.log_every": 1,
    "loop.eval_every": 8,
    "loop.checkpoint_every": 2,
    "loop.eval_documents": 4,
}
# A training that reads its rows a second time, so that their tokens are cached before.
ROWS_ON_DISK = {
    "data.source": "jsonl",
    "data.draw_answer": True,
    "data.vocab_size": 300,
    "data.batch_size": 250,
    "loop.steps": 5,
    "loop.selector_every": 0,
}
STEPS = 16  # of a training: as many seconds as a start takes, or more
ROWS, ANSWERS = 1_000, 200  # whose tokens are cached, of every answer: seconds of work, and few steps that read them
LIMIT = 600  # seconds: what takes longer hangs

EXPERIMENT = f"""
from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config


def get_config():
    config = embedded_config()
    config.update_from_flattened_dict({TINY | {"loop.steps": 8}!r})
    return config


def get_experiment(config):
    return Experiment((Variant("SimCAS"),), (Evaluation("test", split="test"), Evaluation("other")), seeds=(0,))
"""

# Figures and files that differ between two undisturbed runs: they hold times.
TIMES = frozenset({"time", "seconds", "tokens_per_second", "stall_seconds", "write_seconds", "date", "written"})
TIMED_FILES = ("log.txt", "step.json", ".png", ".lock")
TIMED_FOLDERS = frozenset({"tensorboard", "checkpoints", "compiled"})

Left = dict[str, Any]  # what a program leaves: digest or figures of each file, arrays of the newest checkpoint


class Program(NamedTuple):
    """A program, given as its arguments for a folder of its own, into which it writes."""

    name: str
    arguments: Callable[[Path], list[str]]


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    err: str


def environment(base: Path, folder: Path, **more: str) -> dict[str, str]:
    """For a program in `folder`: what it keeps in a cache lies there, but for compiled programs, which all share."""
    places = {"JAX_SIMCAS_CACHE": str(folder / "cache"), "JAX_COMPILATION_CACHE_DIR": str(base / "compiled")}
    return os.environ | {"JAX_PLATFORMS": "cpu"} | places | more


def start(
    program: Program, base: Path, folder: Path, *more: str, python: str = sys.executable, **env: str
) -> subprocess.Popen[str]:
    """Starts the program in a group of processes of its own, as a terminal does."""
    return subprocess.Popen(
        [python, "-m", *program.arguments(folder), *more],
        env=environment(base, folder, **env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> Ended:
    """Waits for a process.

    Raises:
      UserError: it takes longer than LIMIT seconds.
    """
    try:
        err = process.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise UserError(f"process {process.pid} hangs: {LIMIT} s and no end ({process.args!r:.200})") from None
    return Ended(process.returncode, err or "")


def training(steps: int = STEPS) -> Program:
    command = ["jax_simcas.train", "--config=embedded", *_flags(TINY | {"loop.steps": steps})]
    return Program("training", lambda folder: [*command, f"--workdir={folder / 'run'}"])


def _flags(changes: Mapping[str, object]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in changes.items()]


def programs(base: Path) -> tuple[Program, ...]:
    """What is killed. Those that read find a trained model, rows and an experiment in `base`, which `prepare` makes."""
    caching = ["jax_simcas.train", "--config=embedded", *_flags(TINY | ROWS_ON_DISK | {"data.data_dir": base / "rows"})]
    evaluating = ["jax_simcas.evaluate", f"--workdir={base / 'trained' / 'run'}", "--html", "--split=test"]
    experimenting = ["jax_simcas.experiments", str(base / "experiment.py")]
    return (
        training(),
        Program("making of a cache", lambda folder: [*caching, f"--workdir={folder / 'run'}"]),
        Program("evaluation", lambda folder: [*evaluating, f"--output={folder / 'evaluation'}"]),
        Program("experiment", lambda folder: [*experimenting, f"--workdir={folder / 'experiment'}"]),
    )


def prepare(base: Path, seed: int) -> None:
    """Trains the model that is evaluated, and writes rows and experiment.

    Raises:
      UserError: the training fails.
    """
    (base / "rows").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", ROWS), ("validation", 4)):
        with (base / "rows" / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                words = [f"word-{number}" for number in rng.integers(1_000, size=12)]
                answers = [" ".join(drawn) for drawn in rng.choice(words, (ANSWERS, 4))]
                file.write(json.dumps({"document": " ".join(words), "summary": answers}) + "\n")
    (base / "experiment.py").write_text(EXPERIMENT, encoding="utf-8")
    ended = finished(start(training(steps=8), base, base / "trained"))
    if ended.code:
        raise UserError(f"the training to evaluate ended with {ended.code}: {ended.err.strip()[-300:]}")


def left(folder: Path) -> Left:
    """What a program has left in its folder, without times.

    Raises:
      ValueError: a JSON file that is not whole.
    """
    found: Left = {}
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        if path.name == METRICS:
            found[name] = [_timeless(row) for row in read_metrics(path) if row["split"] != "checkpoint"]
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for checkpoints in sorted(folder.rglob("checkpoints")):
        if newest := max((int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()), default=0):
            found[f"{checkpoints.relative_to(folder)}/{newest}"] = _arrays(checkpoints / str(newest) / "state")
    return found


def files_of(folder: Path) -> Iterator[Path]:
    """The files that are the same whenever the program runs."""
    for path in sorted(folder.rglob("*")):
        timed = path.name.endswith(TIMED_FILES) or TIMED_FOLDERS & set(path.relative_to(folder).parts)
        if path.is_file() and not timed:
            yield path


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _arrays(state: Path) -> dict[str, str]:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of a file that this layout has not
    reader = ocp.PyTreeCheckpointer()
    with warnings.catch_warnings(action="ignore"):
        kept = reader.metadata(state).item_metadata.tree
        # Not on the devices that they were on, which may be those of several processes.
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), kept)
        arrays = reader.restore(state, restore_args=arguments)
    leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for path, leaf in leaves}


def difference(given: Left, expected: Left) -> str:
    """The first of what was left that is not as expected; "" if nothing is."""
    for name in sorted({*given, *expected}):
        if name not in given or name not in expected:
            return f"{name} is {'missing' if name not in given else 'left over'}"
        if given[name] != expected[name]:
            return f"{name} differs{_where(given[name], expected[name])}"
    return ""


def _where(given: Any, expected: Any) -> str:
    if isinstance(given, dict) and isinstance(expected, dict):
        return f" in {', '.join(sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name)))}"
    if isinstance(given, Sequence) and not isinstance(given, str):
        first = next((i for i, pair in enumerate(zip(given, expected, strict=False)) if pair[0] != pair[1]), -1)
        return f" ({len(given)} lines for {len(expected)}{f', the first at {first}' if first >= 0 else ''})"
    return ""
