"""Training checkpoints: one folder per step, holding the state and checksummed metadata.

    FOLDER/STEP/state/           the arrays as a nested dict of the state's paths (orbax)
    FOLDER/STEP/meta/metadata    shapes, dtypes, digests, metrics and the caller's meta, with a checksum

Orbax silently restores flipped bytes and casts dtypes. Here everything read is compared with what was written; a
checkpoint that differs is skipped, with a warning, for the next older one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jax_simcas.checkpoints.state_arrays import check_fit, checked_arrays, flatten, read_arrays, to_arrays
from jax_simcas.common import files, trees
from jax_simcas.common.errors import UserError, kind_and_line

Mode = Literal["min", "max"]


class Restored(NamedTuple):
    """What `Checkpointer.restore` found; one warning per folder that was skipped."""

    step: int
    state: Any
    meta: dict[str, Any]
    warnings: tuple[str, ...]


class Saved(NamedTuple):
    """A save that is on disk: how long it stalled the caller, and how long it took in all, in seconds."""

    step: int
    stall_seconds: float
    write_seconds: float


class Checkpointer:
    """The checkpoints of one run: its `keep_latest` newest, and its `keep_best` best by the metric `best`.

    Saving is asynchronous: without `with` or `close` the last save is lost. The state may be donated as soon as
    `save` returns. Every process of a run makes its own Checkpointer and calls the same methods.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best: str = "loss",
        mode: Mode = "min",
        asynchronous: bool = True,
    ):
        if keep_latest < 1 or keep_best < 0 or mode not in ("min", "max"):
            raise ValueError(f"keep_latest={keep_latest} (>= 1), keep_best={keep_best} (>= 0), mode={mode!r}")
        self.folder = _absolute(folder)
        try:
            files.probe_folder(self.folder)
            found = sorted(self.folder.iterdir()) if self.folder.exists() else []  # a bucket has no empty folders
        except OSError as error:
            message = f"checkpoint folder {self.folder}: cannot be written ({_reason(error)}); choose another"
            raise UserError(message) from error
        unfinished = [path for path in found if ".orbax-checkpoint-tmp" in path.name]
        self.warnings = tuple(f"{path}: skipped, its save never finished" for path in unfinished)
        self._best, self._mode, self._keep = best, mode, (keep_latest, keep_best)
        self._costs = {step: _cost(body, best, mode) for step, body in _readable(self.folder).items()}
        self._ours: set[int] = set()  # saved or restored here: saving it again changes nothing
        self._superseded: set[int] = set()  # newer than what was restored: the next save deletes them
        self._pending: int | None = None
        self._begun: tuple[int, float, float] | None = None  # step, start, seconds that `save` took
        self._saved: list[Saved] = []
        self._quiet = _quiet_orbax()
        # Not orbax's BestN and metrics files: one damaged metrics file stops CheckpointManager's constructor.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            lightweight_initialize=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=asynchronous,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except BaseException:
            self._quiet.close()
            raise

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, metrics: dict | None, meta: dict) -> None:
        """Saves arrays and typed keys, metrics (or None), and JSON.

        A step saved or restored before is not written again; it only gets its metrics if it had none.

        Raises:
            UserError: this save or the previous one could not be written, or the step belongs to another run.
        """
        started = time.monotonic()
        self.wait()
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if step in self._ours:
            return self._add_metrics(step, metrics)
        exists = step in self._manager.all_steps()
        if exists and step not in self._superseded:
            where = self.folder / str(step)
            raise UserError(f"{where}: belongs to a run not restored; restore it, or choose another folder")
        arrays, specs = to_arrays(state)
        body = {"arrays": specs, "metrics": metrics, "best": [self._best, self._mode], "meta": meta}
        items = {"state": ocp.args.PyTreeSave(trees.nest(arrays)), "meta": ocp.args.JsonSave(_seal(body))}
        self._pending = step
        with self._save_errors():
            if exists:
                self._manager.delete(step)
            self._superseded.discard(step)
            self._ours.add(step)
            self._costs[step] = _cost(body, self._best, self._mode)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._begun = step, started, time.monotonic() - started

    def restore(self, target_state: Any, step: int | None = None) -> Restored | None:
        """The newest good checkpoint (or `step`) in the target's shapes, dtypes, shardings; None without any.

        Steps newer than the one returned are superseded: the next save deletes them.

        Args:
            target_state: arrays, or ShapeDtypeStructs with shardings.

        Raises:
            UserError: there are checkpoints but no good one, or it does not fit the target, or cannot be read now.
        """
        self.wait()
        self._manager.reload()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps and step is None:
            return None
        target = flatten(target_state)

        def read(folder: epath.Path) -> tuple[dict, dict]:
            with _all_or_none(folder):
                body = _read_body(folder)
                check_fit(folder, target, body)
                arrays = read_arrays(folder, body["arrays"], target)
            return body, checked_arrays(arrays, body["arrays"])

        if step is not None:
            _check_there(self.folder, step, steps)
        candidates = steps if step is None else [step]
        found, (body, arrays), skipped = _first_good(self.folder, candidates, read)
        self._ours, self._superseded = {found}, {newer for newer in steps if newer > found}
        state = jax.tree.unflatten(jax.tree.structure(target_state), [arrays[name] for name in target])
        return Restored(found, state, body["meta"], self.warnings + skipped)

    def latest_step(self) -> int | None:
        """The newest step; None without any."""
        return max(set(self._manager.all_steps()) - self._superseded, default=None)

    def best_step(self) -> int | None:
        """The step with the best metric; None while no step has it."""
        return next(iter(self._by_cost(set(self._manager.all_steps()) - self._superseded)), None)

    def wait(self) -> None:
        """Waits until the current save is on disk.

        Raises:
            UserError: it could not be written.
        """
        with self._save_errors():
            self._manager.wait_until_finished()
        self._pending = None
        if self._begun is not None:
            (step, started, stall), self._begun = self._begun, None
            self._saved.append(Saved(step, stall, time.monotonic() - started))

    def finished(self) -> list[Saved]:
        """The saves that reached the disk since the last call; does not wait for the current one.

        Raises:
            UserError: one could not be written.
        """
        if self._begun is not None and not self._manager.is_saving_in_progress():
            self.wait()
        saved, self._saved = self._saved, []
        return saved

    def close(self) -> None:
        """Waits, and ends orbax's threads.

        Raises:
            UserError: the last save could not be written.
        """
        try:
            self.wait()
        finally:
            with self._quiet, contextlib.suppress(Exception):  # `wait` has reported a failed save
                self._manager.close()

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        """Orbax's preservation policy: which of these checkpoints, in the order they were written, to keep."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        current = [step for step in steps if step not in self._superseded]
        kept = {*current[-self._keep[0] :], *self._by_cost(current)[: self._keep[1]]}
        return [step in kept for step in steps]

    def _by_cost(self, steps: Iterable[int]) -> list[int]:
        known = (step for step in steps if self._costs.get(step, math.inf) < math.inf)
        return sorted(known, key=lambda step: (self._costs[step], -step))

    def _add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self._pending = step
        with self._save_errors():
            body = _read_body(self.folder / str(step))
            if metrics and not body["metrics"]:
                body["metrics"] = metrics
                self._costs[step] = _cost(body, self._best, self._mode)
                new = self.folder / str(step) / "meta" / "metadata.new"
                if jax.process_index() == 0:
                    new.write_text(json.dumps(_seal(body)))
                    new.replace(new.with_name("metadata"))

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Turns a failed save into a UserError that names the last good checkpoint."""
        try:
            yield
        except Exception as error:
            failed, self._pending, self._begun = self._pending, None, None
            if failed is None:
                raise
            self._ours.discard(failed)
            self._costs.pop(failed, None)
            self._manager.reload()
            self._quiet.pop_all()  # for good: pending writes fail and log it until the process ends
            last = self.latest_step()
            kept = "there is none before" if last is None else f"the last good one is {self.folder / str(last)}"
            raise UserError(
                f"checkpoint {self.folder / str(failed)}: could not be written ({_reason(error)}); "
                f"{kept}; make room and run the same command again"
            ) from error


def load_params(
    folder: str | os.PathLike[str], step: Literal["best", "latest"] | int = "best"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state's `params` as nested dicts of numpy arrays, and meta + {"step", "warnings"}; changes nothing.

    A damaged checkpoint is skipped for the next best or next older one; "best" without metrics is "latest".

    Raises:
        UserError: no checkpoint there, none of that step, or no good one.
    """
    root = _absolute(folder)
    steps: list[Any] = sorted(_steps(root), reverse=True)
    if not steps:
        raise UserError(f"{root}: holds no checkpoint; give the folder that training wrote checkpoints to")
    if step == "best":
        costs = {found: _cost(body, *body["best"]) for found, body in _readable(root).items()}
        steps.sort(key=lambda found: costs.get(found, math.inf))
    elif step != "latest":
        _check_there(root, step, steps)
        steps = [step]

    def read(path: epath.Path) -> tuple[dict, dict]:
        body = _read_body(path)
        specs = {name: spec for name, spec in body["arrays"].items() if name.startswith("params/")}
        return trees.nest(checked_arrays(read_arrays(path, specs, {}), specs))["params"], body["meta"]

    with _quiet_orbax():
        found, (params, meta), skipped = _first_good(root, steps, read)
    return params, {**meta, "step": found, "warnings": skipped}


def _check_there(root: epath.Path, step: int, steps: Sequence[int]) -> None:
    if step not in steps:
        raise UserError(f"{root}: no checkpoint of step {step}; there are {', '.join(map(str, sorted(steps)))}")


def _quiet_orbax() -> contextlib.ExitStack:
    """Keeps orbax's warnings and tracebacks from standard error until closed: failures become UserErrors."""

    def shown(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or "orbax" not in record.pathname + record.getMessage()

    def unraisable(late: Any) -> None:  # writes that fail after the first one, which orbax no longer handles
        if str(late.exc_value) != "Event loop is closed":
            usual(late)

    undo = contextlib.ExitStack()
    usual, sys.unraisablehook = sys.unraisablehook, unraisable
    undo.callback(setattr, sys, "unraisablehook", usual)
    for logger in (logging.getLogger("absl"), logging.getLogger("asyncio")):
        logger.addFilter(shown)
        undo.callback(logger.removeFilter, shown)
    return undo


def _absolute(folder: str | os.PathLike[str]) -> epath.Path:
    path = epath.Path(folder).expanduser()
    return path if "://" in str(folder) else epath.Path(os.path.abspath(path))


def _reason(error: Exception) -> str:
    text = kind_and_line(error)
    return text if len(text) < 200 else f"{text[:80]} ... {text[-100:]}"


def _steps(folder: epath.Path) -> list[int]:
    return [found.step for found in ocp.path.step.standard_name_format().find_all(folder)]


def _seal(value: Any) -> dict[str, str]:
    text = json.dumps(value)
    return {"json": text, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def _unseal(sealed: dict[str, str]) -> Any:
    value = json.loads(sealed["json"])
    if _seal(value) != sealed:
        raise ValueError("its metadata is not what was saved")
    return value


def _read_body(folder: epath.Path) -> dict[str, Any]:
    body: dict[str, Any] = _unseal(json.loads((folder / "meta" / "metadata").read_text()))
    best, mode = body["best"]
    sections = all(isinstance(body[name], dict) for name in ("arrays", "metrics", "meta"))
    numbers = sections and all(isinstance(value, int | float) for value in body["metrics"].values())
    if not numbers or not isinstance(best, str) or mode not in ("min", "max"):
        raise ValueError("its metadata is not what a training writes")
    return body


def _readable(root: epath.Path) -> dict[int, dict[str, Any]]:
    bodies = {}
    for step in _steps(root):
        with contextlib.suppress(Exception):  # restoring reports damage
            bodies[step] = _read_body(root / str(step))
    return bodies


def _cost(body: dict[str, Any], best: str, mode: Mode) -> float:
    """The metric, negated where more is better; inf if unknown."""
    value = body["metrics"].get(best, math.nan)
    return math.inf if not math.isfinite(value) else value if mode == "min" else -value


# Messages of tensorstore and jax about a failing disk, network or memory, not about what is stored.
TRANSIENT = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")
DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)  # errnos that point at what is stored


def _is_transient(error: Exception) -> bool:
    """Whether the reason lies outside the checkpoint, which may be good then."""
    if isinstance(error, OSError):
        return error.errno not in DAMAGE
    return isinstance(error, MemoryError) or any(word in str(error) for word in TRANSIENT)


def _not_now(folder: epath.Path, why: str) -> UserError:
    return UserError(
        f"checkpoint {folder}: cannot be read ({why}), and may be good: run the same command again; if it stays so, "
        "move it away to resume from the one before"
    )


@contextlib.contextmanager
def _all_or_none(folder: epath.Path) -> Iterator[None]:
    """What one of several processes cannot read, none of them uses, or they would resume from several steps.

    Raises:
      ValueError: another process finds damage. UserError: another process cannot read it now.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        mine = 0 if failure is None else 2 if isinstance(failure, UserError) or _is_transient(failure) else 1
        all_of_them = multihost_utils.process_allgather(np.array(mine)).reshape(-1)
        worst = int(all_of_them.max())
        if mine < worst:
            why = f"process {int(all_of_them.argmax())} of {jax.process_count()} cannot read it"
            raise _not_now(folder, why) if worst == 2 else ValueError(why)
    if failure is not None:
        raise failure


def _first_good(root: epath.Path, steps: Iterable[int], read: Callable) -> tuple[int, Any, tuple[str, ...]]:
    """(step, result of `read`, warnings about those skipped) of the first checkpoint without damage."""
    skipped: tuple[str, ...] = ()
    for step in steps:
        try:
            return step, read(root / str(step)), skipped
        except UserError:
            raise
        except Exception as error:  # damage makes orbax raise anything, even a bare Exception
            if _is_transient(error):
                raise _not_now(root / str(step), _reason(error)) from None
            skipped += (f"{root / str(step)}: skipped, damaged ({_reason(error)})",)
    raise UserError(
        f"{root}: no good checkpoint ({'; '.join(skipped)}); bring one back, or move the folder away and start over"
    )
