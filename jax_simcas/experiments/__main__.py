"""Runs an experiment: variants of a config times seeds, trained and evaluated, as one table with plots.

The same command goes on where it stopped and repeats nothing that is finished. The folder gets table.md, table.csv,
plot.png, and a folder for each variant and seed with its log.txt.
exit codes: 0 done; 1 an error, told in one line, or runs that failed, named at the end; 75 stopped by SIGTERM;
130 Ctrl-C. After 75, 130 and any kill the same command goes on.
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common import cli, files, plots, progress, tables
from jax_simcas.common.errors import UserError
from jax_simcas.experiments import spec
from jax_simcas.experiments.spec import Experiment, Line, Outcome
from jax_simcas.method.model import check_fits
from jax_simcas.run import config as config_lib

EXAMPLES = """\
  python -m jax_simcas.experiments configs/experiments/ablation.py
  python -m jax_simcas.experiments configs/experiments/ablation.py --dry-run
  python -m jax_simcas.experiments configs/experiments/policy.py --base=configs/qmsum.py --limit=60 \\
      --config.data.data_dir=DATA --seeds=0,1 --workdir=runs/policy-qmsum
"""
STEP, LOG = "step.json", "log.txt"
EXIT_STOPPED = 75  # as train's: the same command again goes on
# What may differ when an experiment goes on: where things lie, and on what they run.
FREE = ("data.data_dir", "data.workers", "mesh.")


class Step(NamedTuple):
    """One command: the training of a variant with a seed, or an evaluation of it.

    folder: gets STEP, which tells what was asked for and, once it is finished, how long it took.
    given: what was asked for, by name; needs: the folder of the training that must be finished first: of the model that
      is evaluated, or that training starts from.
    """

    name: str
    program: str
    folder: Path
    flags: tuple[str, ...]
    given: dict[str, Any]
    needs: Path | None = None

    @property
    def trained(self) -> Path | None:
        """The folder of the training that it is or evaluates."""
        return self.folder if self.program == "train" else self.needs

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", f"jax_simcas.{self.program}", *self.flags]


def load(path: str) -> Any:
    """The module of an experiment or a config.

    Raises:
      UserError: no such file, or whatever it raises.
    """
    spec = importlib.util.spec_from_file_location("experiment", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    with _blaming(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # it is the user's file: anything may go wrong in it
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None


def as_flags(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """{"simcas.align": "none"} -> ("--config.simcas.align=none",)."""
    return tuple(f"--config.{name}={value}" for name, value in overrides.items())


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dataclasses as {"simcas.align": "mean", ...}, in JSON's types."""
    if not dataclasses.is_dataclass(value):
        return {name[1:]: list(value) if isinstance(value, tuple) else value}
    fields = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
    return {key: inner for field, held in fields for key, inner in flat(held, f"{name}.{field}").items()}


def plan(
    experiment: Experiment, base: str, config: Any, common: Sequence[str], workdir: Path, split: str, limit: int
) -> list[Step]:
    """Every step, in order: variant by variant, seed by seed, each training before its evaluations.

    Args:
      base: the config file; config: what is in it, for the settings of all runs to be checked before the first.
      common: flags for all runs; a variant's own overrides come after them and count.
      split, limit: in place of the evaluations' own, where given.

    Raises:
      UserError: settings that cannot be, named with their variant.
    """
    steps = []
    for variant in experiment.variants:
        for seed in experiment.seeds:
            name, folder = f"{variant.name}, seed {seed}", run_folder(workdir, variant.name, seed)
            start = run_folder(workdir, variant.start, seed) if variant.start else None
            changes = (*common, *as_flags(variant.overrides), f"--config.loop.seed={seed}")
            changes = (*changes, f"--config.pretrained={start}") if start else changes
            try:
                settings = config_lib.from_config(cli.override(config, changes))
                if not settings.pretrained:
                    check_fits(settings.bart, settings.simcas)
                for evaluation in experiment.evaluations:
                    trained = config_lib.to_config(settings)
                    config_lib.from_config(cli.override(trained, as_flags(evaluation.overrides)))
            except (UserError, ValueError) as error:
                raise UserError(f"variant {variant.name!r}: {error}") from None
            flags = (f"--config={base}", f"--workdir={folder}", *changes)
            given = flat(settings) | ({"pretrained": f"variant {variant.start}"} if start else {})
            steps.append(Step(f"{name}: training", "train", folder, flags, given, start))
            data_dir = (f"--data-dir={settings.data.data_dir}",) if settings.data.data_dir else ()
            for evaluation in experiment.evaluations:
                asked = {
                    "split": split or evaluation.split,
                    "policy": evaluation.policy,
                    "limit": limit or evaluation.limit or "",
                }
                output = evaluation_folder(workdir, variant.name, seed, evaluation.name)
                flags = tuple(f"--{flag}={value}" for flag, value in asked.items() if value)
                flags = (f"--workdir={folder}", f"--output={output}", *flags, *data_dir)
                flags = (*flags, *as_flags(evaluation.overrides))
                given = asked | {"overrides": " ".join(as_flags(evaluation.overrides))}
                label = f"{name}: evaluation {evaluation.name}".rstrip()
                steps.append(Step(label, "evaluate", output, flags, given, folder))
    return steps


def run_folder(workdir: Path, variant: str, seed: int) -> Path:
    return workdir / spec.slug(variant) / f"seed-{seed}"


def evaluation_folder(workdir: Path, variant: str, seed: int, evaluation: str) -> Path:
    return run_folder(workdir, variant, seed) / "evaluation" / (spec.slug(evaluation) or "default")


def seconds_of(step: Step) -> float | None:
    """How long a finished step took; None for one that is not finished.

    Raises:
      UserError: its folder holds something else than what is asked for.
    """
    path = step.folder / STEP
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        given, seconds = dict(held["given"]), held["seconds"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); remove {step.folder} to do it again") from None
    changed = [
        f"{name}: {given[name]!r} -> {value!r}"
        for name, value in step.given.items()
        if name in given and given[name] != value and not name.startswith(FREE)
    ]
    if changed:
        raise UserError(f"{step.folder} holds other settings ({'; '.join(changed)}): use these, or another --workdir")
    return seconds


def write_state(step: Step, seconds: float | None) -> None:
    text = json.dumps({"given": step.given, "seconds": seconds}, indent=1)
    files.replace_file(step.folder / STEP, f"{text}\n".encode())


def execute(step: Step, lock: int) -> str:
    """Runs one step in a process of its own and says why it failed; "" if it did not.

    What it says goes to standard error and its log. It holds `lock` as well, so that nobody takes over its folder
    while it lives. Whatever ends this program ends it too, after a checkpoint.
    """
    write_state(step, None)
    begun, error = time.monotonic(), ""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with (
        (step.folder / LOG).open("a", encoding="utf-8") as log,
        subprocess.Popen(step.command, pass_fds=(lock,), **pipes) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                log.write(line)
                log.flush()
                sys.stderr.write(f"  {line}")
                error = line.removeprefix("error: ").strip() if line.startswith("error: ") else error
        except BaseException:
            child.terminate()
            child.communicate()
            raise
    code = child.returncode
    if code == 0:
        write_state(step, round(time.monotonic() - begun, 1))
        return ""
    if code in (EXIT_STOPPED, -signal.SIGTERM):
        return "stopped by SIGTERM; the same command goes on"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; the same command goes on"
    return error or f"exit code {code}; see {step.folder / LOG}"


def run_all(steps: Sequence[Step], lock: int) -> list[str]:
    """Runs what is not finished, tells how far it is, and gives a line for each step that failed."""
    seconds = [seconds_of(step) for step in steps]
    failed: set[Path | None] = set()
    problems = []
    for number, step in enumerate(steps):
        if seconds[number] is not None:
            continue
        if step.needs in failed:
            failed.add(step.folder)
            problems.append(f"{step.name}: left out, the training that it needs failed")
            continue
        left = time_left([other.program for other in steps], seconds, number)
        print(f"[{number + 1}/{len(steps)}] {step.name}{left}", file=sys.stderr, flush=True)
        problem = execute(step, lock)
        if problem:
            failed.add(step.folder)
            problems.append(f"{step.name}: {problem}")
            print(f"  failed: {problem}", file=sys.stderr, flush=True)
        seconds[number] = seconds_of(step)
    return problems


def time_left(programs: Sequence[str], seconds: Sequence[float | None], now: int) -> str:
    """`, about 12:30 left` from step `now` on, once a step of each kind that is left to do is finished."""
    known: dict[str, list[float]] = {}
    for kind, taken in zip(programs, seconds, strict=True):
        known.setdefault(kind, []).extend([] if taken is None else [taken])
    left = [kind for kind, taken in zip(programs[now:], seconds[now:], strict=True) if taken is None]
    if not all(known[kind] for kind in left):
        return ""
    return f", about {progress.duration(sum(sum(known[kind]) / len(known[kind]) for kind in left))} left"


def read_outcomes(experiment: Experiment, workdir: Path, steps: Sequence[Step]) -> dict[str, Outcome]:
    """What the finished evaluations of each row of the table gave, by its label; rows without any are left out.

    Raises:
      UserError: a file of a finished evaluation that cannot be read; documents that differ between seeds.
    """
    done = {step.folder for step in steps if step.program == "evaluate" and seconds_of(step) is not None}
    outcomes = {}
    for row in spec.rows(experiment):
        measures, documents = {}, set()
        for seed in experiment.seeds:
            folder = evaluation_folder(workdir, row.variant.name, seed, row.evaluation.name)
            if folder not in done:
                continue
            try:
                lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
                records = [json.loads(line) for line in lines]
                source = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["source"]
                measures[seed] = [spec.measures_of(record) for record in records]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{folder}: cannot be read ({error!r}); remove it to do it again") from None
            documents.add(f"{source} {[record['index'] for record in records]}")
        if len(documents) > 1:
            raise UserError(
                f"{row.label}: its seeds were evaluated on different documents; give them one --config.data"
            )
        if measures:
            outcomes[row.label] = Outcome(documents.pop(), measures)
    return outcomes


def draw(lines: Sequence[Line], axis: str, path: Path) -> None:
    """Lines against x where rows have one, else bars."""
    if all(line.row.x is None for line in lines):
        plots.plot_comparison(
            {line.row.label: {n: s.score for n, s in line.statistics.items()} for line in lines}, path
        )
        return
    panels: dict[str, dict[str, dict[progress.Number, tables.Interval]]] = {}
    for line in lines:
        if line.row.x is not None:
            for name, got in line.statistics.items():
                panels.setdefault(name, {}).setdefault(spec.line_of(line.row), {})[line.row.x] = got.score
    plots.plot_lines(panels, axis, path)


def write_table(title: str, experiment: Experiment, workdir: Path, steps: Sequence[Step]) -> str:
    """table.md, table.csv and plot.png of what is finished; gives the Markdown."""
    lines = spec.table_lines(experiment, read_outcomes(experiment, workdir, steps))
    text = spec.markdown(title, lines, [step.name for step in steps if seconds_of(step) is None])
    files.replace_file(workdir / "table.md", text.encode())
    files.replace_file(workdir / "table.csv", spec.csv_text(lines).encode())
    if any(line.statistics for line in lines):
        draw(lines, experiment.axis, workdir / "plot.png")
    return text


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM becomes SystemExit(75), once: what is under way is ended in order."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(EXIT_STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        print("stopped by SIGTERM; the same command goes on", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def alone_in(workdir: Path) -> Iterator[int]:
    """Waits until no other process works in the folder; gives the lock, for children to hold too."""
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process is at work in {workdir}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    base = arguments.base or arguments.experiment
    with _blaming(base):
        config = load(base).get_config()
    changed = cli.override(config, arguments.overrides)
    with _blaming(arguments.experiment):
        experiment: Experiment = load(arguments.experiment).get_experiment(changed)
        experiment = dataclasses.replace(experiment, seeds=arguments.seeds or experiment.seeds)
    wanted = {name.strip() for name in arguments.only.split(",") if name.strip()}
    known = [variant.name for variant in experiment.variants]
    if wanted - set(known):
        raise UserError(f"--only={arguments.only}: the variants are {', '.join(known)}")
    stems = dict.fromkeys(Path(path).stem for path in (arguments.experiment, base))
    title = " on ".join(stems)
    workdir = Path(arguments.workdir or Path("runs") / "-".join(stems))
    steps = plan(experiment, base, config, arguments.overrides, workdir, arguments.split, arguments.limit or 0)
    folders = {run_folder(workdir, name, seed) for name in wanted for seed in experiment.seeds}
    chosen = [step for step in steps if not wanted or step.trained in folders]
    if arguments.dry_run:
        for step in chosen:
            print(f"{'to do' if seconds_of(step) is None else 'done':5} {step.name}\n      {shlex.join(step.command)}")
        return 0
    files.make_folder(workdir, "--workdir")
    problems: list[str] = []
    if not arguments.table:
        with ending_on_sigterm(), alone_in(workdir) as lock:
            problems = run_all(chosen, lock)
    print(write_table(title, experiment, workdir, steps))
    print(f"in {workdir}: table.md, table.csv, plot.png")
    for problem in problems:
        cli.fail(problem)
    return cli.EXIT_ERROR if problems else 0


def seed_list(text: str) -> tuple[int, ...]:
    """`0,1,2`"""
    return tuple(int(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("experiments", __doc__ or "", EXAMPLES)
    parser.add_argument("experiment", help="a file such as configs/experiments/ablation.py")
    parser.add_argument("--base", default="", help="a config of jax_simcas.train in place of the experiment's own")
    parser.add_argument("--workdir", default="", help="default: runs/EXPERIMENT[-BASE]")
    parser.add_argument("--seeds", type=seed_list, help="such as 0,1,2; in place of the experiment's")
    parser.add_argument("--only", default="", metavar="VARIANT,...", help="run these; the table has all that is done")
    parser.add_argument("--split", default="", help="to evaluate, in place of the experiment's")
    parser.add_argument("--limit", type=cli.positive, help="documents of each evaluation")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and which are done")
    parser.add_argument("--table", action="store_true", help="only write the table of what is done")
    arguments = cli.with_overrides(parser, argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
