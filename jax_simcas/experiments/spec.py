"""What an experiment is: variants times seeds, each evaluated in every way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax_simcas.common.pairs import Number


@dataclass(frozen=True)
class Variant:
    """One way to train: `overrides` are fields of the config.

    start: the variant, named before this one, from whose trained model of the same seed training starts.
    line, x: to which line of a plot it belongs, and where on its axis; without any x there are bars.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    line: str = ""
    x: Number | None = None


@dataclass(frozen=True)
class Evaluation:
    """One way to evaluate a trained run: as jax_simcas.evaluate does with these flags and overrides of the config."""

    name: str = ""
    policy: str = ""
    split: str = ""
    limit: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    x: Number | None = None


@dataclass(frozen=True)
class Experiment:
    """Every variant is trained with every seed and evaluated in every way.

    Compared with: the first cell with the same documents; where several lines are drawn against x, the first line's
    cell at the same x.

    measures: which to show: names of scores, "nll", "kept %", "evidence recall %", "others kept %", "evidence precision
      %", "evidence attended %", "times as likely"; empty: all.
    axis: what x counts.
    """

    variants: tuple[Variant, ...]
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    seeds: tuple[int, ...] = (0, 1, 2)
    measures: tuple[str, ...] = ()
    axis: str = ""

    def __post_init__(self) -> None:
        for what in ("variants", "evaluations", "seeds"):
            names = [getattr(item, "name", item) for item in getattr(self, what)]
            if not names:
                raise ValueError(f"{what}: expected at least one")
            places = [slug(str(name)) for name in names]
            if len(set(places)) < len(places):
                raise ValueError(f"{what}={', '.join(map(str, names))}: expected names that differ as names of folders")
            if what == "variants" and any("," in name or not slug(name) for name in names):
                raise ValueError(f"variants={names}: expected names with letters or digits, and without commas")
        for place, variant in enumerate(self.variants):
            before = [other.name for other in self.variants[:place]]
            if variant.start and variant.start not in before:
                raise ValueError(f"variant {variant.name!r}: start={variant.start!r}, expected one of {before}")


def slug(name: str) -> str:
    """The name as a folder has it."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.").lower()


class Cell(NamedTuple):
    """A variant evaluated in one way: one row of the table, over all seeds."""

    variant: Variant
    evaluation: Evaluation
    label: str
    x: Number | None

    @property
    def line(self) -> str:
        """The line of a plot that it is a point of."""
        return self.variant.line or self.variant.name


def cells(experiment: Experiment) -> list[Cell]:
    """All cells in order, labelled by what distinguishes them."""

    def cell(variant: Variant, evaluation: Evaluation) -> Cell:
        parts = [variant.name] if len(experiment.variants) > 1 or not evaluation.name else []
        parts += [evaluation.name] if evaluation.name else []
        return Cell(variant, evaluation, ", ".join(parts), variant.x if evaluation.x is None else evaluation.x)

    return [cell(variant, evaluation) for variant in experiment.variants for evaluation in experiment.evaluations]
