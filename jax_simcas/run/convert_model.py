"""Rewriting a model in another layout, for a folder or for the hub: what `jax_simcas.convert` runs."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax_simcas
from jax_simcas.backbones import families
from jax_simcas.backbones.hf_config import GENERATED
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints import hub, repository
from jax_simcas.checkpoints.hub import Pretrained
from jax_simcas.checkpoints.repository import CARD, CONFIG, PASSENGERS, Repository
from jax_simcas.common import cli, files
from jax_simcas.common.errors import NoSuchModel, UserError, prefixed
from jax_simcas.common.tables import MIB
from jax_simcas.run import generation, model_card
from jax_simcas.run.build import load_weights
from jax_simcas.run.provenance import TOKENIZER_CONFIG, published, without_paths
from jax_simcas.run.workdir import CHECKPOINTS


class Converted(NamedTuple):
    """names: of the files in the folder that make up the model. weights: one of them."""

    found: Pretrained
    weights: Path
    names: tuple[str, ...]


def tokenizer_files(folder: Path) -> Iterable[Path]:
    """The files of the tokenizer in `folder`."""
    return sorted(path for path in folder.iterdir() if path.is_file() and repository.is_tokenizer_file(path.name))


def convert(source: str, target: Path, layout: str, step: Any = "best", to: Repository | None = None) -> Converted:
    """Writes config.json, generation_config.json, weights in `layout`, tokenizer, model card and our settings.

    A model card whose text someone has changed stays.

    Args:
      step: of a workdir.
      to: a repository for which this is done: then nothing names a place on this machine.

    Raises:
      UserError: an unreadable source; a target that cannot be written or that holds weights in another layout.
    """
    others = [name for name in hub.WEIGHTS if name != hub.LAYOUTS[layout] and (target / name).exists()]
    if others or (target / CHECKPOINTS).exists():
        held = others[0] if others else CHECKPOINTS
        raise UserError(f"{target}: holds {held} already, which would be read in place of the new file; choose another")
    files.check_place(target, "DST", folder=True)
    with prefixed("SRC=", NoSuchModel):
        found = load_weights(source, step)
    backbone = (found.extra or {}).get("backbone", families.name_of(found.config))
    if backbone not in families.FAMILIES:
        raise UserError(f"{source}: config.backbone={backbone!r}: a backbone of your own has none of these layouts")
    notes = notes_on_config(found.config, source)
    settings, on_generation = generation.generation_of(found, source)
    notes += on_generation
    tokenizer = list(tokenizer_files(found.folder))
    extra, texts = found.extra, {}
    if to is not None:
        extra = published(found.extra, run_of(source))
        texts = {path.name: without_paths(path) for path in tokenizer if path.name == TOKENIZER_CONFIG}
    texts[hub.GENERATION] = generation.to_json(generation.raw_generation(found), settings, found.config)
    card, more = card_for(source, found, target, layout, step, to)
    if card is not None:
        texts[CARD] = card
    copy = [path for path in tokenizer if path.name not in texts and path.parent.resolve() != target.resolve()]
    weights = hub.save(target, found.config, found.params, layout, extra or None, copy, texts, found.passengers)
    names = [CONFIG, *([hub.EXTRA] if extra else []), *(path.name for path in tokenizer), *texts, weights.name]
    names += [PASSENGERS] if (target / PASSENGERS).is_file() else []
    names += [CARD] if changed_card(target) else []
    found = found._replace(notes=(*found.notes, *notes, *more))
    return Converted(found, weights, tuple(dict.fromkeys(names)))


def notes_on_config(config: BackboneConfig, source: str) -> tuple[str, ...]:
    """A note if transformers makes another model of the config.json of this one, as settings from scratch allow.

    Raises:
      UserError: a setting that has no place in it, so that the model would not be read back either.
    """
    as_dict: Any = dataclasses.asdict  # a shape is a dataclass, which its protocol cannot say
    held, written = as_dict(config), config.to_hf()

    def changed(fields: Mapping[str, Any]) -> list[str]:
        again = as_dict(type(config).from_hf(dict(fields)))
        return [name for name in held if name not in (*GENERATED, "model_type") and again[name] != held[name]]

    if lost := changed(written):
        raise UserError(
            f"{source}: {families.name_of(config)}.{lost[0]}={held[lost[0]]!r} has no place in the config.json of a "
            f"{config.family}: transformers, and this package, would read another model"
        )
    # Of `normalize_before` alone transformers goes by the model_type; the other field is ours.
    others = changed({name: value for name, value in written.items() if name != "final_layer_norm"})
    if not others:
        return ()
    wrong = ", ".join(f"{name}={held[name]}" for name in others)
    return (f"warning: {source}: transformers has no {config.family} with {wrong}, and computes another model",)


def run_of(source: str) -> Path | None:
    """The workdir that is converted; None for a folder of weights or a hub id."""
    return Path(source) if (Path(source) / CHECKPOINTS).is_dir() else None


def changed_card(folder: Path) -> str | None:
    """The model card in a folder, if someone has written or changed it."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return None if model_card.is_renewable(text) else text


def card_for(
    source: str, found: Pretrained, target: Path, layout: str, step: Any, to: Repository | None
) -> tuple[str | None, list[str]]:
    """README.md of an export; None where one stays that someone has changed. And notes."""
    if changed_card(target) is not None:
        return None, [f"note: {target / CARD}: stays as it is: it was not written by jax_simcas, or was changed"]
    name, address = target.resolve().name, model_card.FOLDER
    before = (target / CARD).read_text(encoding="utf-8") if (target / CARD).is_file() else ""
    if to is not None:
        name, address, before = to.hub_id.name.rpartition("/")[2], str(to.hub_id), to.card or before
        if not model_card.is_renewable(before):
            reason = "stays as it is: it was not written by jax_simcas, or was changed; delete it there for a new one"
            return None, [f"note: {to.hub_id}: {CARD} {reason}"]
    run, own = run_of(source), Path(source) / CARD
    subject = model_card.Subject(found, layout, name, address, source, run)
    if run is not None:
        evaluations, notes = model_card.evaluations_of(run, found.training.get("step"), step == "best")
        return model_card.renewed(before, model_card.write(subject._replace(evaluations=tuple(evaluations)))), notes
    card = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    if not model_card.is_renewable(card):
        return card, []
    card = model_card.readdressed(card, subject) if card.strip() else model_card.write(subject)
    return model_card.renewed(before, card), []


@contextmanager
def folder_for(target: str | None) -> Iterator[Path]:
    """The folder that was asked for, or one that is gone afterwards."""
    if target is not None:
        yield Path(target)
        return
    with tempfile.TemporaryDirectory(prefix="jax_simcas-") as folder:
        yield Path(folder)


def push(arguments: Any) -> int:
    """Converts for the hub, and uploads; with --dry-run, tells what it would upload."""
    hub_id, layout = arguments.push, arguments.to
    to = Repository(hub_id, exists=False)
    if not arguments.dry_run:
        with prefixed("--push="):
            to = repository.look(hub_id, hub.LAYOUTS[layout], arguments.private)
    with folder_for(arguments.target) as folder:
        converted = convert(arguments.source, folder, layout, arguments.step, to)
        print_notes(converted.found.notes)
        if arguments.dry_run:
            size = sum((folder / name).stat().st_size for name in converted.names)
            listed = ", ".join(converted.names)
            print(f"nothing was uploaded; {folder} holds what would be, {size / MIB:,.1f} MiB: {listed}")
            return 0
        step = converted.found.training.get("step")
        default = f"Upload {'a model' if step is None else f'step {step}'} with jax_simcas {jax_simcas.__version__}"
        with prefixed("--push="):
            uploaded = repository.upload(to, folder, converted.names, arguments.message or default, arguments.private)
    print_notes(uploaded.notes)
    source = described(arguments.source, converted.found)
    unchanged = "" if uploaded.changed else ", where it was already: nothing has changed"
    print(f"{source} -> {uploaded.address}{unchanged}")
    print(f'load it with jax_simcas.load("{hub_id}") or --model={hub_id}')
    return 0


def print_notes(notes: Iterable[str]) -> None:
    """Notes to standard error."""
    for note in notes:
        print(note, file=sys.stderr)


def described(source: str, found: Pretrained) -> str:
    """What was converted, in words."""
    return f"{source} ({'with its selector' if 'selector' in found.params else 'which has no selector'})"


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare_jax()
    if arguments.push is not None:
        return push(arguments)
    converted = convert(arguments.source, Path(arguments.target), arguments.to, arguments.step)
    print_notes(converted.found.notes)
    print(f"{described(arguments.source, converted.found)} -> {converted.weights}")
    return 0
