"""What a run leaves open, from its rows: how long it takes, how often it does what, and what it pads to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from jax_simcas.common.tables import plural
from jax_simcas.data.buckets import Buckets, Lengths, choose_buckets, measure
from jax_simcas.data.rows import RowSource
from jax_simcas.data.tokenizer import Tokenizer
from jax_simcas.run.build import pipeline_config
from jax_simcas.run.config import LoopConfig, Settings
from jax_simcas.run.method_config import warmup_of

PASSES, STEPS, MOST_PASSES = 3, 500, 20
MEASURED = 256  # rows at most: some seconds
# What may be None, and so open.
OPEN = {
    "optimizer": ("max_lr", "warmup"),
    "loop": ("steps", "log_every", "eval_every", "checkpoint_every"),
}
BUCKETS = ("chunk_buckets", "target_buckets")  # empty ones are open where `fit_buckets` is set


class Intervals(NamedTuple):
    """Optimizer steps between log lines, validations and checkpoints."""

    log: int
    validate: int
    checkpoint: int


def as_recorded(settings: Settings, recorded: Settings) -> Settings:
    """The settings with what they leave open as a run has recorded it: data that grew since change no step of it."""

    def filled(section: Any, old: Any, names: tuple[str, ...]) -> Any:
        return dataclasses.replace(section, **{name: getattr(old, name) for name in names})

    still_open = {
        section: tuple(n for n in OPEN[section] if getattr(getattr(settings, section), n) is None) for section in OPEN
    }
    if settings.data.fit_buckets:
        still_open["data"] = tuple(name for name in BUCKETS if not getattr(settings.data, name))
    sections = {name: filled(getattr(settings, name), getattr(recorded, name), still_open[name]) for name in still_open}
    return dataclasses.replace(settings, **sections)


def steps_for(rows: int, per_step: int) -> int:
    """Optimizer steps for so many rows, `per_step` at each.

    Three passes over the rows, or 500 steps if those are more, but at most 20 passes, lest few are learnt by heart.
    """
    one_pass = rows / per_step
    return max(1, math.ceil(min(max(STEPS, PASSES * one_pass), MOST_PASSES * one_pass)))


def steps_of(settings: Settings, rows: int) -> int:
    """The optimizer steps of a run on so many rows: `epochs` passes, `steps`, or as many as the rows suggest."""
    loop, per_step = settings.loop, settings.data.batch_size * settings.optimizer.accumulate_step
    if loop.epochs:
        return -(-loop.epochs * rows // per_step)
    return steps_for(rows, per_step) if loop.steps is None else loop.steps


def intervals_of(loop: LoopConfig, steps: int) -> Intervals:
    """What `loop` says, or what suits a run of so many steps."""
    fifth = max(5, min(steps // 5, 500))
    suited = Intervals(max(1, min(steps // 50, 10)), fifth, fifth)
    given = (loop.log_every, loop.eval_every, loop.checkpoint_every)
    return Intervals(*(own if asked is None else asked for own, asked in zip(suited, given, strict=True)))


def on_few_rows(settings: Settings, rows: int) -> list[str]:
    """A note if the rows end a run whose steps are open before it has 500 of them."""
    if settings.loop.steps is not None or settings.loop.epochs or steps_of(settings, rows) >= STEPS:
        return []
    return [
        f"note: {plural(rows, 'row')} to learn from: training ends after {MOST_PASSES} passes over so few, lest it "
        "learn them by heart; --config.loop.steps sets another length"
    ]


def with_length(settings: Settings, steps: int) -> Settings:
    """The settings with steps, intervals and warmup of a run of so many steps where they are open."""
    loop, optimizer = settings.loop, settings.optimizer
    every = intervals_of(loop, steps)
    loop = dataclasses.replace(loop, log_every=every.log, eval_every=every.validate, checkpoint_every=every.checkpoint)
    if loop.steps is None and not loop.epochs:
        loop = dataclasses.replace(loop, steps=steps)
    if optimizer.warmup is None:
        optimizer = dataclasses.replace(optimizer, warmup=warmup_of(steps))
    return dataclasses.replace(settings, loop=loop, optimizer=optimizer)


def with_buckets(
    settings: Settings, training: RowSource, validation: RowSource, tokenizer: Tokenizer
) -> tuple[Settings, dict[str, str]]:
    """The settings with buckets that fit the rows where they are open, and what to say of the rows and their buckets.

    Each process of a job measures the same rows, and so has the same buckets. What is cut has the name of its figure.

    Raises:
      UserError: a row that cannot be used.
    """
    data = settings.data
    if not data.fit_buckets or (data.chunk_buckets and data.target_buckets):
        return settings, {}
    config = pipeline_config(settings)
    rows = measure(training, tokenizer, config, MEASURED)
    # Validation's rows too, or its batches might be compiled apart.
    lengths = rows.joined(measure(validation, tokenizer, config, MEASURED))
    chunks, target, padding = choose_buckets(lengths, config, data.chunk_buckets, data.target_buckets)
    found = dataclasses.replace(data, chunk_buckets=chunks, target_buckets=target)
    said = _bucket_line(chunks, target, config.chunk_length, padding, len(rows.chunks), len(training))
    return dataclasses.replace(settings, data=found), {"buckets": said} | _on_lengths(lengths, settings)


def _bucket_line(chunks: Buckets, target: Buckets, length: int, padding: float, measured: int, rows: int) -> str:
    of = f"{measured:,} of {plural(rows, 'row')}" if measured < rows else plural(rows, "row")
    return (
        f"batches are padded to {_or(chunks)} chunk{'s' * (chunks != (1,))} of {length} tokens and {_or(target)} "
        f"target tokens, which fit {of}: {100 * padding:.0f} % of a batch is padding"
    )


def _or(buckets: Buckets) -> str:
    """`8`, `8 or 16`, `4, 8 or 16`."""
    *first, last = map(str, buckets)
    return f"{', '.join(first)} or {last}" if first else last


def _on_lengths(lengths: Lengths, settings: Settings) -> dict[str, str]:
    """What the limits cut, and a capacity that holds everything."""
    notes, simcas = {}, settings.simcas
    cut = (
        ("data/cut_tokens", "document", lengths.tokens, lengths.cut_tokens, "max_input_len"),
        ("data/cut_target", "target", lengths.target, lengths.cut_target, "max_target_len"),
    )
    for name, what, read, beyond, limit in cut:
        if share := float((beyond > 0).mean()):
            notes[name] = (
                f"note: the longest {what} has about {int((read + beyond).max()):,} tokens, of which config.simcas."
                f"{limit}={getattr(simcas, limit)} are read; {100 * share:.0f} % of the {what}s are cut there"
            )
    longest = int(lengths.tokens.max())
    if simcas.capacity is not None and longest < simcas.capacity:
        notes["capacity"] = (
            f"note: config.simcas.capacity={simcas.capacity} holds all of the longest document ({longest:,} tokens): "
            "nothing forces the selector to choose; a lower capacity would"
        )
    return notes
