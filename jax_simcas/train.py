"""Trains a model: the transformer by cross-entropy, the selector by PPO, in turns.

examples:
  python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/embedded
  python -m jax_simcas.train --config=configs/sumpubmed.py --workdir=runs/sumpubmed \\
      --config.data.data_dir=DATA --config.loop.steps=500 --config.simcas.dtype=bfloat16

Every field of a config can be changed: --config.FIELD=VALUE; WORKDIR/config.json lists them all.
The same command again resumes from the newest good checkpoint. WORKDIR gets config.json, tokenizer/,
checkpoints/ (latest and best), metrics.jsonl, TensorBoard files and PNG curves.
exit codes: 0 trained; 1 an error, told in one line; 75 stopped by SIGTERM, after a checkpoint; 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jax_simcas import plots, program, report
from jax_simcas import settings as settings_lib
from jax_simcas.bart.layers import stack_layers
from jax_simcas.checkpoint import Checkpointer
from jax_simcas.data import pipeline
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.sources import First
from jax_simcas.errors import UserError
from jax_simcas.settings import Settings
from jax_simcas.update import (
    batch_loss,
    init_state,
    learning_rate,
    selector_step,
    transformer_step,
)
from jax_simcas.workdir import CHECKPOINTS, CONFIG, TOKENIZER, new_model, open_source, pipeline_config

EXIT_PREEMPTED = 75  # BSD's EX_TEMPFAIL: the same command again goes on
# A resumed run may differ in these: they change how long and how often, not what a step does.
FREE_ON_RESUME = (
    "loop.steps",
    "loop.epochs",
    "loop.log_every",
    "loop.eval_every",
    "loop.eval_documents",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.max_skipped",
    "data.data_dir",
    "generate.",
)

Totals = dict[str, tuple[float, float]]  # name -> (sum, count)


class Outcome(NamedTuple):
    """Where training stopped."""

    step: int
    metrics: dict[str, float]
    preempted: bool


def add(totals: Totals, metrics: dict[str, tuple[Any, Any]]) -> Totals:
    """Adds (sum, count) pairs, in double precision on the host."""
    out = dict(totals)
    for name, (total, count) in metrics.items():
        before = out.get(name, (0.0, 0.0))
        out[name] = (before[0] + float(total), before[1] + float(count))
    return out


def means(totals: Totals) -> dict[str, float]:
    """sum / count of every pair with a count."""
    return {name: total / count for name, (total, count) in totals.items() if count}


def arrays_of(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the compiled steps see of a batch."""
    return {k: batch[k] for k in ("input_ids", "token_mask", "chunk_mask", "target_ids", "target_mask")}


def cut_shares(batch: dict[str, np.ndarray]) -> Totals:
    """How many documents and targets of a batch were longer than the limits, and so cut."""
    rows = float(batch["row_mask"].sum())
    return {f"data/{name}": (float((batch[name] > 0).sum()), rows) for name in ("cut_tokens", "cut_target")}


def say_cut(figures: dict[str, float], settings: Settings, said: set[str]) -> None:
    """Warns, once each, of documents and targets that are longer than the limits."""
    for name, what, limit in (
        ("cut_tokens", "documents", "max_input_len"),
        ("cut_target", "targets", "max_target_len"),
    ):
        share = figures.get(f"data/{name}", 0.0)
        if share and name not in said:
            said.add(name)
            tokens = getattr(settings.simcas, limit)
            print(
                f"warning: {100 * share:.0f} % of the {what} are cut to {tokens} tokens (config.simcas.{limit}); "
                f"data/{name} in metrics.jsonl goes on counting",
                file=sys.stderr,
            )


class Window:
    """Figures since the last log line; reads the device only when asked, so that steps are not waited for."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._pending: list[dict] = []

    def push(self, metrics: dict) -> None:
        self._pending.append(metrics)

    def totals(self) -> Totals:
        for metrics in jax.device_get(self._pending):
            self._totals = add(self._totals, metrics)
        self._pending = []
        return self._totals

    def take(self) -> Totals:
        totals, self._totals = self.totals(), {}
        return totals


def prepare_workdir(settings: Settings, workdir: Path) -> None:
    """Creates the workdir, or checks that it belongs to a run with the same settings.

    Raises:
      UserError: it cannot be written, or holds a run that differs in more than length and frequency.
    """
    program.make_folder(workdir, "--workdir")
    path = workdir / CONFIG
    if path.exists():
        changed = settings_lib.differences(settings_lib.read_json(path), settings)
        changed = [line for line in changed if not line.startswith(FREE_ON_RESUME)]
        if changed:
            raise UserError(
                f"--workdir={workdir} holds a run with other settings ({'; '.join(changed)}): "
                "use these, or another workdir"
            )
    path.write_text(settings_lib.to_json(settings), encoding="utf-8")


def validate(evaluate: Callable, params: Any, batches: Iterator[dict]) -> dict[str, float]:
    """Teacher-forced figures on validation documents, with the policy of inference."""
    totals: Totals = {}
    for batch in batches:
        totals = add(totals, jax.device_get(evaluate(params, arrays_of(batch))))
    return means(totals)


def train(settings: Settings, workdir: Path, cache: Path, progress: bool = True) -> Outcome:
    """Trains for `settings.loop.steps` optimizer steps, or `epochs` passes over the rows.

    Goes on from the newest good checkpoint if there is one.

    Raises:
      UserError: anything that the user can mend; too many non-finite steps in a row.
    """
    program.make_folder(workdir, "--workdir")
    model = new_model(settings, cache, workdir / TOKENIZER)
    settings = model.settings
    prepare_workdir(settings, workdir)
    tokenizer_lib.save_tokenizer(model.tokenizer, workdir / TOKENIZER)
    for note in model.notes:
        print(note, file=sys.stderr)

    loop, bart, simcas = settings.loop, settings.bart, settings.simcas
    config = pipeline_config(settings)
    source = open_source(settings, settings.data.train_split, cache)
    held_out = open_source(settings, settings.data.validation_split, cache)
    for note in (*getattr(source, "notes", ()), *getattr(held_out, "notes", ())):
        print(f"warning: {note}", file=sys.stderr)
    batches = pipeline.make_iterator(source, model.tokenizer, config, training=True)
    if loop.epochs:
        rows_a_step = config.batch_size * settings.optimizer.accumulate_step
        loop = dataclasses.replace(loop, steps=-(-loop.epochs * len(source) // rows_a_step))
    state = init_state(stack_layers(model.params), settings.optimizer, jax.random.key(loop.seed))
    with Checkpointer(
        workdir / CHECKPOINTS, keep_latest=loop.keep_checkpoints, best=loop.best_metric, mode="min"
    ) as checkpoints:
        restored = checkpoints.restore(state, batches)
        step, totals = 0, {}
        if restored is not None:
            step, state = restored.step, restored.state
            totals = {name: tuple(pair) for name, pair in restored.meta["window"].items()}
            for warning in restored.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            print(f"resuming at step {step} of {loop.steps}", file=sys.stderr)
        if step >= loop.steps:
            flag = "epochs" if loop.epochs else "steps"
            print(f"step {step} of {loop.steps} is done; raise --config.loop.{flag} to go on", file=sys.stderr)
            return Outcome(step, {}, False)

        evaluate = jax.jit(
            lambda params, batch: batch_loss(params, batch, bart, simcas, settings.optimizer.label_smoothing)[1]
        )
        options: Any = {"bart": bart, "simcas": simcas, "config": settings.optimizer}
        transformer = jax.jit(partial(transformer_step, **options), donate_argnums=0)
        selector = jax.jit(partial(selector_step, **options), donate_argnums=0)
        rate = learning_rate(settings.optimizer)
        window, seen_tokens, since = Window(totals), 0, time.monotonic()
        validation: dict[str, float] = {}
        first, stop, said = step + 1, Stop(), set[str]()
        with (
            stop,
            report.MetricsWriter(workdir, resume_step=step) as writer,
            report.Progress(loop.steps, initial=step, disable=not progress) as bar,
        ):
            for step in range(first, loop.steps + 1):
                learn_selection = loop.selector_every and step % loop.selector_every == 0
                for batch in itertools.islice(batches, settings.optimizer.accumulate_step):
                    arrays = arrays_of(batch)
                    state, metrics = transformer(state, arrays)
                    window.push(metrics)
                    if learn_selection:
                        state, metrics = selector(state, arrays)
                        # Its draw is another one; the transformer's own counts what was kept.
                        window.push({k: v for k, v in metrics.items() if not k.startswith("selection/")})
                    window.push(cut_shares(batch))
                    seen_tokens += int(arrays["token_mask"].sum())
                bar.update(1)
                last = step == loop.steps or stop.requested
                if step % loop.log_every == 0 or last:
                    figures = means(window.take())
                    now = time.monotonic()
                    speed, seen_tokens, since = seen_tokens / (now - since), 0, now
                    figures |= {"learning_rate": float(rate(step - 1)), "tokens_per_second": speed}
                    writer.write(step, "train", figures)
                    say_cut(figures, settings, said)
                    bar.show(figures)
                    give_up_if_not_finite(int(state.skipped_in_row), step, settings, checkpoints)
                if step % loop.eval_every == 0 or last:
                    held = pipeline.make_iterator(
                        First(held_out, loop.eval_documents), model.tokenizer, config, training=False
                    )
                    validation = validate(evaluate, state.params, held)
                    writer.write(step, "validation", validation)
                    since, seen_tokens = time.monotonic(), 0
                if step % loop.checkpoint_every == 0 or last:
                    scored = validation if step % loop.eval_every == 0 or last else None
                    checkpoints.save(step, state, batches, scored, {"window": window.totals()})
                    plots.plot_training(workdir / "metrics.jsonl", workdir)
                if stop.requested:
                    break
            checkpoints.wait()
    return Outcome(step, validation, stop.requested and step < loop.steps)


def give_up_if_not_finite(in_row: int, step: int, settings: Settings, checkpoints: Checkpointer) -> None:
    """Raises UserError, with the last good checkpoint named, after too many non-finite steps in a row."""
    if in_row < settings.loop.max_skipped:
        return
    checkpoints.wait()
    good = checkpoints.latest_step()
    where = "there is no checkpoint yet" if good is None else f"the last good one is {checkpoints.folder}/{good}"
    raise UserError(
        f"step {step}: the loss was not finite for {in_row} batches in a row, which were skipped; {where}. "
        f"Lower config.optimizer.max_lr (now {settings.optimizer.max_lr}) or set config.optimizer.clip_norm"
    )


class Stop:
    """Notes SIGTERM, so that the loop can save and leave after the step at hand."""

    requested = False

    def __enter__(self) -> Stop:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.requested = True


def main(config: Any, workdir: str) -> int:
    """The program after its flags are read."""
    if config is None:
        raise UserError("--config is missing: --config=configs/NAME.py")
    settings = settings_lib.from_config(config)
    if not workdir:
        raise UserError("--workdir is missing: the folder for checkpoints and figures")
    program.prepare()
    outcome = train(settings, Path(workdir), program.cache_dir())
    if outcome.preempted:
        print(f"stopped by SIGTERM; step {outcome.step} is saved, the same command goes on", file=sys.stderr)
        return EXIT_PREEMPTED
    if outcome.metrics:
        figures = ", ".join(f"{k} {v:.4g}" for k, v in outcome.metrics.items() if k in ("nll", "loss"))
        print(f"step {outcome.step}: validation {figures}; see {workdir}/curves.png")
    return 0


if __name__ == "__main__":
    CONFIG_FLAG = config_flags.DEFINE_config_file("config", None, "Config file: configs/NAME.py.")
    WORKDIR_FLAG = flags.DEFINE_string("workdir", "", "Folder for checkpoints and figures.")
    app.run(
        lambda _: sys.exit(program.guarded(lambda: main(CONFIG_FLAG.value, WORKDIR_FLAG.value))),
        flags_parser=program.parse_flags,
    )
