"""What the fields of a dataclass may be, for its `__post_init__`: each raises ValueError that begins with the field."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

LARGEST = 2**31 - 1  # what 32 bits hold, on the device
MOST_LAYERS = 1_000  # of a stack: each is described on its own before its weights are read
LARGEST_SEED = 2**32 - 1  # that jax, numpy and grain take alike


def at_least(config: Any, least: int | float, *names: str, most: int | float | None = None) -> None:
    """Each of these fields is a finite number from `least` to `most`, or None; whole ones fit into 32 bits."""
    for name in names:
        value = getattr(config, name)
        bound = most if most is not None else LARGEST if isinstance(value, int) else math.inf
        if value is not None and not (math.isfinite(value) and least <= value <= bound):
            limit = f"at least {least:g}" if value < least or bound == math.inf else f"at most {bound:.0f}"
            raise ValueError(f"{name}={value!r}: expected {limit if most is None else f'{least:g} to {most:.0f}'}")


def above(config: Any, bound: int | float, *names: str) -> None:
    """Each of these fields is a finite number above `bound`, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > bound):
            raise ValueError(f"{name}={value!r}: expected more than {bound:g}")


def below_one(config: Any, *names: str) -> None:
    """Each of these fields is from 0 to less than 1, as rates are."""
    for name in names:
        value = getattr(config, name)
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value!r}: expected 0 <= {name} < 1")


def one_of(config: Any, name: str, allowed: Collection[Any]) -> None:
    """The field is one of these."""
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(str, allowed))}")
