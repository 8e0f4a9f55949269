"""Bootstrap intervals of means over documents, of paired differences and of pooled (sum, count) pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jax_simcas.common.pairs import Number, Pair

Values = Sequence[Number] | np.ndarray

_BLOCK = 1 << 20  # elements of one block of resamples: 8 MiB


class Score(NamedTuple):
    """A mean over `count` documents and its bootstrap interval; low and high are NaN below two documents."""

    mean: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # shadows tuple.count, which is not used


class Difference(NamedTuple):
    """mean(a) - mean(b) over the same documents, its bootstrap interval, and its two-sided p."""

    mean: float
    low: float
    high: float
    p: float
    count: int  # type: ignore[assignment]

    @property
    def score(self) -> Score:
        """The difference without its p."""
        return Score(self.mean, self.low, self.high, self.count)


def _resampled_sums(table: Float[np.ndarray, "n m"], seed: int, samples: int) -> Float[np.ndarray, "s m"]:
    """Column sums of `samples` tables of n rows drawn from `table` with replacement."""
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least 1")
    n, m = table.shape
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // (n * m))
    rows = (table[rng.integers(0, n, (min(block, samples - i), n))].sum(axis=1) for i in range(0, samples, block))
    return np.concatenate(list(rows))


def _interval(estimates: Float[np.ndarray, " s"], point: float, level: float) -> tuple[float, float]:
    """The central `level` of the defined estimates; always contains the point estimate."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level}: expected 0 < level < 1")
    ordered = np.sort(estimates[~np.isnan(estimates)])
    if not ordered.size:
        return math.nan, math.nan
    # Order statistics without interpolation, so that an infinite ratio stays one.
    cut = int((1.0 - level) / 2.0 * (ordered.size - 1))
    return min(float(ordered[cut]), point), max(float(ordered[-1 - cut]), point)


def _finite(values: Values, name: str) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers [n], got shape {list(array.shape)}")
    return array


def paired_difference(a: Values, b: Values, *, seed: int, samples: int = 2000, level: float = 0.95) -> Difference:
    """Compares two systems on the same documents: a[i] and b[i] are scores of document i, resampled together.

    p = min(1, 2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (1 + samples)) over resampled mean differences d*.

    Raises:
      ValueError: lengths that differ, values that are not finite.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.size != second.size:
        raise ValueError(f"a has {first.size} values, b has {second.size}: expected the same documents")
    n = first.size
    gap = first - second
    point = float(gap.mean()) if n else math.nan
    if n < 2:
        return Difference(point, math.nan, math.nan, math.nan, n)
    drawn = _resampled_sums(gap[:, None], seed, samples)[:, 0] / n
    tail = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(point, *_interval(drawn, point, level), min(1.0, 2 * tail / (1 + samples)), n)


def pool_scores(
    rows: Sequence[Mapping[str, Pair]],
    seed: int = 0,
    *,
    ratios: Mapping[str, tuple[str, str]] | None = None,
    differences: Mapping[str, tuple[str, str]] | None = None,
    samples: int = 2000,
    level: float = 0.95,
) -> dict[str, Score]:
    """sum of sums / sum of counts over documents, with intervals from resampling whole documents.

    Args:
      rows: the (sum, count) pairs of each document; a missing name is (0, 0).
      ratios: name -> (over, under): adds the quotient of two of the pooled means.
      differences: name -> (a, b): adds a - b, over the same resampled documents for both.

    Raises:
      ValueError: samples < 1; level outside (0, 1); a ratio or difference of a name that no row has.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return {}
    table = np.array([[row.get(name, (0.0, 0.0)) for name in names] for row in rows], np.float64)
    drawn = _resampled_sums(table.reshape(len(rows), -1), seed, samples).reshape(-1, len(names), 2)
    total, counted = table.sum(axis=0), table[..., 1] > 0

    def score(point: Any, estimates: np.ndarray, documents: np.ndarray) -> Score:
        count = int(documents.sum())
        low, high = _interval(estimates, float(point), level) if count > 1 else (math.nan, math.nan)
        return Score(float(point), low, high, count)

    with np.errstate(divide="ignore", invalid="ignore"):
        point, estimates = total[:, 0] / total[:, 1], drawn[..., 0] / drawn[..., 1]
        out = {name: score(point[i], estimates[:, i], counted[:, i]) for i, name in enumerate(names)}
        for combine, wanted in ((np.divide, ratios), (np.subtract, differences)):
            for name, (a, b) in (wanted or {}).items():
                i, j = names.index(a), names.index(b)
                both = counted[:, i] & counted[:, j]
                out[name] = score(combine(point[i], point[j]), combine(estimates[:, i], estimates[:, j]), both)
    return out


def summarize_scores(
    rows: Sequence[Mapping[str, Number]], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> dict[str, Score]:
    """Mean and bootstrap interval of every score over documents; rows where it is missing or NaN do not count."""
    pairs = [{k: (v, 1.0) if not math.isnan(v) else (0.0, 0.0) for k, v in row.items()} for row in rows]
    return pool_scores(pairs, seed, samples=samples, level=level)
