"""The metric log of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from numbers import Real
from pathlib import Path
from typing import Any

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import PathLike, json_ready, replace_file, writing

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; unreadable ones, such as the last line of a killed run, are skipped.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected what training wrote") from None
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str):
            rows.append(row)
    return rows


def with_kept(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with `kept`, the share of the candidates that the decoder sees: what was chosen and found a place."""
    chosen, overflow = figures.get("selection/kept"), figures.get("selection/overflow")
    if "kept" in figures or not isinstance(chosen, Real):
        return dict(figures)
    share = float(overflow) if isinstance(overflow, Real) and chosen else 0.0
    return {**figures, "kept": float(chosen) * (1 - share)}


class MetricsWriter:
    """Context manager that appends metrics to `workdir`/metrics.jsonl and `workdir`/tensorboard.

    Each line is `{"step": 20, "split": "train", "loss": 3.1, ...}`, with null for numbers that are not finite, and is
    on disk when `write` returns.

    Args:
      resume_step: lines of later steps are removed, so that a killed and resumed run has none twice; None keeps all.

    Raises:
      UserError: a file cannot be written.
    """

    def __init__(self, workdir: PathLike, resume_step: int | None = None) -> None:
        self._path = Path(workdir) / METRICS
        self._folder = Path(workdir) / TENSORBOARD
        self._resume_step = resume_step

    def __enter__(self) -> MetricsWriter:
        # Imported here because tensorboardX imports PyTorch if it is installed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with writing(self._path), ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_later_lines()
            # Not SummaryWriter: its thread dies silently when the disk is full, and then training hangs.
            # The suffix distinguishes two runs that start within one second.
            events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            self._events = stack.enter_context(closing(events))
            if self._resume_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(wall_time=time.time(), step=self._resume_step + 1, session_log=start))
            self._events.flush()
            self._file = stack.enter_context(self._path.open("ab", buffering=0))
            self._open = stack.pop_all()
        return self

    def _drop_later_lines(self) -> None:
        if not self._path.exists():
            return
        last = math.inf if self._resume_step is None else self._resume_step
        lines = [json.dumps(row) + "\n" for row in read_metrics(self._path) if row["step"] <= last]
        replace_file(self._path, "".join(lines).encode())

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes one line of Python or array scalars.

        Raises:
          ValueError: a metric is called "step" or "split".
          UserError: it cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if not values.keys().isdisjoint(("step", "split")):
            raise ValueError(f"values has {', '.join(values)}: expected none of step, split")
        numbers = {name: float(value) for name, value in values.items()}
        scalars = [
            Summary.Value(tag=f"{split}/{name}", simple_value=value)
            for name, value in numbers.items()
            if math.isfinite(value)
        ]
        with writing(self._path):
            self._append(json.dumps({"step": int(step), "split": split} | json_ready(numbers)) + "\n")
            self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=Summary(value=scalars)))
            self._events.flush()

    def _append(self, line: str) -> None:
        """Writes a whole line or, where the disk is full, none of it."""
        content, end = line.encode(), self._file.seek(0, os.SEEK_END)
        if self._file.write(content) < len(content):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with writing(self._path):
                self._open.close()
        except UserError:
            if kind is None:  # otherwise the first error is the one to report
                raise
