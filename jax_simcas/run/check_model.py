"""Whether a checkpoint does here what it does in transformers: what `jax_simcas.check` runs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints.hub import expected_shapes
from jax_simcas.checkpoints.repository import find_folder
from jax_simcas.common import cli, files, progress, tables
from jax_simcas.common.errors import NoSuchModel, UserError, prefixed
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.run import check_texts, summary_input
from jax_simcas.run.build import configured, load_model, read_sizes
from jax_simcas.run.check_here import Documents, Here, limited, searches
from jax_simcas.run.check_reading import Framed, Given, Reading, compare_frames, compare_readings
from jax_simcas.run.check_texts import Text
from jax_simcas.run.parity_cases import Check, table_of
from jax_simcas.run.workdir import CHECKPOINTS

# The most that a side needs: times the weights in float32, and bytes for programs and libraries.
MEMORY, BESIDE = 4, 2**29
ONE = "one chunk"
Texts = Sequence[tuple[str, str]]  # names and contents


class Case(NamedTuple):
    """Documents that are read alike, and what our side makes of them."""

    name: str
    given: list[Given]
    readings: list[Reading]


class Ours(NamedTuple):
    """All that the other side is held against; nothing of the weights."""

    shape: BackboneConfig
    generate: GenerateConfig
    texts: list[Text]  # of the first case
    frames: list[Framed]
    cases: list[Case]
    notes: tuple[str, ...]


def read_here(source: str, own: Texts, several: bool, longest: int | None, bar: progress.Progress) -> Ours:
    """Loads the model, and reads every text in one chunk and, with `several`, long ones in several."""
    model = configured(load_model(source))
    model = model._replace(settings=limited(model.settings, longest))
    here, documents, notes = Here.of(model), Documents.of(model), model.notes
    shape, model = model.settings.backbone_config, model._replace(params=None)
    bar.update()
    texts = check_texts.short_texts(documents.tokenizer, documents.room, own)
    given = {ONE: [documents.given(text) for text in texts]}
    if several:
        most = documents.reading.max_input_len - 2
        long = check_texts.long_texts(documents.tokenizer, documents.room, most, own)
        for align in ("mean", "shift"):
            given[f"several chunks, {align}"] = [documents.given(text, align) for text in long]
    cases = []
    for name, items in given.items():
        readings = []
        for item in items:
            readings.append(here.read(item))
            bar.update()
        cases.append(Case(name, items, readings))
    frames = [documents.frame(item) for item in given[ONE]]
    return Ours(shape, here.generate, texts, frames, cases, (*notes, *documents.unknown(given[ONE])))


def compared(ours: Ours, folder: Path, is_limited: bool, bar: progress.Progress) -> tuple[list[Check], list[str]]:
    """The same in transformers: every comparison, and notes."""
    from jax_simcas.run.check_reference import Reference

    reference = Reference(folder)
    bar.update()
    checks, notes = [], []
    if reference.tokenizer_problem:
        notes.append(
            f"warning: {folder}: transformers cannot load its tokenizer ({reference.tokenizer_problem}): the tokens of "
            "the texts are not compared"
        )
    else:
        checks.append(compare_frames(ONE, ours.frames, [reference.frame(text) for text in ours.texts]))
    options = [_options(search, is_limited or reference.longest > (ours.shape.positions or math.inf))
               for search in searches(ours.generate)]  # fmt: skip
    for case in ours.cases:
        theirs = []
        for given in case.given:
            theirs.append(reference.read(given, options))
            bar.update()
        checks += compare_readings(case.name, case.readings, theirs)
        notes += meaningless(case.name, theirs)
    return checks, notes


def _options(search: GenerateConfig, with_lengths: bool) -> dict[str, Any]:
    """What `generate` of transformers is told; all else is the checkpoint's, as transformers reads it."""
    options: dict[str, Any] = {"num_beams": search.num_beams, "do_sample": False, "num_return_sequences": 1}
    if with_lengths:
        options |= {"max_length": search.max_length, "min_length": search.min_length or 0}
    return options


def meaningless(case: str, readings: Sequence[Reading]) -> Iterator[str]:
    """A warning where the model predicts no better than chance."""
    loss, chance = float(np.mean([reading.loss for reading in readings])), math.log(readings[0].logits.shape[1])
    if not loss < chance:
        yield (
            f"warning: {case}: in transformers a loss of {loss:.1f} nats per token, where guessing has {chance:.1f}: "
            "are the weights trained, and is config.json theirs?"
        )


def memory_line(source: str, shape: BackboneConfig) -> Iterator[str]:
    """The size of the model, and the memory that checking it takes; a warning where there is less."""
    count = sum(math.prod(size) for name, size in expected_shapes(shape).items() if not name.startswith("selector/"))
    needed = 4 * MEMORY * count + BESIDE
    line = f"{source}: {shape.family}, {count / 1e6:,.1f} M parameters; up to {needed / tables.GIB:.1f} GiB of memory"
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield line if needed < free else f"warning: {line}, and {free / tables.GIB:.1f} GiB are free"


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare_jax()
    if importlib.util.find_spec("torch") is None:
        raise UserError("jax_simcas.check needs PyTorch; pip install 'jax_simcas[torch]'")
    if arguments.json:
        files.check_place(Path(arguments.json), "--json")
    own = [(name, summary_input.read_document(name)) for name in arguments.text]
    with prefixed("MODEL=", NoSuchModel):
        source = arguments.model
        if not (Path(source) / CHECKPOINTS).is_dir():
            source = str(find_folder(source)[0])
    with prefixed("--reference=", NoSuchModel):
        folder = Path(source) if arguments.reference is None else find_folder(arguments.reference)[0]
    if (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"{folder}: a workdir, which transformers cannot read: check what `python -m jax_simcas.convert` makes of "
            "it (--to=hf), or give a model to compare with as --reference"
        )
    for note in memory_line(arguments.model, read_sizes(source)):
        print(note, file=sys.stderr)
    readings = len(own or check_texts.SHORT) + 2 * arguments.long * max(len(own), 1)
    with progress.Progress(2 * (1 + readings), unit="steps") as bar:
        ours = read_here(source, own, arguments.long, arguments.max_length, bar)
        checks, notes = compared(ours, folder, arguments.max_length is not None, bar)
    for note in (*ours.notes, *notes):
        print(note, file=sys.stderr)
    failed = [check for check in checks if not check.holds]
    print(table_of(checks))
    print(f"\n{verdict(arguments, checks, failed)}")
    if arguments.json:
        written = {"model": arguments.model, "reference": arguments.reference or arguments.model}
        written |= {"model_type": ours.shape.family, "holds": not failed, "notes": [*ours.notes, *notes]}
        rows = [check._asdict() | {"holds": check.holds} for check in checks]
        text = json.dumps(files.json_ready(written | {"checks": rows}), indent=1) + "\n"
        files.replace_file(Path(arguments.json), text.encode())
    return cli.EXIT_ERROR if failed else 0


def verdict(arguments: Any, checks: Sequence[Check], failed: Sequence[Check]) -> str:
    """The last line."""
    other = "it does" if arguments.reference is None else f"{arguments.reference} does"
    if not failed:
        return f"{arguments.model} does here what {other} in transformers: all {len(checks)} comparisons hold"
    names = ", ".join(dict.fromkeys(check.quantity for check in failed))
    return (
        f"{arguments.model} does NOT do here what {other} in transformers: {len(failed)} of {len(checks)} comparisons "
        f"are beyond their tolerance ({names})"
    )
