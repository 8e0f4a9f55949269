"""The training loop: the transformer by cross-entropy, the selector by PPO, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import files, metric_log, plots
from jax_simcas.common.errors import UserError
from jax_simcas.common.progress import Progress
from jax_simcas.common.sharding import replicated, state_shardings
from jax_simcas.data import batches
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.rows import First
from jax_simcas.method.document import Example
from jax_simcas.method.steps import (
    batch_loss,
    init_state,
    selector_step,
    transformer_step,
)
from jax_simcas.run import config as config_lib
from jax_simcas.run.build import new_model, open_source, pipeline_config
from jax_simcas.run.config import Settings
from jax_simcas.run.processes import Job, Stop, is_main, make_job, wait_for_all
from jax_simcas.run.workdir import CONFIG, TOKENIZER, Workdir

SAVED = "checkpoint"  # the split of metrics.jsonl whose lines tell that a checkpoint is on disk
SECONDS_BETWEEN_PLOTS = 60  # at least: training waits while they are drawn, about two seconds
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
    "data.workers",
    "data.cache",
    "generate.",
    "mesh.",
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
            say(
                f"warning: {100 * share:.0f} % of the {what} are cut to {tokens} tokens (config.simcas.{limit}); "
                f"data/{name} in metrics.jsonl goes on counting"
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

    def tokens(self) -> float:
        return self.totals().get("tokens", (0.0, 0.0))[0]

    def take(self) -> Totals:
        totals, self._totals = self.totals(), {}
        return totals


def check_workdir(settings: Settings, workdir: Path) -> None:
    """Writes the settings to the workdir, or checks that it belongs to a run with the same.

    Raises:
      UserError: it holds a run that differs in more than length, frequency and devices.
    """
    path = workdir / CONFIG
    if path.exists():
        changed = config_lib.differences(config_lib.read_json(path), settings)
        changed = [line for line in changed if not line.startswith(FREE_ON_RESUME)]
        if changed:
            raise UserError(
                f"--workdir={workdir} holds a run with other settings ({'; '.join(changed)}): "
                "use these, or another workdir"
            )
    if is_main():
        files.replace_file(path, config_lib.to_json(settings).encode())


def check_none_lost(workdir: Path, checkpoints: epath.Path, restored: int | None) -> list[str]:
    """Warns if a checkpoint newer than the restored step was on disk once, as metrics.jsonl tells, and is gone.

    Raises:
      UserError: none is left of those that were there: to start over in silence would waste them.
    """
    path = workdir / metric_log.METRICS
    rows = metric_log.read_metrics(path) if path.exists() else []
    newest = max((row["step"] for row in rows if row["split"] == SAVED), default=0)
    if newest and restored is None:
        raise UserError(
            f"{checkpoints}: no checkpoint there, but {path} tells of one of step {newest}: "
            f"bring it back, or move {workdir} away to start over"
        )
    lost = restored is not None and newest > restored and not (checkpoints / str(newest)).exists()
    return [f"{checkpoints / str(newest)}: it was there and is gone"] if lost else []


def validate(evaluate: Callable, params: Any, batches: Iterator[Example]) -> dict[str, float]:
    """Teacher-forced figures on validation documents, with the policy of inference."""
    totals: Totals = {}
    for batch in batches:
        totals = add(totals, jax.device_get(evaluate(params, batch)))
    return means(totals)


def kept_tokens(
    source: Any, tokenizer: Any, config: batches.PipelineConfig, cache: Path, passes: float, bar: Progress
) -> cache_lib.TokenCache | None:
    """The tokens of rows on disk, made first if they are read more than once; None, and why, if they cannot be kept."""
    options = (source, tokenizer, config, cache / "tokens")
    found = cache_lib.find(*options)
    if found or (passes <= 1 and not config.bucket_batches):
        return found
    try:
        with bar:
            made = cache_lib.token_cache(*options, bar.update)
    except OSError as error:
        say(
            f"warning: {cache / 'tokens'}: tokens cannot be kept there ({error.strerror or error}): rows are tokenised "
            "whenever they are read; free the disk, set JAX_SIMCAS_CACHE, or --config.data.cache=False"
        )
        return None
    say(f"the tokens of {len(source)} rows are kept in {made.folder} ({made.size / 1e6:.1f} MB)")
    return made


def say(*notes: str) -> None:
    """Tells the user, once for all processes."""
    if is_main():
        for note in notes:
            print(note, file=sys.stderr)


def train(settings: Settings, where: str | os.PathLike[str], cache: Path, progress: bool = True) -> Outcome:
    """Trains for `settings.loop.steps` optimizer steps, or `epochs` passes over the rows.

    Goes on from the newest good checkpoint if there is one, on whatever devices there are now. Of several processes
    each calls this alike.

    Raises:
      UserError: anything that the user can mend; too many non-finite steps in a row.
    """
    job = make_job(settings.mesh, settings.data.batch_size)
    with jax.set_mesh(job.mesh):
        return train_on(job, settings, where, cache, progress)


def train_on(job: Job, settings: Settings, where: str | os.PathLike[str], cache: Path, progress: bool) -> Outcome:
    """`train` on the mesh of a job."""
    folder = Workdir.at(where, cache)
    workdir = folder.local
    model = new_model(settings, cache, job.mesh, workdir / TOKENIZER)
    settings = model.settings
    check_workdir(settings, workdir)
    wait_for_all("models are made")  # from the saved tokenizer, or from none: not from one that is being written
    if is_main():
        tokenizer_lib.save_tokenizer(model.tokenizer, workdir / TOKENIZER)
    say(*model.notes)

    loop, update, spec = settings.loop, settings.optimizer, settings.model()
    config = pipeline_config(settings)
    source = open_source(settings, settings.data.train_split, cache)
    held_out = open_source(settings, settings.data.validation_split, cache)
    say(*(f"warning: {note}" for rows in (source, held_out) for note in getattr(rows, "notes", ())))
    if settings.data.train_rows:
        source = First(source, settings.data.train_rows)
    if loop.epochs:
        rows_a_step = config.batch_size * settings.optimizer.accumulate_step
        loop = dataclasses.replace(loop, steps=-(-loop.epochs * len(source) // rows_a_step))

    optimizer, selector_optimizer = update.transformer(loop.steps), update.selector()
    fresh = lambda params: init_state(
        spec.backbone.stack(params), optimizer, selector_optimizer, jax.random.key(loop.seed)
    )
    shardings = state_shardings(job.mesh, jax.eval_shape(fresh, model.params), spec.sharding_rules)
    state = jax.jit(fresh, out_shardings=shardings)(model.params)
    model = model._replace(params=None)  # or they would lie there twice
    arrays = lambda batch: job.put(batch, model.tokenizer.pad_token_id)
    with Checkpointer(
        folder.checkpoints, keep_latest=loop.keep_checkpoints, best=loop.best_metric, mode="min"
    ) as checkpoints:
        restored = checkpoints.restore(state)
        step, totals = 0, {}
        if restored is not None:
            step, state = restored.step, restored.state
            totals = {name: tuple(pair) for name, pair in restored.meta["window"].items()}
        warnings = checkpoints.warnings if restored is None else restored.warnings
        lost = check_none_lost(workdir, checkpoints.folder, None if restored is None else step)
        say(*(f"warning: {warning}" for warning in (*warnings, *lost)))
        if step:
            say(f"resuming at step {step} of {loop.steps}")
        if step >= loop.steps:
            flag = "epochs" if loop.epochs else "steps"
            say(f"step {step} of {loop.steps} is done; raise --config.loop.{flag} to go on")
            return Outcome(step, {}, False)

        examined = First(held_out, loop.eval_documents)
        cached = validated = None
        if settings.data.cache and getattr(source, "fingerprint", None):
            progress_of = partial(Progress, unit="rows tokenised", disable=not (progress and is_main()))
            kept = partial(kept_tokens, tokenizer=model.tokenizer, cache=cache)
            if cache_lib.joined_anew(source, config):
                say("note: training's tokens are not cached: documents are joined anew each time (data.parts_at)")
            else:
                passes = loop.steps * config.batch_size * settings.optimizer.accumulate_step / len(source)
                cached = kept(source, config=config, passes=passes, bar=progress_of(len(source)))
            # A few rows in order: not worth starting processes.
            alone = dataclasses.replace(config, workers=0, bucket_batches=0)
            passes = loop.steps / loop.eval_every
            validated = kept(examined, config=alone, passes=passes, bar=progress_of(len(examined)))
        training = batches.make_iterator(
            source,
            model.tokenizer,
            config,
            training=True,
            start=step * settings.optimizer.accumulate_step,
            places=job.places,
            cache=cached,
        )
        evaluate = jax.jit(lambda params, batch: batch_loss(params, batch, spec, update.label_smoothing)[1])
        compiled = partial(jax.jit, donate_argnums=0, out_shardings=(shardings, replicated(job.mesh)))
        transformer = compiled(
            partial(transformer_step, model=spec, optimizer=optimizer, label_smoothing=update.label_smoothing)
        )
        selector = compiled(partial(selector_step, model=spec, optimizer=selector_optimizer, ppo=update.ppo))
        rate = update.learning_rate(loop.steps)
        window = Window(totals)
        seen_tokens, since = window.tokens(), time.monotonic()  # of the window, before the clock was set
        validation: dict[str, float] = {}
        first, stop, said, drawn = step + 1, Stop(), set[str](), time.monotonic()
        with (
            stop,
            metric_log.MetricsWriter(workdir, resume_step=step) if is_main() else contextlib.nullcontext() as writer,
            Progress(loop.steps, initial=step, disable=not (progress and is_main())) as bar,
        ):
            for step in range(first, loop.steps + 1):
                learn_selection = loop.selector_every and step % loop.selector_every == 0
                for batch in itertools.islice(training, settings.optimizer.accumulate_step):
                    placed = arrays(batch)
                    state, metrics = transformer(state, placed)
                    window.push(metrics)
                    if learn_selection:
                        state, metrics = selector(state, placed)
                        # Its draw is another one; the transformer's own counts what was kept.
                        window.push({k: v for k, v in metrics.items() if not k.startswith("selection/")})
                    window.push(cut_shares(batch))
                bar.update(1)
                write_saved(writer, checkpoints)
                # Read once: a signal from here on counts at the next step. What is logged and validated stays the
                # same whether a run is stopped or not; sums go on in the checkpoint.
                last, stopping = step == loop.steps, stop.now(step)
                if step % loop.log_every == 0 or last:
                    totals = window.take()
                    now = time.monotonic()
                    speed = (totals["tokens"][0] - seen_tokens) / (now - since)
                    seen_tokens, since = 0.0, now
                    figures = means(totals) | {"learning_rate": float(rate(step - 1)), "tokens_per_second": speed}
                    if writer:
                        writer.write(step, "train", figures)
                    say_cut(figures, settings, said)
                    bar.show(figures)
                    give_up_if_not_finite(int(state.skipped_in_row), step, settings, checkpoints)
                if step % loop.eval_every == 0 or last:
                    held = batches.make_iterator(
                        examined,
                        model.tokenizer,
                        config,
                        training=False,
                        places=job.places,
                        cache=validated,
                    )
                    validation = validate(evaluate, state.params, map(arrays, held))
                    if writer:
                        writer.write(step, "validation", validation)
                    since, seen_tokens = time.monotonic(), window.tokens()
                if step % loop.checkpoint_every == 0 or last or stopping:
                    scored = validation if step % loop.eval_every == 0 or last else None
                    checkpoints.save(step, state, scored, {"window": window.totals()})
                    if writer and (last or stopping or time.monotonic() - drawn > SECONDS_BETWEEN_PLOTS):
                        plots.plot_training(workdir / metric_log.METRICS, workdir)
                        drawn = time.monotonic()
                    if writer:
                        folder.publish()
                if stopping:
                    break
            checkpoints.wait()
            write_saved(writer, checkpoints)
            if writer:
                folder.publish()
    return Outcome(step, validation, preempted=step < loop.steps)


def write_saved(writer: metric_log.MetricsWriter | None, checkpoints: Checkpointer) -> None:
    """A line for every checkpoint that came to be on disk: how long training stood still, and until it was there."""
    for saved in checkpoints.finished():
        if writer:
            writer.write(
                saved.step, SAVED, {"stall_seconds": saved.stall_seconds, "write_seconds": saved.write_seconds}
            )


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
