"""One process of a run that only reads: what `order_check` starts, kills and resumes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.data.batches import FeatureCache, PipelineConfig, make_iterator
from jax_simcas.data.features import Features
from jax_simcas.data.rows import RowSource
from jax_simcas.data.tokenizer import Tokenizer

STDERR = 2
# What is written of each row that is read: when, where in the batch, which, and a checksum of its content.
RECORD = np.dtype([("step", "<i8"), ("place", "<i8"), ("row", "<i8"), ("digest", "<i8")])


class Rows(NamedTuple):
    """What training reads, and how."""

    source: RowSource
    tokenizer: Tokenizer
    config: PipelineConfig
    cache: FeatureCache | None


class Share(NamedTuple):
    """One process's part of an attempt, and what all of its processes share.

    number: of this process, from 0; last: the step to stop after; is_killed: whether to wait there to be killed.
    barrier: all processes have taken the step; start, reached: the step that the attempt began after, and the latest.
    """

    number: int
    processes: int
    folder: Path
    attempt: int
    last: int
    is_killed: bool
    save_every: int
    barrier: Any
    start: Any
    reached: Any

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.attempt}-{self.number}.{kind}"


def places_of(number: int, processes: int, batch_size: int) -> range:
    """The places of each batch that a process reads, as a mesh over documents divides them."""
    share = batch_size // processes
    return range(number * share, (number + 1) * share)


def records(batch: Features, step: int, places: range) -> np.ndarray:
    """A batch's rows as RECORDs; padding does not count, since processes pad to the longest row of their own."""
    out = np.zeros(len(places), RECORD)
    out["step"], out["place"], out["row"] = step, places, batch["row_index"]
    for place in range(len(places)):
        tokens = batch["input_ids"][place][batch["token_mask"][place]]
        target = batch["target_ids"][place][batch["target_mask"][place]]
        out["digest"][place] = zlib.crc32(target.tobytes(), zlib.crc32(tokens.tobytes()))
    return out


def read(rows: Rows, share: Share) -> None:
    """Reads from the newest checkpoint to the last step, all processes in step; process 0 saves, as training does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends all
    with share.file("log").open("wb") as log:  # workers complain when they lose the process that they work for
        os.dup2(log.fileno(), STDERR)
    try:
        _read(rows, share)
    except UserError as error:
        share.file("error").write_text(str(error), encoding="utf-8")
        raise SystemExit(cli.EXIT_ERROR) from None
    if share.is_killed:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()


def _read(rows: Rows, share: Share) -> None:
    checkpoints, state = None, {"step": np.zeros((), np.int32)}
    if share.number == 0:
        jax.config.update("jax_platforms", "cpu")
        cli.prepare_jax()
        checkpoints = Checkpointer(share.folder / "checkpoints")
        restored = checkpoints.restore(jax.tree.map(jax.numpy.asarray, state))
        share.start.value = share.reached.value = 0 if restored is None else restored.step
    share.barrier.wait()
    start = share.start.value
    places = places_of(share.number, share.processes, rows.config.batch_size)
    batches = make_iterator(
        rows.source, rows.tokenizer, rows.config, training=True, start=start, places=places, cache=rows.cache
    )
    with share.file("rows").open("wb", buffering=0) as out:
        for step, batch in enumerate(itertools.islice(batches, share.last - start), start + 1):
            out.write(records(batch, step, places).tobytes())
            share.barrier.wait()
            if checkpoints is None:
                continue
            share.reached.value = step
            if step % share.save_every == 0:
                saved = {"step": jax.numpy.asarray(step, np.int32)}
                checkpoints.save(step, saved, None, {"window": {}, "rows": len(rows.source)})
    if hasattr(batches, "close"):
        batches.close()
    if checkpoints is not None:
        checkpoints.close()
