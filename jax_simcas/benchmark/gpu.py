"""The GPU of this machine, as nvidia-smi describes it, and what its data sheet promises."""

from __future__ import annotations

import csv
import subprocess
from typing import NamedTuple

from jax_simcas.common.errors import UserError

# bfloat16 products without sparsity, in FLOP/s, by a part of the card's name; the first that fits counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}
QUERY = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


class Card(NamedTuple):
    """One card; clocks, memory and power with their units."""

    name: str
    driver: str
    memory: str
    clock: str  # of the multiprocessors, now
    highest_clock: str
    memory_clock: str
    power_limit: str

    @property
    def peak(self) -> float | None:
        """FLOP/s of bfloat16 products; None for a card that PEAKS does not have."""
        return next((peak for part, peak in PEAKS.items() if part in self.name), None)


def card() -> Card:
    """The first card.

    Raises:
      UserError: no nvidia-smi, or no card that it knows.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"no GPU: nvidia-smi cannot be run ({error}); give --device cpu") from None
    rows = list(csv.reader(done.stdout.splitlines(), skipinitialspace=True))
    if done.returncode or not rows or len(rows[0]) != len(QUERY):
        message = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"no GPU: nvidia-smi says {message or 'nothing'}; give --device cpu")
    return Card(*rows[0])
