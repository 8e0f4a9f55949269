"""Trees by name: every leaf under its path, "params/model/shared/embedding"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

Params = Any  # nested dicts of arrays


def path_of(keys: tuple) -> str:
    """The name of a key path of jax.tree_util: "params/model/shared/embedding"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def by_path(tree: Any) -> dict[str, Any]:
    """Path -> leaf, for any registered tree.

    Raises:
      ValueError: two leaves with the same path, or a leaf without one.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {path_of(keys): leaf for keys, leaf in leaves}
    if len(named) != len(leaves) or "" in named:
        raise ValueError("expected a tree whose paths, joined by '/', differ")
    return named


def nest(named: dict[str, Any]) -> dict[str, Any]:
    """Path -> leaf as nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def updated(tree: Mapping[str, Any], path: Sequence[str], more: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts in which the dict at `path` has the entries of `more` too."""
    if not path:
        return {**tree, **more}
    return {**tree, path[0]: updated(tree[path[0]], path[1:], more)}
