"""Optimizers of the transformer and the selector, as optax values; a config names a schedule and an algorithm."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

# (max_lr, warmup steps, steps of the whole run) -> optax.Schedule; all in optimizer steps.
MakeSchedule = Callable[[float, int, int], optax.Schedule]
# schedule -> optax.GradientTransformation
Algorithm = Callable[[optax.Schedule], optax.GradientTransformation]


def inverse_sqrt(max_lr: float, warmup: int, steps: int = 0) -> optax.Schedule:
    """max_lr * min(s^-0.5, s * warmup^-1.5) at optimizer step s = 1, 2, ...; it peaks at max_lr / sqrt(warmup).

    Source: docs/method.md, "Dual update". `steps` makes no difference.
    """

    def schedule(count: Array | int) -> Array:
        s = jnp.asarray(count, jnp.float32) + 1.0
        return max_lr * jnp.minimum(s**-0.5, s * warmup**-1.5)

    return schedule


def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam(0.9, 0.999, 1e-8)."""
    return optax.adam(schedule)


def factor_of_inverse_sqrt(peak_lr: float, warmup: int) -> float:
    """The `max_lr` with which `inverse_sqrt` peaks at `peak_lr`."""
    return peak_lr * warmup**0.5


SCHEDULES: dict[str, MakeSchedule] = {"inverse_sqrt": inverse_sqrt}
# The max_lr with which a schedule of ours peaks at a rate, where that is another number: (rate, warmup) -> max_lr.
FACTORS: dict[str, Callable[[float, int], float]] = {"inverse_sqrt": factor_of_inverse_sqrt}
ALGORITHMS: dict[str, Algorithm] = {"adam": adam}


def accumulated(
    algorithm: optax.GradientTransformation, accumulate_step: int = 1, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """`algorithm` on the mean gradient of `accumulate_step` batches, optionally clipped to a global norm."""
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    optimizer = optax.chain(*clip, algorithm)
    if accumulate_step == 1:
        return optimizer
    return optax.MultiSteps(optimizer, accumulate_step).gradient_transformation()
