"""What steps, validations and compilations of a run have cost so far, and what the rest of it is expected to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from jax_simcas.common.progress import duration, thousands
from jax_simcas.common.tables import plural

# The programs of a run.
TRANSFORMER, SELECTOR, VALIDATION = "transformer's step", "selector's step", "validation"
ALONE = "transformer's step without selection"
FORWARD = 1 / 3  # of a step's seconds per document: the backward pass takes twice as long


class Rest(NamedTuple):
    """What is left of a run; shapes of its batches in all, 0 where that is not known."""

    steps: int
    validations: int
    shapes: int


@dataclass
class Costs:
    """Seconds of each kind of work so far; those of compilations are in no other.

    selector_every: optimizer steps from one in which the selector learns to the next; 0: it never does.
    validation_steps: documents of a validation, as a multiple of those of a step.
    programs: that the run compiles.
    kinds: of its first two steps: whether the selector learns.
    """

    selector_every: int
    validation_steps: float
    programs: tuple[str, ...]
    kinds: frozenset[bool]
    steps: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})  # whether the selector learns
    validations: list[float] = field(default_factory=list)
    compilations: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by program

    @property
    def compiling(self) -> float:
        """Seconds of all compilations."""
        return float(sum(map(sum, self.compilations.values())))

    @property
    def has_step(self) -> bool:
        """Whether steps of the kinds that come first have been timed."""
        return all(self.steps[kind] for kind in self.kinds)

    @property
    def step(self) -> float:
        """Mean seconds of a step, over the turns of the selector as far as they have been timed."""
        plain, learning = self.steps[False], self.steps[True]
        if not (plain and learning):
            return fmean(plain or learning)
        return fmean(plain) + (fmean(learning) - fmean(plain)) / self.selector_every

    @property
    def validation(self) -> float:
        """Mean seconds of a validation, or an estimate from the steps."""
        if self.validations:
            return fmean(self.validations)
        return self.validation_steps * fmean(self.steps[False] or self.steps[True]) * FORWARD

    def left_to_compile(self, shapes: int) -> tuple[int, float]:
        """Programs that are not compiled yet, and the seconds that they may take."""
        known = [second for seconds in self.compilations.values() for second in seconds]
        left = {name: max(shapes - len(self.compilations[name]), 0) for name in self.programs}
        seconds = {name: fmean(self.compilations[name] or known or [0.0]) for name in left}
        return sum(left.values()), sum(left[name] * seconds[name] for name in left)

    def line(self, tokens_per_second: float, rest: Rest) -> str:
        """What one step costs, and what the rest of the run takes."""
        programs, compiling = self.left_to_compile(rest.shapes)
        seconds = rest.steps * self.step + rest.validations * self.validation + compiling
        parts = [plural(rest.steps, "more step"), plural(rest.validations, "validation")]
        if programs:
            parts.append(f"up to {plural(programs, 'compilation')}")
        apart = ", beside the selector's" if self.selector_every and not self.steps[True] else ""
        return (
            f"a step takes {self.step:.2g} s ({thousands(tokens_per_second)} tokens/s); "
            f"{', '.join(parts[:-1])} and {parts[-1]} take about {duration(seconds)}{apart}"
        )


def due(every: int, done: int, steps: int) -> int:
    """How often something is due after step `done` that is due every so many steps and after the last of `steps`."""
    return steps // every - done // every + (steps % every > 0)
