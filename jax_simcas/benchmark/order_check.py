"""A killed and resumed run beside an undisturbed one: what `jax_simcas.benchmark.data_order` runs."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

from jax_simcas.benchmark.order_reader import RECORD, Rows, Share, read
from jax_simcas.common import cli
from jax_simcas.common.errors import FlagError, UserError, first_of
from jax_simcas.common.tables import markdown_table, plural
from jax_simcas.data import cache as cache_lib
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.rows import Fields
from jax_simcas.data.text_files import JsonlSource
from jax_simcas.data.tokenizer import SPECIALS, LightTokenizer, frame_of

WORDS = tuple(f"word{i}" for i in range(1_000))
LONGEST = 40  # words of a document
PIPELINE = PipelineConfig(chunk_length=8, max_input_len=64, max_target_len=8, draw_answer=True)
DELAY = 0.3  # seconds at most from the step at which a kill is due to the kill
EARLY = 0.2  # share of the kills that come before or in the first steps of an attempt
POLL = 0.002


class Attempt(NamedTuple):
    """Processes that read until they are killed, `delay` seconds after they have taken step `kill_at`; None: never."""

    processes: int
    workers: int
    kill_at: int | None = None
    delay: float = 0.0


class Reading(NamedTuple):
    """What the processes of an attempt read: the step that it began after, and RECORDs in any order."""

    start: int
    records: np.ndarray


class Found(NamedTuple):
    """What a run read beside the undisturbed one.

    missing, twice: rows, summed over epochs; differing: steps whose batch another one read otherwise, or not once.
    again: steps that were read and then read again.
    """

    missing: int
    twice: int
    differing: list[int]
    again: int


def planned(
    kills: int, steps: int, processes: Sequence[int], workers: Sequence[int], rng: random.Random
) -> list[Attempt]:
    """Kills at random steps, and one attempt that ends; neighbours differ in processes where there is a choice."""
    attempts, before = [], 0
    for moment in [*sorted(rng.randrange(steps) for _ in range(kills)), None]:
        before = rng.choice([count for count in processes if count != before] or list(processes))
        kill_at = 0 if moment is not None and rng.random() < EARLY else moment
        attempts.append(Attempt(before, rng.choice(workers), kill_at, rng.uniform(0, DELAY)))
    return attempts


def as_table(records: np.ndarray, steps: int, size: int, field: str) -> Int[np.ndarray, "steps size"]:
    """A field of RECORDs by step and place; -1 where nothing was read."""
    table = np.full((steps, size), -1, np.int64)
    table[records["step"] - 1, records["place"]] = records[field]
    return table


def epoch_counts(table: Int[np.ndarray, "steps size"], rows: int, epochs: int) -> Int[np.ndarray, "epochs rows"]:
    """How often each row was read in each epoch."""
    order = table.ravel()[: rows * epochs].reshape(epochs, rows)
    return np.stack([np.bincount(epoch[epoch >= 0], minlength=rows) for epoch in order])


def compared(undisturbed: np.ndarray, readings: Sequence[Reading], rows: int, epochs: int, size: int) -> Found:
    """What readings, each of which resumes the one before, make of `epochs` passes over `rows` in batches of `size`.

    Of a reading counts what stands before the start of the next. What is read again has to be the same as well.
    """
    steps = -(-rows * epochs // size)
    expected = {field: as_table(undisturbed, steps, size, field) for field in ("row", "digest")}
    times = np.zeros((steps, size), np.int64)
    read_rows = np.full((steps, size), -1, np.int64)
    wrong, taken = np.zeros(steps, bool), 0
    for start, records in readings:
        times[start:], read_rows[start:] = 0, -1
        at = records["step"] - 1, records["place"]
        np.add.at(times, at, 1)
        read_rows[at] = records["row"]
        for field, table in expected.items():
            wrong[at[0][table[at] != records[field]]] = True
        taken += len(np.unique(records["step"]))
    wrong |= (times != 1).any(axis=1)
    counts = epoch_counts(read_rows, rows, epochs)
    missing, twice = int((counts == 0).sum()), int((counts > 1).sum())
    return Found(missing, twice, (np.flatnonzero(wrong) + 1).tolist(), taken - steps)


def words() -> LightTokenizer:
    """A tokenizer with a token per word, without the seconds that transformers takes to load."""
    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *WORDS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    light = LightTokenizer(backend, vocabulary["<s>"], vocabulary["</s>"], vocabulary["<pad>"])
    return dataclasses.replace(light, frame=frame_of(light))


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Documents of 1 to LONGEST random words with two summaries each, of which training draws one."""
    rng, words = np.random.default_rng(seed), np.array(WORDS)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            drawn = words[rng.integers(len(words), size=int(rng.integers(1, LONGEST + 1)) + 6)]
            texts = [" ".join(part) for part in (drawn[6:], drawn[:3], drawn[3:6])]
            file.write(json.dumps({"document": texts[0], "summary": texts[1:]}) + "\n")


def end(processes: Sequence[Any]) -> None:
    """Kills processes; their workers end by themselves."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()


def attempted(rows: Rows, attempt: Attempt, number: int, steps: int, save_every: int, folder: Path) -> Reading:
    """Runs the processes of one attempt, until they end or are killed.

    Raises:
      UserError: one of them failed.
    """
    # Real processes, with Python and packages loaded once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jax_simcas.benchmark.order_reader"])
    start, reached = context.Value("q", 0, lock=False), context.Value("q", -1, lock=False)
    last = steps if attempt.kill_at is None else steps - 1  # one that is to be killed does not end before
    shared = (last, attempt.kill_at is not None, save_every, context.Barrier(attempt.processes), start, reached)
    rows = rows._replace(config=dataclasses.replace(rows.config, workers=attempt.workers))
    shares = [Share(index, attempt.processes, folder, number, *shared) for index in range(attempt.processes)]
    processes = [context.Process(target=read, args=(rows, share)) for share in shares]
    try:
        for process in processes:
            process.start()
        while not ended(processes, shares):
            if attempt.kill_at is not None and reached.value >= min(attempt.kill_at, last):
                time.sleep(attempt.delay)
                break
            time.sleep(POLL)
    finally:
        end(processes)
    found = [np.fromfile(share.file("rows"), RECORD) for share in shares if share.file("rows").exists()]
    return Reading(start.value, np.concatenate([np.zeros(0, RECORD), *found]))


def ended(processes: Sequence[Any], shares: Sequence[Share]) -> bool:
    """Whether all processes have ended well.

    Raises:
      UserError: one of them has failed.
    """
    codes = [process.exitcode for process in processes]
    for code, share in zip(codes, shares, strict=True):
        if code:
            raise UserError(f"process {share.number} of {share.processes}: {_why(share, code)}")
    return None not in codes


def _why(share: Share, exitcode: int) -> str:
    if share.file("error").exists():
        return share.file("error").read_text(encoding="utf-8")
    log = share.file("log").read_text(encoding="utf-8", errors="replace") if share.file("log").exists() else ""
    return "; ".join([f"ended with exit code {exitcode}", *log.strip().splitlines()[-1:]])


def checked(name: str, rows: Rows, arguments: Any, folder: Path) -> dict[str, Any]:
    """One line of the table, for a run that is killed beside one that is not."""
    count, epochs, size = len(rows.source), arguments.epochs, rows.config.batch_size
    steps = -(-count * epochs // size)
    rng = random.Random(f"{arguments.seed} {name}")
    alone, disturbed = folder / name / "alone", folder / name / "disturbed"
    for made in (alone, disturbed):
        made.mkdir(parents=True)
    print(f"{name}: {plural(steps, 'step')} in one process", file=sys.stderr)
    undisturbed = attempted(rows, Attempt(1, 0), 0, steps, arguments.save_every, alone)
    started, readings = time.monotonic(), []
    plan = planned(arguments.kills, steps, arguments.processes, arguments.workers, rng)
    for number, attempt in enumerate(plan):
        reading = attempted(rows, attempt, number, steps, arguments.save_every, disturbed)
        readings.append(reading)
        print(
            f"{name}, attempt {number + 1} of {len(plan)}: {plural(attempt.processes, 'process', 'processes')} with "
            f"{plural(attempt.workers, 'worker')} each, from step {reading.start} to "
            f"{reading.records['step'].max(initial=reading.start)}",
            file=sys.stderr,
        )
    found = compared(undisturbed.records, readings, count, epochs, size)
    return {
        "setting": name,
        "kills": arguments.kills,
        "steps": steps,
        "steps again": found.again,
        "rows": count * epochs,
        "rows missing": found.missing,
        "rows twice": found.twice,
        "batches that differ": len(found.differing),
        "seconds": f"{time.monotonic() - started:.0f}",
    } | ({"first": found.differing[0]} if found.differing else {})


def problem(line: dict[str, Any]) -> str:
    """What is wrong with a line of the table, or ""."""
    wrong = [f"{line[name]} {name}" for name in ("rows missing", "rows twice", "batches that differ") if line[name]]
    where = f", the first at step {line['first']}" if "first" in line else ""
    return f"{line['setting']}: {', '.join(wrong)}{where}" if wrong else ""


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    for count in arguments.processes:
        if arguments.batch_size % count:
            raise FlagError(f"--batch-size={arguments.batch_size}: expected a multiple of --processes, such as {count}")
    cli.prepare_jax()
    # Python's tracker of semaphores counts those that killed processes leave, and frees them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    config = dataclasses.replace(PIPELINE, batch_size=arguments.batch_size, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "train.jsonl", arguments.rows, arguments.seed)
        tokenizer = words()
        source = JsonlSource(folder / "train.jsonl", Fields(), folder)
        cache = cache_lib.token_cache(source, tokenizer, config, folder / "tokens")
        sorting = dataclasses.replace(config, bucket_batches=arguments.bucket_batches)
        settings = {
            "file": Rows(source, tokenizer, config, None),
            "cache, sorted": Rows(source, tokenizer, sorting, cache),
        }
        lines = [checked(name, rows, arguments, folder) for name, rows in settings.items()]
    print(markdown_table(lines, [name for name in lines[0] if name != "first"]))
    if problems := [text for text in map(problem, lines) if text]:
        raise UserError(first_of(problems))
    return 0
