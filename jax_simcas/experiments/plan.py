"""The commands of an experiment: each training before its evaluations, checked before the first one runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.experiments.spec import Evaluation, Experiment, Variant, slug
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import Settings
from jax_simcas.run.config_file import override


class Command(NamedTuple):
    """The training of a variant with a seed, or one evaluation of it; run as a process of its own.

    folder: gets the log, and the state file that says whether the command has finished.
    request: what was asked for, by name; compared when an experiment resumes.
    needs: the training folder that must be finished first: of the model that is evaluated or that training starts from.
    """

    name: str
    program: str
    folder: Path
    flags: tuple[str, ...]
    request: dict[str, Any]
    needs: Path | None = None

    @property
    def training(self) -> Path | None:
        """The folder of the training that it is or evaluates."""
        return self.folder if self.program == "train" else self.needs

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", f"jax_simcas.{self.program}", *self.flags]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs of an experiment share.

    base: the config file; config: its contents; changes: flags for all runs, before a variant's own overrides.
    split, limit: replace those of the evaluations unless empty or 0.
    """

    base: str
    config: Any
    workdir: Path
    changes: tuple[str, ...] = ()
    split: str = ""
    limit: int = 0

    def commands(self, experiment: Experiment) -> list[Command]:
        """Every command, in order: variant by variant, seed by seed, each training before its evaluations.

        Raises:
          UserError: invalid settings, named with their variant.
        """
        commands = []
        for variant in experiment.variants:
            for seed in experiment.seeds:
                settings = self.settings(variant, seed, experiment.evaluations)
                commands.append(self.train(variant, seed, settings))
                commands += [self.evaluate(variant, seed, each, settings) for each in experiment.evaluations]
        return commands

    def training_changes(self, variant: Variant, seed: int) -> tuple[str, ...]:
        """The flags that change the base config for one training."""
        changes = (*self.changes, *as_flags(variant.overrides), f"--config.loop.seed={seed}")
        if not variant.start:
            return changes
        return (*changes, f"--config.pretrained={run_folder(self.workdir, variant.start, seed)}")

    def settings(self, variant: Variant, seed: int, evaluations: Sequence[Evaluation]) -> Settings:
        """The settings of one training, checked together with those of its evaluations.

        Raises:
          UserError: they are invalid.
        """
        try:
            settings = settings_with(self.config, self.training_changes(variant, seed))
            for evaluation in evaluations:
                settings_with(config_lib.to_config(settings), as_flags(evaluation.overrides))
        except UserError as error:
            raise UserError(f"variant {variant.name!r}: {error}") from None
        return settings

    def train(self, variant: Variant, seed: int, settings: Settings) -> Command:
        folder = run_folder(self.workdir, variant.name, seed)
        flags = (f"--config={self.base}", f"--workdir={folder}", *self.training_changes(variant, seed))
        request = flatten(settings)
        if not variant.start:
            return Command(f"{variant.name}, seed {seed}: training", "train", folder, flags, request)
        request["pretrained"] = f"variant {variant.start}"
        needs = run_folder(self.workdir, variant.start, seed)
        return Command(f"{variant.name}, seed {seed}: training", "train", folder, flags, request, needs)

    def evaluate(self, variant: Variant, seed: int, evaluation: Evaluation, settings: Settings) -> Command:
        folder = run_folder(self.workdir, variant.name, seed)
        output = evaluation_folder(self.workdir, variant.name, seed, evaluation.name)
        choices = {
            "split": self.split or evaluation.split,
            "policy": evaluation.policy,
            "limit": self.limit or evaluation.limit or "",
        }
        overrides = as_flags(evaluation.overrides)
        flags = [f"--workdir={folder}", f"--output={output}"]
        flags += [f"--{flag}={value}" for flag, value in choices.items() if value]
        flags += [f"--data-dir={settings.data.data_dir}"] if settings.data.data_dir else []
        return Command(
            f"{variant.name}, seed {seed}: evaluation {evaluation.name}".rstrip(),
            "evaluate",
            output,
            (*flags, *overrides),
            choices | {"overrides": " ".join(overrides)},
            folder,
        )


def settings_with(config: Any, flags: Sequence[str]) -> Settings:
    """The checked settings of a config changed by flags of the form --config.FIELD=VALUE."""
    return config_lib.from_config(override(config, cli.split_changes(flags)[1]))


def as_flags(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """{"simcas.align": "none"} -> ("--config.simcas.align=none",)."""
    return tuple(f"--config.{name}={value}" for name, value in overrides.items())


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dataclasses as {"simcas.align": "mean", ...}, in JSON's types."""
    if not dataclasses.is_dataclass(value):
        return {name[1:]: list(value) if isinstance(value, tuple) else value}
    fields = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
    return {key: leaf for field, inner in fields for key, leaf in flatten(inner, f"{name}.{field}").items()}


def run_folder(workdir: Path, variant: str, seed: int) -> Path:
    return workdir / slug(variant) / f"seed-{seed}"


def evaluation_folder(workdir: Path, variant: str, seed: int, evaluation: str) -> Path:
    return run_folder(workdir, variant, seed) / "evaluation" / (slug(evaluation) or "default")
