"""The arrays of a training state: their digests, whether they fit a model and optimizer, and reading them back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath
from jax import lax
from jaxtyping import Array, Shaped, UInt32

from jax_simcas.common import trees
from jax_simcas.common.errors import UserError, first_of


@jax.jit
def array_digest(x: Shaped[Array, "*shape"]) -> UInt32[Array, " 2"]:
    """Σᵢ mix(wordᵢ, i) mod 2³², twice: the same for any sharding, another if one word of `x` changes."""
    words = x if x.dtype == bool else lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}")
    index = jnp.full(words.shape, 0x9E3779B9, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)

    def mix(h: Array) -> Array:  # Murmur3's finaliser: one-to-one, so no change of one word is lost
        h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
        return h ^ (h >> 16)

    mixed = mix(words.astype(jnp.uint32) ^ mix(index))
    return jnp.stack([mixed.sum(dtype=jnp.uint32), mix(mixed + index).sum(dtype=jnp.uint32)])


def flatten(state: Any) -> dict[str, Any]:
    """Path -> leaf; Python scalars as arrays."""
    return {name: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for name, leaf in trees.by_path(state).items()}


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def to_arrays(state: Any) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
    """Every leaf as a jax array (a typed key as its words), and its shape, dtype and digest."""
    arrays, specs = {}, {}
    for name, leaf in flatten(state).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key, arrays[name] = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
        else:
            key, arrays[name] = None, jnp.asarray(leaf)
            if arrays[name].dtype != leaf.dtype:
                raise ValueError(f"{name}: {leaf.dtype} would become {arrays[name].dtype}; convert it first")
        specs[name] = {"is": _described(leaf), "key": key}
    for name, digest in jax.device_get({name: array_digest(array) for name, array in arrays.items()}).items():
        specs[name]["digest"] = digest.tolist()
    return arrays, specs


def check_fit(folder: epath.Path, target: dict[str, Any], body: dict[str, Any]) -> None:
    """Raises UserError if the checkpoint in `folder`, whose record is `body`, has other arrays than `target`."""
    stored = {name: spec["is"] for name, spec in body["arrays"].items()}
    expected = {name: _described(leaf) for name, leaf in target.items()}
    differing = [
        f"{name} (given {stored.get(name, 'nothing')}, expected {expected.get(name, 'nothing')})"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder}: does not fit this model and optimizer: {first_of(differing)}; "
            "use the configuration that wrote it, or another folder"
        )


def read_arrays(folder: epath.Path, specs: dict[str, dict], target: dict[str, Any]) -> dict[str, Any]:
    """The arrays of `specs` as they are stored; in the target's shardings, numpy without a target.

    Read with tensorstore: if one array is damaged, orbax lets the other reads fail on standard error.
    """
    base = f"{folder / 'state'}/"
    store = {"driver": "ocdbt", "base": base if "://" in base else {"driver": "file", "path": base}}
    context = tensorstore.Context()

    def read(name: str) -> Any:
        kvstore = {**store, "path": name.replace("/", ".") + "/"}
        stored = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, context=context).result()
        found = f"{stored.dtype.name}[{','.join(map(str, stored.shape))}]"
        if not specs[name]["key"] and found != specs[name]["is"]:  # before memory is taken for it
            raise ValueError(f"array {name} is {found}, {specs[name]['is']} was saved")
        if not target:
            return stored.read().result()
        sharding = getattr(target[name], "sharding", None) or jnp.zeros(()).sharding
        return jax.make_array_from_callback(stored.shape, sharding, lambda part: stored[part].read().result())

    with ThreadPoolExecutor(16) as pool:
        return dict(zip(specs, pool.map(read, specs), strict=True))


def checked_arrays(arrays: dict[str, Any], specs: dict[str, dict]) -> dict[str, Any]:
    """The arrays that were read, words of typed keys as keys; all processes of a job do this together.

    Raises:
      ValueError: one that is not what was saved.
    """
    arrays = dict(arrays)
    digests = jax.device_get({name: array_digest(array) for name, array in arrays.items()})
    for name, spec in specs.items():
        if spec["key"]:
            arrays[name] = jax.random.wrap_key_data(arrays[name], impl=spec["key"])
        if digests[name].tolist() != spec["digest"] or _described(arrays[name]) != spec["is"]:
            raise ValueError(f"array {name} differs from what was saved")
    return arrays
