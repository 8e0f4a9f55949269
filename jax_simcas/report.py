"""What a run tells: figures in metrics.jsonl and TensorBoard, tables, and a progress line; `plots` draws.

Nothing here knows where files belong: every path is given by the program.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from jax_simcas.errors import UserError

PathLike = str | os.PathLike[str]
Number = float | int
Interval = tuple[float, float, float, int]  # (mean, low, high, count), such as a `metrics.Score`
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


@contextmanager
def _writing(path: PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "give a folder on a disk with space that you may write to"
        ) from None


def replace_file(path: Path, content: bytes) -> None:
    """Writes a whole file or none: what is killed half way leaves the old one."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # half of it may fill the rest of a full disk


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinities, which JSON lacks, as None; in dicts, lists and tuples as well."""
    if isinstance(value, Mapping):
        return {name: json_ready(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Figures to files


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; unreadable ones (the last of a killed run) are passed over.

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
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str):
            rows.append(row)
    return rows


class MetricsWriter:
    """Context manager that appends figures to `workdir`/metrics.jsonl and `workdir`/tensorboard.

    A line is `{"step": 20, "split": "train", "loss": 3.1, ...}`, null where a figure is not finite, on disk
    when `write` returns.

    Args:
      resume_step: figures of later steps are taken back, so that a killed and resumed run has none twice;
        None keeps all.

    Raises:
      UserError: something cannot be written.
    """

    def __init__(self, workdir: PathLike, resume_step: int | None = None) -> None:
        self._path = Path(workdir) / METRICS
        self._folder = Path(workdir) / TENSORBOARD
        self._resume_step = resume_step

    def __enter__(self) -> MetricsWriter:
        # Here and not above: tensorboardX imports PyTorch where there is one.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with _writing(self._path), ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take_back()
            # Not SummaryWriter: its thread dies silently when a disk is full, and training then hangs.
            # The suffix keeps apart two runs that start in one second.
            events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            self._events = stack.enter_context(closing(events))
            if self._resume_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(wall_time=time.time(), step=self._resume_step + 1, session_log=start))
            self._events.flush()
            self._file = stack.enter_context(self._path.open("a", encoding="utf-8"))
            self._open = stack.pop_all()
        return self

    def _take_back(self) -> None:
        if not self._path.exists():
            return
        last = math.inf if self._resume_step is None else self._resume_step
        lines = [json.dumps(row) + "\n" for row in read_metrics(self._path) if row["step"] <= last]
        replace_file(self._path, "".join(lines).encode())

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes one line of figures, Python or array scalars.

        Raises:
          ValueError: a figure is called "step" or "split".
          UserError: it cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if not values.keys().isdisjoint(("step", "split")):
            raise ValueError(f"values has {', '.join(values)}: expected none of step, split")
        figures = {name: float(value) for name, value in values.items()}
        scalars = [
            Summary.Value(tag=f"{split}/{name}", simple_value=value)
            for name, value in figures.items()
            if math.isfinite(value)
        ]
        with _writing(self._path):
            self._file.write(json.dumps({"step": int(step), "split": split} | json_ready(figures)) + "\n")
            self._file.flush()
            self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=Summary(value=scalars)))
            self._events.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with _writing(self._path):
                self._open.close()
        except UserError:
            if kind is None:  # otherwise what went wrong first is what to tell
                raise


# Tables


def format_score(score: Interval, digits: int = 1) -> str:
    """`12.3 [11.0, 13.5]`; only the mean where there is no interval, a dash where there is nothing."""
    point, low, high = (f"{value:.{digits}f}" for value in score[:3])
    if math.isnan(score[0]):
        return "–"
    return point if math.isnan(score[1]) else f"{point} [{low}, {high}]"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, tuple):
        return format_score(value)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table that also reads well as plain text; the first column to the left, others to the right.

    Cells may be text, numbers or (mean, low, high, count); None, NaN and missing ones are dashes.
    """
    cells = [[_cell(name) for name in columns]] + [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]

    def line(texts: Sequence[str]) -> str:
        first = texts[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(texts[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


# Progress

_SHOWN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("loss", lambda x: f"loss {x:.3f}"),
    ("reward", lambda x: f"reward {x:.4g}"),
    ("selection/kept", lambda x: f"kept {100 * x:.1f}%"),
    ("tokens_per_second", lambda x: f"{_thousands(x)} tok/s"),
)


def _thousands(x: float) -> str:
    return f"{x:.0f}" if x < 1000 else f"{x / 1000:.1f}k" if x < 1e6 else f"{x / 1e6:.1f}M"


def duration(seconds: Number) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _columns(stream: Any) -> int:
    """The width of a terminal; 80 where it claims none, as terminals in containers do."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


class Progress:
    """Context manager that tells standard error how far a program is: a bar on a terminal, else lines.

    Args:
      total, initial: how many `unit`s there are, and how many were done before.
      disable: show nothing; for all processes but one.
      interval: seconds between lines, where there is no terminal; the first comes at once.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        disable: bool = False,
        unit: str = "steps",
        interval: Number = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._done, self._unit = total, initial, unit
        self._interval, self._clock = interval, clock
        self._stream = sys.stderr
        self._terminal = not disable and self._stream.isatty()
        self._lines = not disable and not self._terminal
        self._bar: Any = None
        self._figures = ""
        self._first: tuple[float, int] | None = None  # when the first update came, which had compilation before it
        self._printed: tuple[float, int] = (-math.inf, -1)

    def __enter__(self) -> Progress:
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=self._done,
                file=self._stream,
                ncols=_columns(self._stream),
                bar_format="{n_fmt}/{total_fmt} " + self._unit + " |{bar}| {remaining} left{postfix}",
            )
        self._print_if_due()
        return self

    def update(self, count: int = 1) -> None:
        """Counts what was done since the last call."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        self._first = self._first or (self._clock(), self._done)
        self._print_if_due()

    def show(self, figures: Mapping[str, Number]) -> None:
        """Shows loss, reward, share kept and tokens a second, those there are, from now on."""
        self._figures = ", ".join(text(float(figures[name])) for name, text in _SHOWN if name in figures)
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures)

    def _print_if_due(self, last: bool = False) -> None:
        when, what = self._printed
        now = self._clock()
        if self._lines and what != self._done and (last or now - when >= self._interval):
            self._printed = (now, self._done)
            parts = [f"{self._done}/{self._total} {self._unit}", self._figures, self._left(now)]
            print(", ".join(part for part in parts if part), file=self._stream, flush=True)

    def _left(self, now: float) -> str:
        if self._first is None or self._done == self._first[1] or self._done >= self._total:
            return ""
        since, before = self._first
        return f"{duration((now - since) * (self._total - self._done) / (self._done - before))} left"

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._print_if_due(last=True)
