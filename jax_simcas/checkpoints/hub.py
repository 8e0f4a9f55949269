"""Pretrained folders in and out: Hugging Face's, the released trainer's (xjw-nlp/SimCAS), Flax msgpack.

How PyTorch's names become paths in the tree is each family's (`weights.py` in its folder).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from jax_simcas.backbones import families
from jax_simcas.backbones.bart.config import BART_BASE, BartConfig
from jax_simcas.backbones.ops.naming import Flat, StateDict
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints.repository import (
    BIN_INDEX,
    CONFIG,
    EXTRA,
    GENERATION,
    HUB_BIN,
    MSGPACK,
    PASSENGERS,
    RELEASED_BIN,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    WEIGHTS,
    find_folder,
    parts_of,
    read_object,
)
from jax_simcas.common import files, trees
from jax_simcas.common.errors import UserError, first_line, first_of
from jax_simcas.common.trees import Params
from jax_simcas.method.chunk_position import NAME, ChunkPosition
from jax_simcas.method.model import SimCAS, encoder_of, init_params
from jax_simcas.method.select import init_selector

RELEASED = ("bart", "mbart", "plbart")  # model_types whose names are those of the released trainer
SAFE_TORCH = "2.6"  # older ones may run code in a file that they read with weights_only=True
LAYOUTS = {"hf": SAFETENSORS, "flax": MSGPACK, "released": RELEASED_BIN}


class Pretrained(NamedTuple):
    """What a checkpoint holds.

    extra: its jax_simcas.json. notes: for the user. generation: the content of its generation_config.json
    (generation_file), or of the config.json in which transformers 4 kept generation settings. training: of a run's
    checkpoint its `step`, and the `rows` that it learns from. passengers: weights that exports keep, by PyTorch names.
    """

    config: BackboneConfig
    params: Params
    folder: Path
    extra: dict[str, Any]
    notes: tuple[str, ...]
    generation: Mapping[str, Any] = MappingProxyType({})
    generation_file: bool = False
    training: Mapping[str, int] = MappingProxyType({})
    passengers: Mapping[str, np.ndarray] = MappingProxyType({})


def load(source: str | os.PathLike[str]) -> Pretrained:
    """Reads a local folder, or fetches a hub id; `params` has no "selector" if the checkpoint has none.

    Raises:
      UserError: nothing there, unreadable, or parameters missing, unexpected or mis-shaped: all in one line.
    """
    folder, notes = find_folder(str(source))
    config, generation = read_config(folder), read_generation(folder)
    path, flat, passengers = _read_weights(folder, config)
    beside = [name for name in (HUB_BIN, BIN_INDEX) if path.name == MSGPACK and (folder / name).is_file()]
    if beside:
        other = f"{beside[0]} lies beside it, which transformers reads, and may hold another model"
        notes = (*notes, f"warning: {path} is read; {other}: delete the one that is out of date")
    config = families.FAMILIES[families.name_of(config)].fitted(config, flat)
    _check_shapes(flat, config, path)
    flat = {name: np.asarray(value, np.float32) for name, value in flat.items()}
    broken = [name for name, value in flat.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: not finite: {first_of(broken)}")
    extra = read_object(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    held = read_object(folder / CONFIG) if generation is None else generation
    params = trees.nest(flat)
    return Pretrained(config, params, folder, extra, notes, held, generation is not None, passengers=passengers)


def read_config(folder: Path) -> BackboneConfig:
    """The shape and the tokens of the model in `folder`.

    Raises:
      UserError: no config.json, or one of a model that is not supported.
    """
    path = folder / CONFIG
    config = read_object(path)
    model_type = config.get("model_type", "bart")
    family = families.MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(families.MODEL_TYPES)
        raise UserError(f"{path}: model_type is {model_type!r}, expected one of {known}")
    shape: BackboneConfig = families.FAMILIES[family].config.from_hf(config, str(path), read_generation(folder))
    return shape


def read_generation(folder: Path) -> dict[str, Any] | None:
    """The content of generation_config.json; None without one."""
    path = folder / GENERATION
    return read_object(path) if path.is_file() else None


def from_pretrained(
    source: str | os.PathLike[str], key: jax.Array, chunk_position: ChunkPosition | None = None
) -> Pretrained:
    """The weights of a folder in any layout or of a hub id, with a fresh selector where they have none.

    Args:
      key: for what is fresh, which `notes` names.
      chunk_position: whose parameters are added, where the model has one.

    Raises:
      UserError: nothing there, unreadable, or parameters missing, unexpected or mis-shaped: all in one line.
    """
    return fill_missing_params(load(source), source, key, chunk_position)


def fill_missing_params(
    loaded: Pretrained, source: str | os.PathLike[str], key: jax.Array, chunk_position: ChunkPosition | None = None
) -> Pretrained:
    """Adds a fresh selector, and the parameters of `chunk_position`, to a checkpoint without them; notes each.

    What is there is not checked against `chunk_position`.
    """
    params, notes = dict(loaded.params), list(loaded.notes)
    if "selector" not in params:
        params["selector"] = jax.device_get(init_selector(key, loaded.config.width))
        notes.append(f"{source}: no selector in this checkpoint; a fresh one was made")
    position_key = jax.random.fold_in(key, 1)
    backbone = families.backbone_for(loaded.config)
    fresh = {} if chunk_position is None else chunk_position.init(position_key, backbone)
    if fresh and NAME not in encoder_of(params, backbone):
        params = trees.updated(params, backbone.encoder_path, jax.device_get(fresh))
        notes.append(f"{source}: no chunk positions in this checkpoint; fresh ones were made")
    return loaded._replace(params=params, notes=tuple(notes))


@cache
def expected_shapes(config: BackboneConfig) -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of every parameter, selector included."""
    tree = jax.eval_shape(lambda: init_params(jax.random.key(0), SimCAS(families.backbone_for(config))))
    return MappingProxyType({name: leaf.shape for name, leaf in trees.by_path(tree).items()})


def _check_shapes(flat: Flat, config: BackboneConfig, where: Path) -> None:
    expected = dict(expected_shapes(config))
    if not any(name.startswith("selector/") for name in flat):
        expected = {name: shape for name, shape in expected.items() if not name.startswith("selector/")}
    positions = "/".join((*families.backbone_for(config).encoder_path, NAME, "embedding"))
    if positions in flat:
        expected[positions] = (*flat[positions].shape[:1], config.width)
    missing = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - flat.keys())]
    unexpected = [f"unexpected {name}" for name in sorted(flat.keys() - expected.keys())]
    both = sorted(expected.keys() & flat.keys())
    wrong = [problem for name in both if (problem := _mismatch(name, flat[name], expected[name]))]
    problems = [first_of(kind) for kind in (missing, unexpected, wrong) if kind]
    if problems:
        tables = [name for name in both if expected[name][:1] == (config.vocab_size,) and flat[name].ndim == 2]
        rows = next((len(flat[name]) for name in tables if len(flat[name]) != config.vocab_size), None)
        if rows is not None:
            problems.insert(0, f"a vocabulary of {rows} tokens where config.json says {config.vocab_size}")
        raise UserError(f"{where} does not fit its config.json: {'; '.join(problems)}")


def _mismatch(name: str, value: np.ndarray, shape: tuple[int, ...]) -> str:
    """How the value differs from a floating-point array of that shape; "" if it does not."""
    if value.shape != shape:
        return f"{name} has shape {list(value.shape)}, expected {list(shape)}"
    floating = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    return "" if floating else f"{name} is {value.dtype}, expected floating point"


def _read_weights(folder: Path, config: BackboneConfig) -> tuple[Path, Flat, StateDict]:
    """The file, the parameters in it, and its passengers."""
    family = families.FAMILIES[families.name_of(config)]

    def of(read: Callable[[Path], StateDict]) -> Callable[[Path], tuple[Flat, StateDict]]:
        def parts(path: Path) -> tuple[Flat, StateDict]:
            weights = read(path)
            return family.from_state_dict(weights, config, path), family.passengers(weights)

        return parts

    readers: dict[str, Callable[[Path], tuple[Flat, StateDict]]] = {
        SAFETENSORS: of(_safetensors),
        SAFETENSORS_INDEX: of(partial(_sharded, _safetensors)),
        MSGPACK: lambda path: (family.completed(_msgpack(path), config), read_passengers(path.with_name(PASSENGERS))),
        HUB_BIN: of(_torch),
        BIN_INDEX: of(partial(_sharded, _torch)),
        RELEASED_BIN: of(_torch),
    }
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name, *readers[name](folder / name)
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHTS)}")


def _safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    files.check_no_pointer(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _sharded(read: Callable[[Path], StateDict], path: Path) -> StateDict:
    out: StateDict = {}
    for name in parts_of(path):
        out |= read(path.with_name(name))
    return out


def _msgpack(path: Path) -> Flat:
    files.check_no_pointer(path)
    try:
        flat = trees.by_path(serialization.msgpack_restore(path.read_bytes()))
    except Exception as error:  # msgpack raises many kinds on damage
        raise UserError(f"{path}: not a readable Flax msgpack file ({error or type(error).__name__})") from None
    if not all(isinstance(value, np.ndarray) for value in flat.values()):
        raise UserError(f"{path}: holds something other than arrays")
    return flat


def _import_torch(what: str, remedy: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{what} needs torch; install it, or {remedy}") from None
    return torch


def _torch(path: Path) -> StateDict:
    files.check_no_pointer(path)
    torch = _import_torch(f"{path}: reading it", "convert the weights to safetensors")
    if torch.__version__ < SAFE_TORCH:
        raise UserError(
            f"{path}: reading it needs torch {SAFE_TORCH} or newer, as {torch.__version__} may run code in it; update "
            "torch, or convert the weights to safetensors"
        )
    try:
        weights = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:  # its message advises to run what the file holds
        raise UserError(
            f"{path}: not readable as weights only (damaged, or with code in it, which is never run)"
        ) from None
    except Exception as error:  # torch raises many kinds on damage
        raise UserError(f"{path}: not readable as weights only ({first_line(error)})") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: not a dictionary of tensors")
    return {k: (v.float() if v.is_floating_point() else v).detach().numpy() for k, v in weights.items()}


def from_state_dict(
    weights: StateDict, where: str | os.PathLike[str] = "state dict", config: BackboneConfig = BART_BASE
) -> Params:
    """PyTorch names and layouts -> the tree of the model's family.

    Raises:
      UserError: weights that the family cannot have, such as a head of its own in a BART.
    """
    return trees.nest(families.FAMILIES[families.name_of(config)].from_state_dict(weights, config, where))


def to_state_dict(params: Params, config: BackboneConfig = BART_BASE) -> StateDict:
    """The tree under the PyTorch names of the model's family."""
    return families.FAMILIES[families.name_of(config)].to_state_dict(params, config)


def save(
    folder: Path,
    config: BackboneConfig,
    params: Params,
    layout: str = "hf",
    extra: dict[str, Any] | None = None,
    copy: Iterable[Path] = (),
    texts: Mapping[str, str] = MappingProxyType({}),
    passengers: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Path:
    """Writes config.json and the weights in `layout` (hf, flax, released), each file atomically.

    Args:
      params: with stacked layers, as in training, or one by one.
      extra: content of jax_simcas.json.
      copy: further files (a tokenizer's) to copy beside them.
      texts: further files to write, name -> content.
      passengers: further weights by PyTorch names, which lie in a file of their own beside "flax".

    Raises:
      UserError: unknown layout, unwritable folder; for "released", another family than BART, or torch missing.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if layout == "released":
        if not isinstance(config, BartConfig) or config.family not in RELEASED:
            raise UserError(
                f"{folder}: the released layout is BART's, and this is a {config.family}; choose hf or flax"
            )
        _import_torch(f"{folder}: the released layout", "choose hf")
    try:
        _replace(folder / CONFIG, partial(_write_json, value=config.to_hf()))
        if extra is not None:
            _replace(folder / EXTRA, partial(_write_json, value=extra))
        for name, content in texts.items():
            files.replace_file(folder / name, content.encode())
        for file in copy:
            _replace(folder / file.name, partial(shutil.copyfile, file))
        target = folder / LAYOUTS[layout]
        unstacked = families.backbone_for(config).unstack(params)
        _replace(target, partial(_WRITERS[layout], config=config, params=unstacked, passengers=passengers))
        (folder / PASSENGERS).unlink(missing_ok=True)
        if layout == "flax":
            save_passengers(folder / PASSENGERS, passengers)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); give a folder on a disk with space that you may "
            "write to"
        ) from None
    return target


def save_passengers(path: Path, passengers: Mapping[str, np.ndarray]) -> None:
    """Writes weights that are only kept, or nothing where there are none."""
    if passengers:
        _replace(path, partial(_write_arrays, weights=dict(passengers)))


def read_passengers(path: Path) -> StateDict:
    """What `save_passengers` wrote.

    Raises:
      UserError: a damaged file.
    """
    return _safetensors(path) if path.is_file() else {}


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    with files.replacing(target) as temporary:
        write(temporary)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_safetensors(
    path: Path, config: BackboneConfig, params: Params, passengers: Mapping[str, np.ndarray]
) -> None:
    _write_arrays(path, {**passengers, **to_state_dict(params, config)})


def _write_arrays(path: Path, weights: StateDict) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # for a full disk too
        raise OSError(str(error)) from None


def _write_msgpack(path: Path, config: BackboneConfig, params: Params, passengers: Mapping[str, np.ndarray]) -> None:
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, params)))


def _write_released(path: Path, config: BackboneConfig, params: Params, passengers: Mapping[str, np.ndarray]) -> None:
    import torch

    weights = to_state_dict(params, config)
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        weights[f"{name}.weight"] = weights["model.shared.weight"]
    tensors = {f"model.{name}": torch.from_numpy(np.array(value)) for name, value in weights.items()}
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # for a full disk too
        raise OSError(first_line(error)) from None


_WRITERS = {"hf": _write_safetensors, "flax": _write_msgpack, "released": _write_released}
