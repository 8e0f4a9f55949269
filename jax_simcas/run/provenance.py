"""Where a model comes from: models and data sets of the hub by their ids, the user's own files without their places."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_simcas.checkpoints.repository import HubId, read_object
from jax_simcas.data.formats import TITLES
from jax_simcas.run.config import DataConfig

FROM_HUB = ("datasets", "chunked")  # kinds of sources that may be data sets of the hub
LOCAL = "local"  # in place of a path
TOKENIZER_CONFIG = "tokenizer_config.json"
LANGUAGE = re.compile(r"([a-z]{2,3})_(?:[A-Z]{2}|[A-Z][a-z]{3})")  # en_XX, eng_Latn


def hub_model(name: str, run: Path | None = None) -> str | None:
    """The hub id that `name` is, without a revision; None for a folder, here or seen from a run's folder."""
    hub_id = HubId.of(name)
    if hub_id is None or "/" not in hub_id.name:
        return None
    return None if _is_here(name, run) else hub_id.name


def hub_dataset(source: str, run: Path | None = None) -> str | None:
    """The data set of the hub that `config.data.source` names; None for the user's own files."""
    kind, _, name = source.partition(":")
    name = name.partition(":")[0]
    if kind not in FROM_HUB or name == LOCAL or HubId.of(name) is None:
        return None
    return None if _is_here(name, run) else name


def _is_here(name: str, run: Path | None) -> bool:
    """Whether there is a file or folder of that name, here or seen from a folder around a run's."""
    places = [Path()] if run is None else [Path(), *run.absolute().parents]
    return any((place / name).exists() for place in places)


def published(extra: Mapping[str, Any], run: Path | None) -> dict[str, Any]:
    """jax_simcas.json for others to read: without the places of the user's own files."""
    out = copy.deepcopy(dict(extra))
    data = out.get("data", {})
    for section, name in ((out, "pretrained"), (data, "tokenizer")):
        if section.get(name) and hub_model(section[name], run) is None:
            section[name] = LOCAL
    if data.get("data_dir"):
        data["data_dir"] = LOCAL
    kind, _, name = str(data.get("source", "")).partition(":")
    if kind in FROM_HUB and name and hub_dataset(data["source"], run) is None:
        data["source"] = f"{kind}:{LOCAL}"
    return out


def without_paths(path: Path) -> str:
    """tokenizer_config.json without the places that a tokenizer was once read from."""
    config = read_object(path)
    places = [name for name, value in config.items() if isinstance(value, str) and os.path.isabs(value)]
    places.append("name_or_path")  # which may be one seen from another folder
    return json.dumps({name: value for name, value in config.items() if name not in places}, indent=2) + "\n"


def data_in_words(data: DataConfig, run: Path | None = None) -> str:
    """Where rows come from."""
    kind, _, name = data.source.partition(":")
    if data.source == "embedded":
        return "the synthetic task of jax_simcas, generated"
    if found := hub_dataset(data.source, run):
        return f"[{found}](https://huggingface.co/datasets/{found})"
    if kind == "tfds":
        return f"{name} of tensorflow-datasets"
    return f"local files ({TITLES.get(kind, kind)})"


def languages(data: DataConfig) -> list[str] | None:
    """Those of the codes around documents and targets."""
    codes = (LANGUAGE.fullmatch(code) for code in (data.src_lang, data.tgt_lang))
    return list(dict.fromkeys(found[1] for found in codes if found)) or None
