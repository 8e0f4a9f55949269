"""What training warns of: settings that cannot work well, and figures that show that something is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jax_simcas.common.tables import plural
from jax_simcas.evaluation.report import MANY_UNKNOWN, MANY_WITHOUT_A_PLACE, overflow_line, unknown_line
from jax_simcas.run.config import Settings
from jax_simcas.run.plan import Intervals

MANY_SHAPES = 4  # compiled, where no buckets are set


def on_settings(settings: Settings, steps: int, rate: Callable[[int], float]) -> list[str]:
    """Warnings about a run of so many steps before its first one; `rate` is the optimizer's schedule."""
    optimizer, loop, warmup = settings.optimizer, settings.loop, settings.optimizer.warmup
    warnings = []
    if loop.selector_every and loop.selector_start >= steps:
        warnings.append(
            f"config.loop.selector_start={loop.selector_start}: the selector learns nothing in the "
            f"{plural(steps, 'step')} of this run; lower it, or raise steps"
        )
    if optimizer.schedule != "inverse_sqrt" or warmup is None or warmup <= steps:
        return warnings
    peak = "peak_lr" if optimizer.max_lr is None else "max_lr / sqrt(warmup)"
    return [
        *warnings,
        f"config.optimizer.warmup={warmup} exceeds the {plural(steps, 'step')} of this run: the learning "
        f"rate would peak at {peak} = {float(rate(warmup - 1)):.2g} and ends at "
        f"{float(rate(steps - 1)):.2g}; lower warmup, or raise steps",
    ]


def on_intervals(every: Intervals) -> list[str]:
    """A warning if steps are validated whose checkpoint is not kept, or the other way round."""
    both = math.lcm(every.validate, every.checkpoint)
    if both == max(every.validate, every.checkpoint):
        return []
    return [
        f"config.loop.eval_every={every.validate} and checkpoint_every={every.checkpoint}: the best checkpoint is that "
        f"of a step that is validated too, every {both}th; make one a multiple of the other"
    ]


def on_rate(rate: Callable[[Any], Any], steps: int) -> str:
    """The highest rate of a run of so many steps, where it is, and the rate at the end."""
    rates = jax.vmap(lambda count: jnp.asarray(rate(count), jnp.float32))(jnp.arange(steps))
    highest = int(rates.argmax())
    return (
        f"the learning rate is highest at step {highest + 1:,}, {float(rates[highest]):.2g}, and ends at "
        f"{float(rates[-1]):.2g}"
    )


def on_figures(figures: Mapping[str, float], settings: Settings) -> dict[str, str]:
    """Warnings about the figures of a log line, by the figure that shows it: each is worth giving once."""
    simcas = settings.simcas
    found: dict[str, str] = {}
    cut = (("data/cut_tokens", "documents", "max_input_len"), ("data/cut_target", "targets", "max_target_len"))
    for name, what, limit in cut:
        if share := figures.get(name, 0.0):
            most = f"config.simcas.{limit}={getattr(simcas, limit)}"
            found[name] = f"{_percent(share)} of the {what} are longer than {most} and cut"
    if (share := figures.get("data/unknown", 0.0)) > MANY_UNKNOWN:
        found["data/unknown"] = unknown_line(share)
    if (share := figures.get("selection/overflow", 0.0)) > MANY_WITHOUT_A_PLACE:
        found["selection/overflow"] = overflow_line(share, simcas.capacity)
    return found


def on_shapes(shapes: Collection[tuple[int, int]], settings: Settings) -> str:
    """How to compile less often, where batches of (chunks, target tokens) have come in many shapes; else ""."""
    data = settings.data
    if len(shapes) < MANY_SHAPES or (data.chunk_buckets and data.target_buckets):
        return ""
    fields = [
        f"--config.data.{name}={suggested_buckets(sizes)}"
        for name, sizes, given in (
            ("chunk_buckets", [chunks for chunks, _ in shapes], data.chunk_buckets),
            ("target_buckets", [target for _, target in shapes], data.target_buckets),
        )
        if not given
    ]
    return f"batches have come in {len(shapes)} shapes, and each is compiled; {' '.join(fields)} would give fewer"


def suggested_buckets(sizes: Collection[int]) -> str:
    """The middle and the largest of the sizes seen, as a tuple for a flag."""
    ordered = sorted(set(sizes))
    buckets = sorted({ordered[(len(ordered) - 1) // 2], ordered[-1]})
    return f"({','.join(map(str, buckets))},)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
