"""What training did since the last line of its log: figures and speed."""

from __future__ import annotations

import time

import jax

from jax_simcas.common.pairs import Totals, add_named


class Window:
    """Figures since the last log line; reads the device only when asked, so that steps are not waited for."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._pending: list[dict] = []

    def push(self, figures: dict) -> None:
        self._pending.append(figures)

    def totals(self) -> Totals:
        for figures in jax.device_get(self._pending):
            self._totals = add_named(self._totals, figures)
        self._pending = []
        return self._totals

    def tokens(self) -> float:
        return self.totals().get("tokens", (0.0, 0.0))[0]

    def take(self) -> Totals:
        totals, self._totals = self.totals(), {}
        return totals


class Speed:
    """Tokens per second since it was made or taken; `seen` of the window's tokens came before."""

    def __init__(self, seen: float) -> None:
        self._seen, self._since = seen, time.monotonic()

    def leave_out(self, seconds: float) -> None:
        self._since += seconds

    def take(self, tokens: float) -> float:
        now = time.monotonic()
        speed = (tokens - self._seen) / max(now - self._since, 1e-9)
        self._seen, self._since = 0.0, now
        return speed
