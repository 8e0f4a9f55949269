"""The training loop: the transformer by cross-entropy, the selector by PPO, in turns."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import metric_log, plots
from jax_simcas.common.compiler import compiler_options
from jax_simcas.common.errors import UserError
from jax_simcas.common.pairs import Pair, Totals, add_named, means
from jax_simcas.common.progress import Progress
from jax_simcas.common.sharding import replicated
from jax_simcas.common.tables import GIB, MIB, plural
from jax_simcas.data.features import Features
from jax_simcas.data.tokenizer import TextTokenizer, count_unknown, special_id
from jax_simcas.method.document import Example
from jax_simcas.method.select import ALL
from jax_simcas.method.steps import batch_loss, selector_step, transformer_step
from jax_simcas.run import advice
from jax_simcas.run.config import LoopConfig, Settings
from jax_simcas.run.costs import ALONE, SELECTOR, TRANSFORMER, VALIDATION, Costs, Rest, due
from jax_simcas.run.prepare import (
    SAVED,
    Inputs,
    Run,
    Start,
    claim,
    open_inputs,
    prepare,
    restore_or_start,
    validation_batches,
)
from jax_simcas.run.processes import Stop, is_main, make_job, notify
from jax_simcas.run.window import Speed, Window
from jax_simcas.run.workdir import Workdir

SECONDS_BETWEEN_PLOTS = 60  # at least: training waits while they are drawn, about two seconds


class Outcome(NamedTuple):
    """Where training stopped."""

    step: int
    metrics: dict[str, float]
    preempted: bool


class Steps(NamedTuple):
    """The compiled functions of a run."""

    transformer: Callable[[Any, Any], tuple[Any, dict[str, Pair]]]
    transformer_alone: Callable[[Any, Any], tuple[Any, dict[str, Pair]]]  # reads every state
    selector: Callable[[Any, Any], tuple[Any, dict[str, Pair]]]
    validation: Callable[[Any, Any], dict[str, Pair]]


class Hook(NamedTuple):
    """What the loop does every so many steps and after the last one; `do` gets the step, and whether training ends."""

    steps: int
    do: Callable[[int, bool], None]
    when_stopped: bool = False  # also where SIGTERM ends training

    def due(self, step: int, last: bool, stopping: bool) -> bool:
        return step % self.steps == 0 or last or (stopping and self.when_stopped)


def train(settings: Settings, where: str | os.PathLike[str], cache: Path, progress: bool = True) -> Outcome:
    """Trains for `settings.loop.steps` optimizer steps, or `epochs` passes over the rows.

    Resumes from the newest good checkpoint if there is one, on whatever devices there are now. Each of several
    processes calls this alike. A first attempt that fails before its first step leaves the folder to any other.

    Raises:
      UserError: anything that the user can mend; too many non-finite steps in a row.
    """
    job = make_job(settings.mesh, settings.data.batch_size)
    folder = Workdir.at(where, cache)
    with jax.set_mesh(job.mesh), folder.held() if is_main() else contextlib.nullcontext():
        run = prepare(job, settings, folder, cache, progress)
        loop = settings.loop
        with Checkpointer(
            run.folder.checkpoints, keep_latest=loop.keep_checkpoints, best=loop.best_metric, mode="min"
        ) as checkpoints:
            start = restore_or_start(run, checkpoints)
            run = run._replace(model=run.model._replace(params=None))  # or they would lie there twice
            if start.step >= run.steps:
                notify(nothing_to_train(start.step, run.steps, loop.epochs))
                return Outcome(start.step, {}, False)
            if start.step:
                notify(f"resuming at step {start.step} of {run.steps}")
            inputs = open_inputs(run, start.step)
            introduce(run, start)
            claim(run)
            return train_on(run, start, inputs, checkpoints)


def nothing_to_train(step: int, steps: int, epochs: int) -> str:
    """What to say of a run that has all its steps, or more than are asked for now."""
    setting = f"loop.epochs={epochs}" if epochs else f"loop.steps={steps}"
    asked = f"step {step} of {steps} is done" if step == steps else f"step {step} is done, {setting} asks for {steps}"
    return f"{asked}: nothing to train; raise --config.{setting.partition('=')[0]} to go on"


def introduce(run: Run, start: Start) -> None:
    """Prints how long the run is, and what its settings cannot do well."""
    settings, size = run.settings, run.settings.data.batch_size
    per_step = f"{plural(run.batches_per_step, 'batch', 'batches')} of {plural(size, 'document')}"
    passes = run.steps * run.batches_per_step * size / len(run.training)
    notify(
        f"{plural(run.steps - start.step, 'step')} to train, {per_step} each; "
        f"{plural(len(run.training), 'row')} to learn from ({passes:.3g} passes in all)"
    )
    shown = plural(len(run.validation), "document")
    notify(
        f"validation on {shown} every {plural(run.every.validate, 'step')}, "
        f"a checkpoint every {plural(run.every.checkpoint, 'step')}"
    )
    rate = settings.optimizer.learning_rate(run.steps)
    notify(advice.on_rate(rate, run.steps))
    warnings = (*advice.on_settings(settings, run.steps, rate), *advice.on_intervals(run.every))
    notify(*(f"warning: {warning}" for warning in warnings))


def compile_steps(run: Run, shardings: Any) -> Steps:
    """The steps, jitted for the run's mesh; they donate the state."""
    model, update = run.settings.model(), run.settings.optimizer
    mesh = run.job.mesh
    jitted = partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].device_kind),
    )

    def validation(params: Any, batch: Example) -> dict[str, Pair]:
        return batch_loss(params, batch, model, update.label_smoothing)[1]

    transformer = {"optimizer": update.transformer(run.steps), "label_smoothing": update.label_smoothing}
    alone = model.without_selector()
    return Steps(
        jitted(partial(transformer_step, model=alone if model.train_policy == ALL else model, **transformer)),
        jitted(partial(transformer_step, model=alone, **transformer)),
        jitted(partial(selector_step, model=model, optimizer=update.selector(), ppo=update.ppo)),
        jax.jit(validation),
    )


def train_on(run: Run, start: Start, inputs: Inputs, checkpoints: Checkpointer) -> Outcome:
    """The loop, from `start` to the last step or to SIGTERM."""
    stop, every = Stop(), run.every
    with (
        stop,
        metric_log.MetricsWriter(run.folder.local, resume_step=start.step)
        if is_main()
        else contextlib.nullcontext() as writer,
        Progress(run.steps, initial=start.step, disable=not (run.progress and is_main())) as bar,
    ):
        training = Training(run, start, inputs, checkpoints, writer, bar)
        hooks = (
            Hook(every.log, training.log),
            Hook(every.validate, training.validate),
            Hook(every.checkpoint, training.save, when_stopped=True),
            Hook(every.checkpoint, training.publish, when_stopped=True),
        )
        for step in range(start.step + 1, run.steps + 1):
            training.step(step)
            bar.update(1)
            training.log_saved()
            # Read once: a signal from here on counts at the next step. What is logged and validated stays the
            # same whether a run is stopped or not; sums go on in the checkpoint.
            last, stopping = step == run.steps, stop.now(step)
            for hook in hooks:
                if hook.due(step, last, stopping):
                    hook.do(step, last or stopping)
            if stopping:
                break
        checkpoints.wait()
        training.log_saved()
        if writer and step == run.steps:
            run.folder.publish()
        elif writer:
            training.upload()
    return Outcome(step, training.validation, preempted=step < run.steps)


def selector_learns(step: int, loop: LoopConfig) -> bool:
    """Whether it is the selector's turn in this step."""
    return bool(loop.selector_every and step > loop.selector_start and step % loop.selector_every == 0)


def costs_of(run: Run, start: int) -> Costs:
    """The costs of a run that goes on after step `start`, none of which is known yet."""
    loop, per_step = run.settings.loop, run.settings.data.batch_size * run.batches_per_step
    programs = (
        *((ALONE,) if start < loop.selector_start else ()),
        *((TRANSFORMER,) if run.steps > loop.selector_start else ()),
        *((SELECTOR,) if loop.selector_every and run.steps > loop.selector_start else ()),
        VALIDATION,
    )
    kinds = frozenset(selector_learns(start + step, loop) for step in (1, 2))
    return Costs(loop.selector_every, len(run.validation) / per_step, programs, kinds)


class Training:
    """A training under way: its state, its figures, and what the loop does with them."""

    def __init__(
        self,
        run: Run,
        start: Start,
        inputs: Inputs,
        checkpoints: Checkpointer,
        writer: metric_log.MetricsWriter | None,
        bar: Progress,
    ) -> None:
        self._run, self._inputs, self._checkpoints = run, inputs, checkpoints
        self._writer, self._bar = writer, bar
        self._steps = compile_steps(run, start.shardings)
        self._rate = run.settings.optimizer.learning_rate(run.steps)
        self._state = start.state
        self._window = Window(start.totals)
        self._speed = Speed(self._window.tokens())
        self._compiled: set[tuple[str, int, int]] = set()  # (program, chunks, target tokens)
        self._costs = costs_of(run, start.step)
        self._given = set(run.warned)
        self._drawn = time.monotonic()
        self._validated = 0  # the step
        self.validation: dict[str, float] = {}

    def step(self, step: int) -> None:
        """One optimizer step of the transformer, and of the selector where it is its turn; times the first ones."""
        if self._costs.has_step:
            self._update(step)
            return
        seen = self._window.tokens()
        with self._timed(self._costs.steps[selector_learns(step, self._run.settings.loop)]) as seconds:
            self._update(step)
        if self._costs.has_step:
            self._say_costs(step, (self._window.tokens() - seen) / seconds[-1])

    def _update(self, step: int) -> None:
        loop = self._run.settings.loop
        name, learn = TRANSFORMER, self._steps.transformer
        if step <= loop.selector_start:
            name, learn = ALONE, self._steps.transformer_alone
        for batch in itertools.islice(self._inputs.training, self._run.batches_per_step):
            placed = self._placed(batch)
            self._compile(name, learn, self._state, placed)
            self._state, figures = learn(self._state, placed)
            self._window.push(figures)
            if selector_learns(step, loop):
                self._compile(SELECTOR, self._steps.selector, self._state, placed)
                self._state, figures = self._steps.selector(self._state, placed)
                # Its draw is another one; the transformer's own counts what was kept.
                self._window.push({k: v for k, v in figures.items() if not k.startswith("selection/")})
            self._window.push(batch_figures(batch, self._run.model.tokenizer))

    def log(self, step: int, _: bool) -> None:
        """Writes and shows the means since the last log line; warns of what they show.

        Raises:
          UserError: too many non-finite batches in a row.
        """
        totals = self._window.take()
        speed = self._speed.take(totals["tokens"][0])
        figures = metric_log.with_kept(means(totals))
        figures |= {"learning_rate": float(self._rate(step - 1)), "tokens_per_second": speed}
        if self._writer:
            self._writer.write(step, "train", figures)
        self._warn(advice.on_figures(figures, self._run.settings))
        self._bar.show(figures)
        give_up_if_not_finite(int(self._state.skipped_in_row), step, self._run.settings, self._checkpoints)

    def validate(self, step: int, _: bool) -> None:
        """Teacher-forced figures on validation documents, with the policy of inference."""
        totals: Totals = {}
        jax.block_until_ready(self._state)
        with self._timed(self._costs.validations) as seconds:
            for batch in validation_batches(self._run, self._inputs.cached_validation):
                placed = self._placed(batch)
                self._compile(VALIDATION, self._steps.validation, self._state.params, placed)
                figures = self._steps.validation(self._state.params, placed)
                totals = add_named(totals, jax.device_get(figures))
        self._bar.leave_out(seconds[-1])
        self._bar.expect(self._rest(step).validations * self._costs.validation)
        self.validation, self._validated = metric_log.with_kept(means(totals)), step
        if self._writer:
            self._writer.write(step, "validation", self.validation | {"documents": len(self._run.validation)})
        self._warn(advice.on_figures(self.validation, self._run.settings))
        self._speed = Speed(self._window.tokens())

    def save(self, step: int, _: bool) -> None:
        """Saves a checkpoint, with the step's validation figures if it has some."""
        scored = self.validation if self._validated == step else None
        meta = {"window": self._window.totals(), "rows": len(self._run.training)}
        self._checkpoints.save(step, self._state, scored, meta)

    def publish(self, _: int, ends: bool) -> None:
        """Draws the curves, not too often, and copies the small files to a bucket."""
        if not self._writer:
            return
        if ends or time.monotonic() - self._drawn > SECONDS_BETWEEN_PLOTS:
            plots.plot_training(self._run.folder.local / metric_log.METRICS, self._run.folder.local)
            self._drawn = time.monotonic()
        self.upload()

    def upload(self) -> None:
        """Copies the small files to a bucket; one may refuse for a while, and the checkpoints lie there already."""
        try:
            self._run.folder.publish()
        except UserError as error:
            self._note(f"warning: {error}; it is tried again after the next checkpoint")

    def log_saved(self) -> None:
        """Logs stall and write time of each checkpoint that finished since the last call."""
        for saved in self._checkpoints.finished():
            if self._writer:
                times = {"stall_seconds": saved.stall_seconds, "write_seconds": saved.write_seconds}
                self._writer.write(saved.step, SAVED, times)

    def _placed(self, batch: Features) -> Example:
        return self._run.job.put(batch, special_id(self._run.model.tokenizer, "pad"))

    def _compile(self, name: str, function: Any, *arguments: Any) -> None:
        """Compiles a function once per shape of batch, says so, and leaves that out of the time left and speed."""
        batch: Example = arguments[-1]
        chunks, target = batch.document.input_ids.shape[1], batch.target.ids.shape[1]
        if (name, chunks, target) in self._compiled:
            return
        self._compiled.add((name, chunks, target))
        self._note(f"compiling the {name} for {plural(chunks, 'chunk')} and {plural(target, 'target token')}")
        jax.block_until_ready(arguments[0])  # a step under way would take part of the processors, and of the time
        started = time.monotonic()
        compiled = function.lower(*arguments).compile()  # jit keeps it for the call
        seconds = time.monotonic() - started
        self._note(f"compiled in {seconds:.1f} s{memory_of(compiled)}")
        self._costs.compilations[name].append(seconds)
        self._bar.leave_out(seconds)
        self._speed.leave_out(seconds)
        shapes = {(chunks, target) for _, chunks, target in self._compiled}
        if note := advice.on_shapes(shapes, self._run.settings):
            self._warn({"shapes": note})

    @contextlib.contextmanager
    def _timed(self, seconds: list[float]) -> Iterator[list[float]]:
        """Appends the seconds of what is done within, without those of compilations."""
        started, compiled = time.monotonic(), self._costs.compiling
        yield seconds
        jax.block_until_ready(self._state)
        seconds.append(time.monotonic() - started - (self._costs.compiling - compiled))

    def _rest(self, step: int) -> Rest:
        run, data = self._run, self._run.settings.data
        shapes = len(data.chunk_buckets) * len(data.target_buckets)
        return Rest(run.steps - step, due(run.every.validate, step, run.steps), shapes)

    def _say_costs(self, step: int, tokens_per_second: float) -> None:
        rest = self._rest(step)
        if rest.steps:
            self._note(self._costs.line(tokens_per_second, rest))
        self._bar.expect(rest.validations * self._costs.validation)

    def _warn(self, warnings: Mapping[str, str]) -> None:
        for name, text in warnings.items():
            if name not in self._given:
                self._given.add(name)
                self._note(f"warning: {text}")

    def _note(self, text: str) -> None:
        if is_main():
            self._bar.note(text)


def memory_of(compiled: Any) -> str:
    """How much memory of a device a compiled program takes, where the backend says it."""
    found = compiled.memory_analysis()
    if found is None:
        return ""
    sizes = (found.argument_size_in_bytes, found.temp_size_in_bytes, found.output_size_in_bytes)
    size = sum(sizes) - found.alias_size_in_bytes
    return f"; it takes {size / GIB:.1f} GiB of memory" if size > GIB else f"; it takes {size / MIB:.0f} MiB of memory"


def batch_figures(batch: Features, tokenizer: TextTokenizer) -> Totals:
    """How many documents and targets of a batch were cut at the limits; how many tokens the tokenizer does not know."""
    rows = float(batch["row_mask"].sum())
    unknown, tokens = count_unknown(tokenizer, batch["input_ids"], batch["token_mask"])
    cut: Totals = {f"data/{name}": (float(np.sum(batch[name] > 0)), rows) for name in ("cut_tokens", "cut_target")}
    return cut | {"data/unknown": (float(unknown), float(tokens))}


def give_up_if_not_finite(in_row: int, step: int, settings: Settings, checkpoints: Checkpointer) -> None:
    """Raises UserError, with the last good checkpoint named, after too many non-finite steps in a row."""
    if in_row < settings.loop.max_skipped:
        return
    checkpoints.wait()
    good = checkpoints.latest_step()
    where = "there is no checkpoint yet" if good is None else f"the last good one is {checkpoints.folder}/{good}"
    rate = "peak_lr" if settings.optimizer.max_lr is None else "max_lr"
    raise UserError(
        f"step {step}: the loss was not finite for {in_row} batches in a row, which were skipped; {where}. "
        f"Lower config.optimizer.{rate} (now {getattr(settings.optimizer, rate)}) or set config.optimizer.clip_norm"
    )
