"""What stands before the first step: model, rows and folder of a run, and the state that it starts or resumes from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jax_simcas.backbones.families import replaced
from jax_simcas.checkpoints.hub import GENERATION, save_passengers
from jax_simcas.checkpoints.repository import PASSENGERS
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common import files, metric_log
from jax_simcas.common.errors import UserError
from jax_simcas.common.pairs import Totals
from jax_simcas.common.progress import Progress
from jax_simcas.common.sharding import state_shardings
from jax_simcas.common.tables import plural
from jax_simcas.data import batches
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.features import Features
from jax_simcas.data.rows import First, RowSource, as_printed
from jax_simcas.method.steps import init_state
from jax_simcas.run import config as config_lib
from jax_simcas.run import generation as generation_lib
from jax_simcas.run import plan
from jax_simcas.run.build import ROLES, Model, new_model, open_source, pipeline_config
from jax_simcas.run.config import Settings
from jax_simcas.run.processes import Job, is_main, notify, wait_for_all
from jax_simcas.run.workdir import CONFIG, TOKENIZER, Workdir

SAVED = "checkpoint"  # the split of metrics.jsonl with one line per checkpoint on disk
# A resumed run may differ in these: they change how long and how often, not what a step does, unless a schedule of the
# user's own depends on the number of steps.
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
    "data.fit_buckets",
    "data.max_bad_rows",
    "data.rouge_tokenizer",
    "data.workers",
    "data.cache",
    "generate.",
    "mesh.",
)


class Run(NamedTuple):
    """A training run: what it is made of, and where it lies."""

    job: Job
    folder: Workdir
    begun: bool  # whether it has taken steps in the folder before
    model: Model
    steps: int  # optimizer steps, as `loop.steps` or `loop.epochs` has them
    every: plan.Intervals
    training: RowSource
    validation: RowSource
    cache: Path
    progress: bool
    warned: frozenset[str]  # warnings that have been given

    @property
    def settings(self) -> Settings:
        return self.model.settings

    @property
    def batches_per_step(self) -> int:
        return self.settings.optimizer.accumulate_step


class Start(NamedTuple):
    """Where training starts: after `step`, with the sums since the last log line."""

    step: int
    state: Any
    shardings: Any
    totals: Totals


class Inputs(NamedTuple):
    """Training batches from the first one that is due; rows and tokens on disk that validation reads."""

    training: Iterator[Features]
    cached_validation: cache_lib.TokenCache | None


def prepare(job: Job, settings: Settings, folder: Workdir, cache: Path, progress: bool) -> Run:
    """Makes the model and opens the rows; writes nothing to the folder, which another run may still take.

    Raises:
      UserError: the folder holds another run; model, tokenizer or rows that cannot be used.
    """
    begun = folder.begun()
    # Before weights, which may have to be fetched.
    training = open_source(settings, settings.data.train_split, cache)
    validation = open_source(settings, settings.data.validation_split, cache)
    # A tokenizer that a first attempt left, and that no step has used, may belong to other settings.
    model = new_model(settings, cache, job.mesh, folder.local / TOKENIZER if begun else None)
    if begun:
        model = as_begun(model, folder.local)
        check_same_run(model.settings, folder.local)
    settings = model.settings
    notify(*(note for rows in (training, validation) for note in as_printed(rows.notes)))
    if settings.data.train_rows:
        training = First(training, settings.data.train_rows)
    validation = First(validation, settings.loop.eval_documents)
    few = plan.on_few_rows(settings, len(training))
    settings, on_rows = plan.with_buckets(settings, training, validation, model.tokenizer)
    steps = plan.steps_of(settings, len(training))
    settings = plan.with_length(settings, steps)
    notify(*few, *on_rows.values())
    model = model._replace(settings=config_lib.check(settings, sizes_known=True))
    every = plan.intervals_of(settings.loop, steps)
    return Run(job, folder, begun, model, steps, every, training, validation, cache, progress, frozenset(on_rows))


def as_begun(model: Model, workdir: Path) -> Model:
    """The model with the special tokens that the run began with, which an earlier version may have read otherwise.

    The same of what the settings leave open, and of the policies where no selector was there and none learns.
    """
    path = workdir / CONFIG
    if not path.exists():
        return model
    begun = config_lib.read_json(path)
    settings = config_lib.made(lambda: plan.as_recorded(model.settings, begun), "config.optimizer")
    if begun.family == settings.family:
        # One that is not the tokenizer's was given for this start: `check_same_run` tells it.
        given = {
            f"{role}_token_id"
            for role in ("pad", "bos", "eos")
            if getattr(settings.backbone_config, f"{role}_token_id") != tokenizer_lib.special_id(model.tokenizer, role)
        }
        tokens = {name: getattr(begun.backbone_config, name) for name in ("eos_token_ids", *ROLES) if name not in given}
        settings = settings.with_backbone_config(replaced(settings.backbone_config, **tokens))
    if not model.has_selector and not settings.loop.selector_every:
        policies = {name: getattr(begun.simcas, name) for name in ("policy", "train_policy", "budget")}
        settings = dataclasses.replace(settings, simcas=settings.simcas.replace(**policies))
    return model._replace(settings=settings)


def check_same_run(settings: Settings, workdir: Path) -> None:
    """Raises UserError if the folder holds a run that differs in more than length, frequency and devices."""
    path = workdir / CONFIG
    if not path.exists():
        return
    changed = config_lib.differences(config_lib.read_json(path), settings)
    changed = [line for line in changed if not line.startswith(FREE_ON_RESUME)]
    if changed:
        raise UserError(
            f"--workdir={workdir} holds a run with other settings ({'; '.join(changed)}): use these, or another workdir"
        )


def restore_or_start(run: Run, checkpoints: Checkpointer) -> Start:
    """The newest good checkpoint on the devices there are now, or a fresh state of the model's parameters.

    Raises:
      UserError: there are checkpoints but no good one; there were some, as metrics.jsonl records, and none is left.
    """
    model, update, seed = run.settings.model(), run.settings.optimizer, run.settings.loop.seed

    def fresh(params: Any) -> Any:
        optimizers = (update.transformer(run.steps), update.selector())
        return init_state(model.backbone.stack(params), *optimizers, jax.random.key(seed))

    shapes = jax.eval_shape(fresh, run.model.params)
    shardings = state_shardings(run.job.mesh, shapes, model.sharding_rules)
    placed = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
    restored = checkpoints.restore(jax.tree.map(placed, shapes, shardings))  # no fresh state takes memory beside it
    warnings = checkpoints.warnings if restored is None else restored.warnings
    gone = check_none_lost(run.folder.local, checkpoints, None if restored is None else restored.step)
    if restored is None:
        notify(*run.model.notes)
    notify(*(f"warning: {warning}" for warning in (*warnings, *gone)))
    if restored is None:
        return Start(0, jax.jit(fresh, out_shardings=shardings)(run.model.params), shardings, {})
    totals: Totals = {name: tuple(pair) for name, pair in restored.meta["window"].items()}
    return Start(restored.step, restored.state, shardings, totals)


def check_none_lost(workdir: Path, checkpoints: Checkpointer, restored: int | None) -> list[str]:
    """Warns if metrics.jsonl records a newer checkpoint than the restored one that no longer exists.

    Raises:
      UserError: none of those recorded is left: to start over in silence would waste them.
    """
    path, folder = workdir / metric_log.METRICS, checkpoints.folder
    rows = metric_log.read_metrics(path) if path.exists() else []
    newest = max((row["step"] for row in rows if row["split"] == SAVED), default=0)
    if newest and restored is None:
        raise UserError(
            f"{folder}: no checkpoint there, but {path} records one of step {newest}: "
            f"bring it back, or move {workdir} away to start over"
        )
    lost = restored is not None and newest > restored and not (folder / str(newest)).exists()
    return [f"{folder / str(newest)}: metrics.jsonl records it, and it is gone"] if lost else []


def open_inputs(run: Run, step: int) -> Inputs:
    """Training's batches from `step` on, the first of them made: rows that cannot be read end here."""
    config = pipeline_config(run.settings)
    cached_training, cached_validation = token_caches(run, config)
    training = batches.make_iterator(
        run.training,
        run.model.tokenizer,
        config,
        training=True,
        start=step * run.batches_per_step,
        places=run.job.places,
        cache=cached_training,
    )
    return Inputs(_with_first_made(training), cached_validation)


def _with_first_made(iterator: Iterator[Features]) -> Iterator[Features]:
    first = next(iterator)

    def every() -> Iterator[Features]:
        yield first
        yield from iterator

    return every()


def validation_batches(run: Run, cached: cache_lib.TokenCache | None) -> Iterator[Features]:
    """The validation documents, once, in order."""
    config = pipeline_config(run.settings)
    return batches.make_iterator(
        run.validation, run.model.tokenizer, config, training=False, places=run.job.places, cache=cached
    )


def token_caches(
    run: Run, config: batches.PipelineConfig
) -> tuple[cache_lib.TokenCache | None, cache_lib.TokenCache | None]:
    """The tokens of training's and validation's rows on disk, where that pays."""
    if not (run.settings.data.cache and run.training.fingerprint):
        return None, None
    cached = None
    if cache_lib.reshuffles_parts(run.training, config):
        notify(
            "note: training's tokens are not cached: documents are joined in another order each time (data.parts_at)"
        )
    else:
        passes = run.steps * config.batch_size * run.batches_per_step / len(run.training)
        cached = cached_tokens(run, run.training, config, passes)
    # A few rows in order: not worth starting processes.
    in_process = dataclasses.replace(config, workers=0, bucket_batches=0)
    return cached, cached_tokens(run, run.validation, in_process, run.steps / run.every.validate)


def cached_tokens(
    run: Run, source: RowSource, config: batches.PipelineConfig, passes: float
) -> cache_lib.TokenCache | None:
    """The tokens of rows on disk, made first if they are read more than once; None, and why, if they cannot be."""
    options = (source, run.model.tokenizer, config, run.cache / "tokens")
    found = cache_lib.find(*options)
    if found or (passes <= 1 and not config.bucket_batches):
        return found
    try:
        with Progress(len(source), unit="rows tokenised", disable=not (run.progress and is_main())) as bar:
            made = cache_lib.token_cache(*options, bar.update)
    except OSError as error:
        notify(
            f"warning: {run.cache / 'tokens'}: tokens cannot be cached there ({error.strerror or error}): rows are "
            "tokenised whenever they are read; free the disk, set JAX_SIMCAS_CACHE, or --config.data.cache=False"
        )
        return None
    if old := cache_lib.of_first_format(*options):
        notify(f"note: {old}: tokens of an earlier version, which framed documents otherwise; it can be deleted")
    notify(f"the tokens of {plural(len(source), 'row')} are cached in {made.folder} ({made.size / 1e6:.1f} MB)")
    return made


def claim(run: Run) -> None:
    """Writes settings and tokenizer to the folder: from here on it belongs to this run."""
    wait_for_all("every process has read what was there")
    if is_main():
        settings = run.settings
        files.replace_file(run.folder.local / CONFIG, config_lib.to_json(settings).encode())
        generation = generation_lib.to_json(run.model.generation, settings.generate, settings.backbone_config)
        files.replace_file(run.folder.local / GENERATION, generation.encode())
        save_passengers(run.folder.local / PASSENGERS, run.model.passengers)
        if not run.begun:
            shutil.rmtree(run.folder.local / TOKENIZER, ignore_errors=True)  # of a first attempt that failed
        tokenizer_lib.save_tokenizer(run.model.tokenizer, run.folder.local / TOKENIZER)
