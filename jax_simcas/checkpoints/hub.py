"""Pretrained folders in and out: Hugging Face's, the released trainer's (xjw-nlp/SimCAS), Flax msgpack.

Flax's `model/encoder/layers/0/fc1/kernel` is PyTorch's `model.encoder.layers.0.fc1.weight`, transposed; `TO_FLAX` and
`TO_TORCH` hold the rules.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops.stacks import unstack_layers
from jax_simcas.checkpoints.repository import (
    BIN_INDEX,
    CONFIG,
    EXTRA,
    GENERATION,
    HUB_BIN,
    MSGPACK,
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
from jax_simcas.method.chunk_position import NAME, ChunkPosition
from jax_simcas.method.model import SimCAS, init_params
from jax_simcas.method.select import init_selector

Params = Any
StateDict = dict[str, np.ndarray]  # by PyTorch names
Flat = dict[str, Any]  # by Flax paths, "model/shared/embedding"
Rename = tuple[str, str, Callable[[np.ndarray], np.ndarray] | None]

LAYOUTS = {"hf": SAFETENSORS, "flax": MSGPACK, "released": RELEASED_BIN}
POSITION_TABLE = f"model/encoder/{NAME}/embedding"
TORCH_SELECTOR = "model.encoder.agent."
SHARED, LOGITS_BIAS = "model/shared/embedding", "final_logits_bias"
TIED = re.compile(r"(^|\.)(lm_head|(encoder|decoder)\.embed_tokens)\.weight$")
DROPPED = re.compile(r"(^|\.)((encoder|decoder)\.version|embed_positions\.position_ids)$")
# (pattern, replacement, what becomes of the array); all that match are applied, in order.
TO_FLAX: tuple[Rename, ...] = (
    (f"^{re.escape(TORCH_SELECTOR)}", "selector.", None),
    (r"([^.]*norm[^.]*)\.weight$", r"\1.scale", None),
    (r"(^|\.)(shared|embed_positions|chunk_positions)\.weight$", r"\1\2.embedding", None),
    (r"\.weight$", ".kernel", np.transpose),
)
TO_TORCH: tuple[Rename, ...] = (
    (r"^selector\.", TORCH_SELECTOR, None),
    (r"\.kernel$", ".weight", np.transpose),
    (r"\.(scale|embedding)$", ".weight", None),
)


class Pretrained(NamedTuple):
    """What a checkpoint holds.

    extra: its jax_simcas.json. notes: for the user. generation: the content of its generation_config.json
    (generation_file), or of the config.json in which transformers 4 kept generation settings. training: of a run's
    checkpoint its `step`, and the `rows` that it learns from.
    """

    config: BartConfig
    params: Params
    folder: Path
    extra: dict[str, Any]
    notes: tuple[str, ...]
    generation: Mapping[str, Any] = MappingProxyType({})
    generation_file: bool = False
    training: Mapping[str, int] = MappingProxyType({})


def load(source: str | os.PathLike[str]) -> Pretrained:
    """Reads a local folder, or fetches a hub id; `params` has no "selector" if the checkpoint has none.

    Raises:
      UserError: nothing there, unreadable, or parameters missing, unexpected or mis-shaped: all in one line.
    """
    folder, notes = find_folder(str(source))
    config, generation = read_config(folder), read_generation(folder)
    path, flat = _read_weights(folder)
    _check_shapes(flat, config, path)
    flat = {name: np.asarray(value, np.float32) for name, value in flat.items()}
    broken = [name for name, value in flat.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: not finite: {first_of(broken)}")
    extra = read_object(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    held = read_object(folder / CONFIG) if generation is None else generation
    return Pretrained(config, trees.nest(flat), folder, extra, notes, held, generation is not None)


def read_config(folder: Path) -> BartConfig:
    """The shape and the tokens of the model in `folder`.

    Raises:
      UserError: no config.json, or one of a model that is not supported.
    """
    path = folder / CONFIG
    return BartConfig.from_hf(read_object(path), str(path), read_generation(folder))


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
        params["selector"] = jax.device_get(init_selector(key, loaded.config.d_model))
        notes.append(
            f"{source}: no selector in this checkpoint: until one is trained, all states are kept (policy=all), or "
            "evenly spread ones beyond a capacity"
        )
    position_key = jax.random.fold_in(key, 1)
    fresh = {} if chunk_position is None else chunk_position.init(position_key, Bart(loaded.config))
    if fresh and NAME not in params["model"]["encoder"]:
        encoder = {**params["model"]["encoder"], **jax.device_get(fresh)}
        params["model"] = {**params["model"], "encoder": encoder}
        notes.append(f"{source}: no chunk positions in this checkpoint; fresh ones were made")
    return loaded._replace(params=params, notes=tuple(notes))


def expected_shapes(config: BartConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, selector included."""
    tree = jax.eval_shape(lambda: init_params(jax.random.key(0), SimCAS(Bart(config))))
    return {name: leaf.shape for name, leaf in trees.by_path(tree).items()}


def _check_shapes(flat: Flat, config: BartConfig, where: Path) -> None:
    expected = expected_shapes(config)
    if not any(name.startswith("selector/") for name in flat):
        expected = {name: shape for name, shape in expected.items() if not name.startswith("selector/")}
    if POSITION_TABLE in flat:
        expected[POSITION_TABLE] = (*flat[POSITION_TABLE].shape[:1], config.d_model)
    missing = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - flat.keys())]
    unexpected = [f"unexpected {name}" for name in sorted(flat.keys() - expected.keys())]
    both = sorted(expected.keys() & flat.keys())
    wrong = [problem for name in both if (problem := _mismatch(name, flat[name], expected[name]))]
    problems = [first_of(kind) for kind in (missing, unexpected, wrong) if kind]
    if problems:
        rows = flat[SHARED].shape[:1] if SHARED in flat else ()
        if rows and rows[0] != config.vocab_size:
            problems.insert(0, f"a vocabulary of {rows[0]} tokens where config.json says {config.vocab_size}")
        raise UserError(f"{where} does not fit its config.json: {'; '.join(problems)}")


def _mismatch(name: str, value: np.ndarray, shape: tuple[int, ...]) -> str:
    """How the value differs from a floating-point array of that shape; "" if it does not."""
    if value.shape != shape:
        return f"{name} has shape {list(value.shape)}, expected {list(shape)}"
    floating = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    return "" if floating else f"{name} is {value.dtype}, expected floating point"


def _read_weights(folder: Path) -> tuple[Path, Flat]:
    def of(read: Callable[[Path], StateDict]) -> Callable[[Path], Flat]:
        return lambda path: flat_params(read(path), path)

    readers: dict[str, Callable[[Path], Flat]] = {
        SAFETENSORS: of(_safetensors),
        SAFETENSORS_INDEX: of(partial(_sharded, _safetensors)),
        MSGPACK: _msgpack,
        HUB_BIN: of(_torch),
        BIN_INDEX: of(partial(_sharded, _torch)),
        RELEASED_BIN: of(_torch),
    }
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name, readers[name](folder / name)
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHTS)}")


def _safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

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
    torch = _import_torch(f"{path}: reading it", "convert the weights to safetensors")
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
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in weights.items()}


def from_state_dict(weights: StateDict, where: str | os.PathLike[str] = "state dict") -> Params:
    """PyTorch names and layouts -> the Flax tree: the hub's, a bare BartModel's or the released trainer's.

    Raises:
      UserError: `lm_head` or an `embed_tokens` differs from the shared embedding.
    """
    return trees.nest(flat_params(weights, where))


def flat_params(weights: StateDict, where: str | os.PathLike[str]) -> Flat:
    """`from_state_dict`, by paths."""
    weights = _without_tied_copies(_hub_names(weights), where)
    flat: Flat = {}
    for name, value in weights.items():
        name, value = _renamed(name, value, TO_FLAX)
        flat[name.replace(".", "/")] = value
    if SHARED in flat and LOGITS_BIAS not in flat:
        flat[LOGITS_BIAS] = np.zeros((1, *flat[SHARED].shape[:1]), np.float32)
    return flat


def _hub_names(weights: StateDict) -> StateDict:
    """Names as BartForConditionalGeneration has them."""
    weights = {name: value for name, value in weights.items() if not DROPPED.search(name)}
    inside = [name.startswith("model.") for name in weights]
    if inside and all(inside) and any("model.model." in name for name in weights):  # the released trainer's
        return {name.removeprefix("model."): value for name, value in weights.items()}
    if not any(inside):  # a bare BartModel's
        outside = (LOGITS_BIAS, "lm_head.weight")
        return {name if name in outside else f"model.{name}": value for name, value in weights.items()}
    return weights


def _without_tied_copies(weights: StateDict, where: str | os.PathLike[str]) -> StateDict:
    """One shared embedding in place of the copies that `lm_head` and `embed_tokens` are."""
    copies = {name: value for name, value in weights.items() if TIED.search(name)}
    weights = {name: value for name, value in weights.items() if name not in copies}
    for name, value in copies.items():
        shared = weights.setdefault("model.shared.weight", value)
        if value.shape != shared.shape or not np.array_equal(value, shared):
            raise UserError(f"{where}: {name} differs from model.shared.weight; untied embeddings are not supported")
    return weights


def _renamed(name: str, value: np.ndarray, rules: Iterable[Rename]) -> tuple[str, np.ndarray]:
    for pattern, replacement, transform in rules:
        name, matches = re.subn(pattern, replacement, name)
        if matches and transform is not None:
            value = transform(value)
    return name, value


def to_state_dict(params: Params) -> StateDict:
    """The Flax tree -> the hub's PyTorch names, without tied copies of the shared embedding."""
    out: StateDict = {}
    for path, leaf in trees.by_path(params).items():
        name, value = _renamed(path.replace("/", "."), np.asarray(leaf), TO_TORCH)
        out[name] = np.ascontiguousarray(value)
    return out


def save(
    folder: Path,
    config: BartConfig,
    params: Params,
    layout: str = "hf",
    extra: dict[str, Any] | None = None,
    copy: Iterable[Path] = (),
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes config.json and the weights in `layout` (hf, flax, released), each file atomically.

    Args:
      params: with stacked layers, as in training, or one by one.
      extra: content of jax_simcas.json.
      copy: further files (a tokenizer's) to copy beside them.
      texts: further files to write, name -> content.

    Raises:
      UserError: unknown layout, unwritable folder, or torch missing for "released".
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if layout == "released":
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
        _replace(target, partial(_WRITERS[layout], params=unstack_layers(params)))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); give a folder on a disk with space that you may "
            "write to"
        ) from None
    return target


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    with files.replacing(target) as temporary:
        write(temporary)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_safetensors(path: Path, params: Params) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(to_state_dict(params), path, metadata={"format": "pt"})
    except SafetensorError as error:  # for a full disk too
        raise OSError(str(error)) from None


def _write_msgpack(path: Path, params: Params) -> None:
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, params)))


def _write_released(path: Path, params: Params) -> None:
    import torch

    weights = to_state_dict(params)
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        weights[f"{name}.weight"] = weights["model.shared.weight"]
    tensors = {f"model.{name}": torch.from_numpy(np.array(value)) for name, value in weights.items()}
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # for a full disk too
        raise OSError(first_line(error)) from None


_WRITERS = {"hf": _write_safetensors, "flax": _write_msgpack, "released": _write_released}
