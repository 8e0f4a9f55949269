"""Names of parameters: how PyTorch's become paths in a tree and back, by rules that each family lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

StateDict = dict[str, np.ndarray]  # by PyTorch names
Flat = dict[str, np.ndarray]  # by paths in the tree, "model/shared/embedding"
# (pattern, replacement, what becomes of the array); all that match are applied, in order.
Rename = tuple[str, str, Callable[[np.ndarray], np.ndarray] | None]

TORCH_SELECTOR = "model.encoder.agent."  # as the released trainer has it
SELECTOR_TO_TREE: Rename = (f"^{re.escape(TORCH_SELECTOR)}", "selector.", None)
SELECTOR_TO_TORCH: Rename = (r"^selector\.", TORCH_SELECTOR, None)


def renamed(name: str, value: np.ndarray, rules: Iterable[Rename]) -> tuple[str, np.ndarray]:
    """Name and array after all rules that match."""
    for pattern, replacement, transform in rules:
        name, matches = re.subn(pattern, replacement, name)
        if matches and transform is not None:
            value = transform(value)
    return name, value


def to_flat(weights: StateDict, rules: Iterable[Rename]) -> Flat:
    """PyTorch names -> paths."""
    rules = tuple(rules)
    pairs = (renamed(name, value, rules) for name, value in weights.items())
    return {name.replace(".", "/"): value for name, value in pairs}


def to_torch(flat: Mapping[str, Any], rules: Iterable[Rename]) -> StateDict:
    """Paths -> PyTorch names; the arrays are contiguous, as safetensors scrambles others in silence."""
    rules = tuple(rules)
    pairs = (renamed(path.replace("/", "."), np.asarray(value), rules) for path, value in flat.items())
    return {name: np.ascontiguousarray(value) for name, value in pairs}
