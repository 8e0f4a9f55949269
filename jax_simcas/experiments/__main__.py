"""Runs an experiment: variants of a config times seeds, trained and evaluated, as one table with plots.

The same command resumes where it stopped and repeats nothing that has finished. The folder gets table.md, table.csv,
plot.png, and one folder per variant and seed, each with its log.txt.
exit codes: 0 done; 1 an error (one line on standard error) or failed runs, named at the end; 75 stopped by SIGTERM;
130 Ctrl-C. After 75, 130 and any kill the same command resumes.
"""

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
from jax_simcas.experiments.plan import Command, Plan, errors_of, load, run_folder
from jax_simcas.experiments.spec import Experiment

EXAMPLES = """\
  python -m jax_simcas.experiments configs/experiments/ablation.py
  python -m jax_simcas.experiments configs/experiments/ablation.py --dry-run
  python -m jax_simcas.experiments configs/experiments/policy.py --base=configs/qmsum.py --limit=60 \\
      --config.data.data_dir=DATA --seeds=0,1 --workdir=runs/policy-qmsum
"""


def read_experiment(arguments: Any) -> tuple[str, Any, Experiment]:
    """The base config's path and contents, and the experiment on it with all flags applied."""
    base = arguments.base or arguments.experiment
    with errors_of(base):
        config = load(base).get_config()
    changed = cli.override(config, arguments.overrides)
    with errors_of(arguments.experiment):
        experiment: Experiment = load(arguments.experiment).get_experiment(changed)
        return base, config, dataclasses.replace(experiment, seeds=arguments.seeds or experiment.seeds)


def choose(commands: list[Command], experiment: Experiment, workdir: Path, only: str) -> list[Command]:
    """The commands of the variants named by --only, or all.

    Raises:
      UserError: an unknown variant.
    """
    names = cli.names(only)
    known = [variant.name for variant in experiment.variants]
    if set(names) - set(known):
        raise UserError(f"--only={only}: the variants are {', '.join(known)}")
    folders = {run_folder(workdir, name, seed) for name in names for seed in experiment.seeds}
    return [command for command in commands if not names or command.training in folders]


def print_commands(commands: Sequence[Command]) -> None:
    for command in commands:
        state = "to do" if runner.seconds_of(command) is None else "done"
        print(f"{state:5} {command.name}\n      {shlex.join(command.argv)}")


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    base, config, experiment = read_experiment(arguments)
    stems = dict.fromkeys(Path(path).stem for path in (arguments.experiment, base))
    workdir = Path(arguments.workdir or Path("runs") / "-".join(stems))
    plan = Plan(base, config, workdir, tuple(arguments.overrides), arguments.split, arguments.limit or 0)
    commands = plan.commands(experiment)
    chosen = choose(commands, experiment, workdir, arguments.only)
    if arguments.dry_run:
        print_commands(chosen)
        return 0
    files.make_folder(workdir, "--workdir")
    problems: list[str] = []
    if not arguments.table:
        with runner.exit_on_sigterm(), runner.exclusive(workdir) as lock:
            problems = runner.run_all(chosen, lock)
    print(output.write(" on ".join(stems), experiment, workdir, commands))
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
