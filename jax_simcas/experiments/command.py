"""Reading an experiment and running what of it was asked for: what `jax_simcas.experiments` runs."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.experiments import output, runner
from jax_simcas.experiments.plan import Command, Plan, run_folder
from jax_simcas.experiments.spec import Experiment
from jax_simcas.run.config_file import EXPERIMENTS, errors_of, find_config, folder, load_module, override, read_config


def read_experiment(arguments: Any) -> tuple[str, Any, Experiment]:
    """The base config's name and contents, and the experiment on it with all flags applied.

    Raises:
      UserError: a file that is missing or cannot be run, or that is something else.
    """
    ours = folder() / EXPERIMENTS
    path = find_config(arguments.experiment, "EXPERIMENT", ours)
    base = arguments.base or str(path)
    config = read_config(base, "--base") if arguments.base else read_config(arguments.experiment, "EXPERIMENT", ours)
    module = load_module(path)
    if not hasattr(module, "get_experiment"):
        raise UserError(f"{path}: no function get_experiment(config); is it a config of jax_simcas.train? Give --base")
    changed = override(config, arguments.changes)
    with errors_of(path):
        experiment = module.get_experiment(changed)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: get_experiment() returned {type(experiment).__name__}, expected an Experiment")
    return base, config, dataclasses.replace(experiment, seeds=arguments.seeds or experiment.seeds)


def choose(commands: list[Command], experiment: Experiment, workdir: Path, names: list[str]) -> list[Command]:
    """The commands of the variants named by --only, or all.

    Raises:
      UserError: an unknown variant.
    """
    known = [variant.name for variant in experiment.variants]
    if set(names) - set(known):
        raise UserError(f"--only={','.join(names)}: the variants are {', '.join(known)}")
    folders = {run_folder(workdir, name, seed) for name in names for seed in experiment.seeds}
    return [command for command in commands if not names or command.training in folders]


def print_commands(commands: Sequence[Command]) -> None:
    for command in commands:
        state = "to do" if runner.seconds_of(command) is None else "done"
        print(f"{state:5} {command.name}\n      {shlex.join(command.argv)}")


def check_some_finished(commands: Sequence[Command], workdir: Path) -> None:
    """Raises UserError if there is nothing to make a table of."""
    if not any(command.program == "evaluate" and runner.seconds_of(command) is not None for command in commands):
        raise UserError(
            f"--table: no evaluation of this experiment has finished in {workdir}; "
            "give the --workdir of one that has, or run it without --table"
        )


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    base, config, experiment = read_experiment(arguments)
    stems = dict.fromkeys(Path(path).stem for path in (arguments.experiment, base))
    workdir = Path(arguments.workdir or Path("runs") / "-".join(stems))
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: a file; give a folder")
    changes = tuple(f"--config.{name}={value}" for name, value in arguments.changes)
    plan = Plan(base, config, workdir, changes, arguments.split or "", arguments.limit or 0)
    commands = plan.commands(experiment)
    chosen = choose(commands, experiment, workdir, arguments.only)
    if arguments.dry_run:
        print_commands(chosen)
        return 0
    for warning in runner.moved_data(commands):
        print(warning, file=sys.stderr)
    problems: list[str] = []
    if arguments.table:
        check_some_finished(commands, workdir)
    else:
        files.make_folder(workdir, "--workdir")
        with runner.exit_on_sigterm(), runner.exclusive(workdir) as lock:
            problems = runner.run_all(chosen, lock)
    text, written = output.write_outputs(" on ".join(stems), experiment, workdir, commands)
    print(text)
    print(f"in {workdir}: {', '.join(written)}")
    for problem in problems:
        cli.fail(problem)
    return cli.EXIT_ERROR if problems else 0
