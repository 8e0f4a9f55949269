"""A progress bar or progress lines on standard error."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from jax_simcas.common.pairs import Number

INTERVAL = 10.0  # seconds between lines: soon enough to see a standstill, and a night fits into some thousand lines

_SHOWN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("loss", lambda x: f"loss {x:.3f}"),
    ("reward", lambda x: f"reward {x:.4g}"),
    ("kept", lambda x: f"kept {100 * x:.1f}%"),
    ("tokens_per_second", lambda x: f"{thousands(x)} tok/s"),
    ("documents_per_second", lambda x: f"{x:.3g} documents/s"),
)


def thousands(x: float) -> str:
    """`950`, `12.3k` or `1.2M`."""
    return f"{x:.0f}" if x < 1000 else f"{x / 1000:.1f}k" if x < 1e6 else f"{x / 1e6:.1f}M"


def duration(seconds: Number) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _columns(stream: Any) -> int:
    """The width of a terminal; 80 where it reports none, as terminals in containers do."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


class Progress:
    """Context manager that shows progress on standard error: a bar on a terminal, else lines.

    Args:
      total, initial: number of `unit`s, and how many of them are done already.
      disable: show nothing, as in all processes but one.
      interval: seconds between lines where there is no terminal; the first one is printed immediately.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        disable: bool = False,
        unit: str = "steps",
        interval: Number = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._done, self._unit = total, initial, unit
        self._interval, self._clock = interval, clock
        self._stream = sys.stderr
        self._terminal = not disable and self._stream.isatty()
        self._lines = not disable and not self._terminal
        self._bar: Any = None
        self._metrics = ""
        self._first: tuple[float, int] | None = None  # time of the first update, which comes after compilation
        self._expected = 0.0  # seconds of other work
        self._printed: tuple[float, int] = (-math.inf, -1)

    def __enter__(self) -> Progress:
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=self._done,
                file=self._stream,
                ncols=_columns(self._stream),
                bar_format="{n_fmt}/{total_fmt} " + self._unit + " |{bar}| {desc}",
            )
        self._print_if_due()
        return self

    def update(self, count: int = 1) -> None:
        """Counts `count` more units as done."""
        self._done += count
        self._first = self._first or (self._clock(), self._done)
        if self._bar is not None:
            self._bar.set_description_str(self._status(self._clock()), refresh=False)
            self._bar.update(count)
        self._print_if_due()

    def leave_out(self, seconds: Number) -> None:
        """Excludes seconds that are no part of a unit, such as a compilation, from the estimate of the time left."""
        if self._first is not None:
            self._first = (self._first[0] + seconds, self._first[1])

    def expect(self, seconds: Number) -> None:
        """Adds seconds of other work that is still to come, such as validations, to the estimate of the time left."""
        self._expected = float(seconds)

    def note(self, text: str, stream: Any = None) -> None:
        """Prints a line above the bar; to `stream`, on a terminal like standard error, where it is given."""
        stream = stream or self._stream
        if self._bar is not None:
            self._bar.write(text, file=stream)
        else:
            print(text, file=stream, flush=True)

    def show(self, metrics: Mapping[str, Number]) -> None:
        """Shows the loss, reward, share kept and tokens per second among these metrics from now on."""
        self._metrics = ", ".join(text(float(metrics[name])) for name, text in _SHOWN if name in metrics)
        if self._bar is not None:
            self._bar.set_description_str(self._status(self._clock()))

    def _print_if_due(self, last: bool = False) -> None:
        printed_at, printed = self._printed
        now = self._clock()
        if self._lines and printed != self._done and (last or now - printed_at >= self._interval):
            self._printed = (now, self._done)
            parts = (f"{self._done}/{self._total} {self._unit}", self._status(now))
            print(", ".join(part for part in parts if part), file=self._stream, flush=True)

    def _status(self, now: float) -> str:
        return ", ".join(part for part in (self._metrics, self._left(now)) if part)

    def _left(self, now: float) -> str:
        if self._first is None or self._done == self._first[1] or self._done >= self._total:
            return ""
        since, before = self._first
        rest = (now - since) * (self._total - self._done) / (self._done - before)
        return f"{duration(rest + self._expected)} left"

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._print_if_due(last=True)
