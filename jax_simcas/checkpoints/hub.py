"""Checkpoints in and out: Hugging Face folders, the authors' trainer files, Flax msgpack.

Names: Flax `model/encoder/layers/0/fc1/kernel` is PyTorch `model.encoder.layers.0.fc1.weight`, transposed; norms'
`scale` and embeddings' `embedding` are `weight`. The selector is `model.encoder.agent.{actor,critic}` there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization, traverse_util

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops.stacks import unstack_layers
from jax_simcas.common.errors import UserError, first_of
from jax_simcas.method.chunk_position import NAME as CHUNK_POSITIONS
from jax_simcas.method.chunk_position import ChunkPosition
from jax_simcas.method.model import SimCAS, init_params
from jax_simcas.method.select import init_selector

Params = Any
StateDict = dict[str, np.ndarray]  # PyTorch names
Path_ = tuple[str, ...]

SAFETENSORS, MSGPACK = "model.safetensors", "flax_model.msgpack"
HUB_BIN, RELEASED_BIN = "pytorch_model.bin", "model_generation.bin"
WEIGHTS = (SAFETENSORS, MSGPACK, HUB_BIN, RELEASED_BIN)
EXTRA = "jax_simcas.json"
HUB_TIMEOUT = 20.0  # seconds
LAYOUTS = {"hf": SAFETENSORS, "flax": MSGPACK, "released": RELEASED_BIN}
OPTIONAL = ("model", "encoder", "chunk_positions", "embedding")
SELECTOR = ("model", "encoder", "agent")
TIED = re.compile(r"(^|\.)(lm_head|(encoder|decoder)\.embed_tokens)\.weight$")
IGNORED = re.compile(r"(^|\.)((encoder|decoder)\.version|embed_positions\.position_ids)$")


class Pretrained(NamedTuple):
    """What a checkpoint holds; `extra` is its jax_simcas.json, `notes` are worth telling the user."""

    config: BartConfig
    params: Params
    folder: Path
    extra: dict[str, Any]
    notes: tuple[str, ...]


def load(source: str | os.PathLike[str]) -> Pretrained:
    """Reads a local folder, or fetches a hub id; `params` has no "selector" if the checkpoint has none.

    Raises:
      UserError: nothing there, unreadable, or parameters missing, unexpected or mis-shaped: all in one line.
    """
    folder = find_folder(str(source))
    config = BartConfig.from_hf(_read_json(folder / "config.json"), str(folder / "config.json"))
    path, params = _read_weights(folder)
    flat = traverse_util.flatten_dict(params)
    _check(flat, config, path)
    flat = {name: np.asarray(value, np.float32) for name, value in flat.items()}
    broken = [".".join(name) for name, value in flat.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: not finite: {', '.join(broken)}")
    extra = _read_json(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    return Pretrained(config, traverse_util.unflatten_dict(flat), folder, extra, ())


def from_pretrained(
    source: str | os.PathLike[str], key: jax.Array, chunk_position: ChunkPosition | None = None
) -> Pretrained:
    """`load`, and what is not there made fresh."""
    return completed(load(source), source, key, chunk_position)


def completed(
    loaded: Pretrained, source: str | os.PathLike[str], key: jax.Array, chunk_position: ChunkPosition | None = None
) -> Pretrained:
    """With a fresh selector, and learned chunk positions if asked for, where it has none; notes on `source` say so."""
    params, notes = dict(loaded.params), list(loaded.notes)
    if "selector" not in params:
        params["selector"] = jax.device_get(init_selector(key, loaded.config.d_model))
        notes.append(f"{source}: no selector in this checkpoint; a fresh one was made (it keeps about half)")
    fresh = {} if chunk_position is None else chunk_position.init(key, Bart(loaded.config))
    if fresh and CHUNK_POSITIONS not in params["model"]["encoder"]:
        encoder = {**params["model"]["encoder"], **jax.device_get(fresh)}
        params["model"] = {**params["model"], "encoder": encoder}
        notes.append(f"{source}: no chunk positions in this checkpoint; fresh ones were made")
    return loaded._replace(params=params, notes=tuple(notes))


def find_folder(source: str) -> Path:
    """The local folder `source`, or a snapshot of the hub id `source` with one weights file in it."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{source}: a file; expected a folder with config.json and weights")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise UserError(f"{source}: no such folder")
    from huggingface_hub import HfApi, snapshot_download

    texts = ["config.json", EXTRA, "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model"]
    # The hub's client lets through whatever its network library raises, so every kind of error is caught.
    try:
        names = {file.rfilename for file in HfApi().model_info(source, timeout=HUB_TIMEOUT).siblings or ()}
        weights = next((name for name in WEIGHTS if name in names), f"{SAFETENSORS}.index.json")
        patterns = [*texts, weights, *(["model-*.safetensors"] if weights.endswith("index.json") else [])]
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception:
        raise UserError(
            f"{source}: no such folder, and not to be had from the hub ({reason}); give a local folder"
        ) from None


def expected_shapes(config: BartConfig) -> dict[Path_, tuple[int, ...]]:
    """Shape of every parameter, selector included."""
    tree = jax.eval_shape(lambda: init_params(jax.random.key(0), SimCAS(Bart(config))))
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree).items()}


def _check(flat: dict[Path_, np.ndarray], config: BartConfig, where: Path) -> None:
    expected = expected_shapes(config)
    if not any(name[0] == "selector" for name in flat):
        expected = {name: shape for name, shape in expected.items() if name[0] != "selector"}
    named = "/".join
    if OPTIONAL in flat:
        expected[OPTIONAL] = (flat[OPTIONAL].shape[0], config.d_model)
    missing = [f"missing {named(name)} {list(expected[name])}" for name in sorted(expected.keys() - flat.keys())]
    unexpected = [f"unexpected {named(name)}" for name in sorted(flat.keys() - expected.keys())]
    wrong = []
    for name in sorted(expected.keys() & flat.keys()):
        value = flat[name]
        if value.shape != expected[name]:
            wrong.append(f"{named(name)} has shape {list(value.shape)}, expected {list(expected[name])}")
        elif not np.issubdtype(value.dtype, np.floating) and value.dtype.name != "bfloat16":
            wrong.append(f"{named(name)} is {value.dtype}, expected floating point")
    problems = [first_of(kind) for kind in (missing, unexpected, wrong) if kind]
    if problems:
        rows = flat.get(("model", "shared", "embedding"), np.empty(0)).shape[:1]
        if rows and rows[0] != config.vocab_size:
            problems.insert(0, f"a vocabulary of {rows[0]} tokens where config.json says {config.vocab_size}")
        raise UserError(f"{where} does not fit its config.json: {'; '.join(problems)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected a folder with config.json and weights") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def _read_weights(folder: Path) -> tuple[Path, Params]:
    index = folder / f"{SAFETENSORS}.index.json"
    readers: list[tuple[Path, Callable[[Path], Params]]] = [
        (folder / SAFETENSORS, lambda path: from_state_dict(_safetensors(path), path)),
        (index, lambda path: from_state_dict(_sharded(path), path)),
        (folder / MSGPACK, _msgpack),
        (folder / HUB_BIN, lambda path: from_state_dict(_torch(path), path)),
        (folder / RELEASED_BIN, lambda path: from_state_dict(_torch(path), path)),
    ]
    for path, read in readers:
        if path.is_file():
            return path, read(path)
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHTS)}")


def _safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _sharded(path: Path) -> StateDict:
    files = _read_json(path).get("weight_map")
    if not isinstance(files, dict):
        raise UserError(f"{path}: no weight_map in it")
    out: StateDict = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise UserError(f"{path}: names a file outside its folder: {name!r}")
        out |= _safetensors(path.with_name(name))
    return out


def _msgpack(path: Path) -> Params:
    try:
        params = serialization.msgpack_restore(path.read_bytes())
        flat = traverse_util.flatten_dict(params)
    except Exception as error:  # msgpack raises many kinds on damage
        raise UserError(f"{path}: not a readable Flax msgpack file ({error or type(error).__name__})") from None
    if not all(isinstance(value, np.ndarray) for value in flat.values()):
        raise UserError(f"{path}: holds something other than arrays")
    return params


def _torch(path: Path) -> StateDict:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs torch; install it, or convert the weights to safetensors") from None
    try:
        weights = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds on damage
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not readable as weights only ({reason})") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: not a dictionary of tensors")
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in weights.items()}


def from_state_dict(weights: StateDict, where: str | os.PathLike[str] = "state dict") -> Params:
    """PyTorch names and layouts -> the Flax tree: the hub's, a bare BartModel's or the authors' trainer's.

    Raises:
      UserError: `lm_head` or an `embed_tokens` differs from the shared embedding.
    """
    weights = {name: value for name, value in weights.items() if not IGNORED.search(name)}
    names = list(weights)
    if names and all(name.startswith("model.") for name in names) and any("model.model." in n for n in names):
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
    elif not any(name.startswith("model.") for name in names):
        own = ("final_logits_bias", "lm_head.weight")
        weights = {name if name in own else f"model.{name}": value for name, value in weights.items()}
    shared = weights.get("model.shared.weight")
    for name in [name for name in weights if TIED.search(name)]:
        tied = weights.pop(name)
        if shared is None:
            shared = weights["model.shared.weight"] = tied
        elif tied.shape != shared.shape or not np.array_equal(tied, shared):
            raise UserError(f"{where}: {name} differs from model.shared.weight; untied embeddings are not supported")
    flat: dict[Path_, np.ndarray] = {}
    for name, value in weights.items():
        *parents, leaf = name.split(".")
        if tuple(parents[: len(SELECTOR)]) == SELECTOR:
            parents = ["selector", *parents[len(SELECTOR) :]]
        if leaf == "weight":
            leaf, value = _flax_leaf(parents[-1], value)
        flat[(*parents, leaf)] = value
    if shared is not None and ("final_logits_bias",) not in flat:
        flat[("final_logits_bias",)] = np.zeros((1, shared.shape[0]), np.float32)
    return traverse_util.unflatten_dict(flat)


def _flax_leaf(module: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    if "norm" in module:
        return "scale", value
    if module in ("shared", "embed_positions", "chunk_positions"):
        return "embedding", value
    return "kernel", value.T


def to_state_dict(params: Params) -> StateDict:
    """The Flax tree -> the hub's PyTorch names, without tied copies of the shared embedding."""
    out: StateDict = {}
    for (*parents, leaf), value in traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        if parents and parents[0] == "selector":
            parents = [*SELECTOR, *parents[1:]]
        if leaf == "kernel":
            value = value.T
        name = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
        out[".".join([*parents, name])] = np.ascontiguousarray(value)
    return out


def save(
    folder: Path,
    config: BartConfig,
    params: Params,
    layout: str = "hf",
    extra: dict[str, Any] | None = None,
    copy: Iterable[Path] = (),
) -> Path:
    """Writes config.json and the weights in `layout` (hf, flax, released), each file whole or not at all.

    Args:
      params: layers stacked, as training holds them, or apart.
      extra: goes into jax_simcas.json.
      copy: further files (a tokenizer's) to put beside them.

    Raises:
      UserError: unknown layout, unwritable folder, or torch missing for "released".
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _whole(folder / "config.json", lambda path: path.write_text(json.dumps(config.to_hf(), indent=1) + "\n"))
        if extra is not None:
            _whole(folder / EXTRA, lambda path: path.write_text(json.dumps(extra, indent=1) + "\n"))
        for file in copy:
            _whole(folder / file.name, partial(shutil.copyfile, file))
        target = folder / LAYOUTS[layout]
        _whole(target, lambda path: _WRITERS[layout](path, unstack_layers(params)))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return target


def _whole(target: Path, write: Callable[[Path], Any]) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _write_safetensors(path: Path, params: Params) -> None:
    from safetensors.numpy import save_file

    save_file(to_state_dict(params), path, metadata={"format": "pt"})


def _write_msgpack(path: Path, params: Params) -> None:
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, params)))


def _write_released(path: Path, params: Params) -> None:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path.parent}: the released layout needs torch; install it, or choose hf") from None
    weights = to_state_dict(params)
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        weights[f"{name}.weight"] = weights["model.shared.weight"]
    torch.save({f"model.{name}": torch.from_numpy(np.array(value)) for name, value in weights.items()}, path)


_WRITERS = {"hf": _write_safetensors, "flax": _write_msgpack, "released": _write_released}
