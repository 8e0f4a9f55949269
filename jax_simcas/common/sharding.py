"""Sharding: a mesh of four named axes, and one table from what an array's dimensions mean to the axes they lie on.

data    documents; everything else is replicated
fsdp    documents; parameters and optimizer state are sharded, and gathered one layer at a time
chunk   the chunks of one document; parameters and optimizer state are sharded too
tensor  heads, the inner width of feed-forward layers, and the vocabulary

Any of them may be 1. During PPO the selector's inner layer lies on `chunk` and `tensor`. The functions of the method do
not know the mesh: they name the dimensions of an array (`constrain`), which does nothing until a program enters a mesh
with `jax.set_mesh`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jax_simcas.common import checks
from jax_simcas.common.trees import path_of

DOCUMENTS = ("data", "fsdp")  # the mesh axes that documents lie on; `vmap(spmd_axis_name=DOCUMENTS)`

# What a dimension means -> the mesh axes that it is split over.
RULES: dict[str, tuple[str, ...]] = {
    "documents": DOCUMENTS,
    "chunks": ("chunk",),
    "tokens": ("chunk",),  # of a chunk, while the policy scans over the chunks
    "width": ("fsdp", "chunk"),  # parameters only: devices that share one document also shard the model
    "gradient width": ("fsdp",),  # the gradient of a kernel while it is summed over chunks
    "heads": ("tensor",),  # "heads/4" where the dimension holds 4 of them, none of which is cut
    "inner": ("tensor",),
    "vocabulary": ("tensor",),
    "selector inner": ("chunk", "tensor"),  # of the selector's layers while PPO visits minibatches
}

# The end of a parameter's path (a regular expression) -> what its last dimensions mean; earlier ones, such as that of
# stacked layers, stay whole.
ShardingRule = tuple[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1: all devices that are left."""

    data: int = -1  # copies of everything, each with documents of its own
    fsdp: int = 1  # documents as well; parameters and optimizer state lie in pieces
    chunk: int = 1  # the chunks of one document; parameters and optimizer state as well
    tensor: int = 1  # heads, the inner width of feed-forward layers, and the vocabulary

    def __post_init__(self) -> None:
        sizes = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, size in sizes.items():
            if size != -1 and not 1 <= size <= checks.LARGEST:
                raise ValueError(f"{name}={size}: expected at least 1, or -1 for all devices that are left")
        if list(sizes.values()).count(-1) > 1:
            asked = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise ValueError(f"{asked}: only one axis can be -1 (all devices that are left)")


AXES = tuple(item.name for item in fields(MeshConfig))


def fitted(config: MeshConfig, devices: int, documents: int) -> dict[str, int]:
    """The size of each axis on so many devices, for batches of so many documents.

    An axis that does not divide the remaining devices shrinks to its greatest common divisor with them, innermost axis
    first, so that one config runs on one device and on a pod. `data=-1` and `fsdp=-1` take no more devices than divide
    the documents.

    Raises:
      ValueError: no axis is -1 and the axes need fewer devices than there are.
    """
    wanted = {item.name: getattr(config, item.name) for item in fields(config)}
    sizes, left = {}, devices
    for name in reversed(AXES):
        if wanted[name] != -1:
            sizes[name] = math.gcd(wanted[name], left)
            left //= sizes[name]
    for name in AXES:
        if wanted[name] == -1:
            places = sizes.get("fsdp", 1) * sizes.get("data", 1)
            sizes[name] = math.gcd(left, max(documents // places, 1)) if name in DOCUMENTS else left
            left = 1
    if left > 1:
        asked = ", ".join(f"{name}={size}" for name, size in wanted.items())
        raise ValueError(f"{asked} on {devices} devices: all but one in {left} would be idle; set one axis to -1")
    return {name: sizes[name] for name in AXES}


def make_mesh(sizes: dict[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh of those sizes over as many devices; the innermost axis gets neighbours."""
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), list(devices), allow_split_physical_axes=True)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def partition(dimensions: Iterable[str | None], rules: dict[str, tuple[str, ...]] = RULES) -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these meanings; None stays whole.

    Raises:
      ValueError: a meaning that is not in the table, or two dimensions on the same mesh axis.
    """
    dimensions = tuple(dimensions)
    for name in dimensions:
        if name is not None and name not in rules:
            raise ValueError(f"dimension {name!r}: expected None or one of {', '.join(rules)}")
    taken = [axis for name in dimensions if name is not None for axis in rules[name]]
    if len(set(taken)) < len(taken):
        raise ValueError(f"dimensions {dimensions}: two of them lie on the same mesh axis ({', '.join(taken)})")
    return PartitionSpec(*(None if name is None else rules[name] for name in dimensions))


def divided(dimensions: Iterable[str | None], shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[str | None, ...]:
    """The meanings of those dimensions that the mesh axes of these sizes divide, and None for the others.

    "heads/4" is "heads" where they divide 4.
    """
    return tuple(_if_divided(name, size, sizes) for name, size in zip(dimensions, shape, strict=True))


def _if_divided(name: str | None, size: int, sizes: Mapping[str, int]) -> str | None:
    meaning, _, parts = (name or "").partition("/")
    pieces = math.prod(sizes[axis] for axis in RULES.get(meaning, ()))
    return meaning or None if int(parts or size) % pieces == 0 else None


def mesh_in_use() -> Any:
    """The mesh that `jax.set_mesh` entered; None without one, and inside `shard_map` and `pmap`."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = set(AXES) <= set(mesh.axis_names) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours else None


def chunk_pieces(chunks: int) -> int:
    """The number of devices that share the chunks of a document: 1 without a mesh, or where it does not divide them."""
    mesh = mesh_in_use()
    pieces = 1 if mesh is None else mesh.shape["chunk"]
    return pieces if chunks % pieces == 0 else 1


def check_chunks(chunks: int) -> None:
    """Raises ValueError where the mesh axis "chunk" does not divide the chunks of a document.

    XLA (jax 0.10.2, CPU) then computes wrong states, in silence.
    """
    mesh = mesh_in_use()
    if mesh is not None and chunks % mesh.shape["chunk"]:
        pieces = mesh.shape["chunk"]
        raise ValueError(f"{chunks} chunks on a mesh with chunk={pieces}: pad them to a multiple of {pieces}")


def constrain(x: Array, *dimensions: str | None) -> Array:
    """Pins the layout of an array inside jit, by what its dimensions mean; without a mesh, the array itself.

    A dimension that its mesh axes don't divide stays whole. Under `vmap(..., spmd_axis_name=...)` the mapped dimension
    lies on those axes.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, partition(divided(dimensions, x.shape, mesh.shape)))


def constrain_tree(tree: Any, rules: Sequence[ShardingRule]) -> Any:
    """`constrain` of every leaf for which there is a rule, by its path and rank; the others stay as they are."""

    def one(keys: tuple, leaf: Array) -> Array:
        dimensions = _dimensions(path_of(keys), leaf.ndim, rules)
        return leaf if dimensions is None else constrain(leaf, *dimensions)

    return jax.tree_util.tree_map_with_path(one, tree)


def over_documents(function: Callable, in_axes: Any = 0) -> Callable:
    """`vmap` over documents, which lie on the mesh axes `data` and `fsdp` if there is a mesh."""
    if mesh_in_use() is None:
        return jax.vmap(function, in_axes)
    return jax.vmap(function, in_axes, spmd_axis_name=DOCUMENTS)


def parameter_dimensions(path: str, rank: int, rules: Iterable[ShardingRule]) -> tuple[str | None, ...]:
    """What the dimensions of the parameter at `path` ("model/encoder/...") mean; leading ones are layers.

    Raises:
      ValueError: no rule fits.
    """
    dimensions = _dimensions(path, rank, rules)
    if dimensions is None:
        raise ValueError(
            f"parameter {path} with {rank} dimensions: no sharding rule fits; add one to those of the backbone"
        )
    return dimensions


def _dimensions(path: str, rank: int, rules: Iterable[ShardingRule]) -> tuple[str | None, ...] | None:
    """Of the first rule that fits; None without one."""
    for pattern, dimensions in rules:
        if re.search(f"({pattern})$", path) and rank >= len(dimensions):
            return (None,) * (rank - len(dimensions)) + dimensions
    return None


def state_shardings(mesh: Mesh, state: Any, rules: Sequence[ShardingRule]) -> Any:
    """One NamedSharding per leaf of a training state, or of parameters alone.

    Moments of the size of a parameter lie where it does; what an optimizer keeps in another size is replicated, as are
    scalars and keys. A dimension that its mesh axes do not divide (50,265 words over 4 devices) stays whole.

    Args:
      state: arrays or, from jax.eval_shape, their shapes.
      rules: one for every parameter, such as `SimCAS.sharding_rules`.
    """
    params = getattr(state, "params", state)
    shapes = {path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def one(keys: tuple, leaf: Any) -> NamedSharding:
        parameter = next((path for path in _ends(path_of(keys)) if path in shapes), None)
        if not leaf.shape or parameter is None or leaf.shape != shapes[parameter]:
            return replicated(mesh)
        dimensions = parameter_dimensions(parameter, len(leaf.shape), rules)
        return NamedSharding(mesh, partition(divided(dimensions, leaf.shape, mesh.shape)))

    return jax.tree_util.tree_map_with_path(one, state)


def _ends(path: str) -> Iterator[str]:
    """ "a/b/c", "b/c", "c"."""
    while path:
        yield path
        path = path.partition("/")[2]


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
    """Documents over `data` and `fsdp`, and the chunks of a batch's `document` over `chunk`."""

    def one(keys: tuple, leaf: Any) -> NamedSharding:
        chunked = path_of(keys).startswith("document/")
        dimensions = ("documents", "chunks") if chunked else ("documents",)
        return NamedSharding(mesh, partition(dimensions))

    return jax.tree_util.tree_map_with_path(one, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole -> global arrays; each device gets its own piece."""
    place = lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, partial(np.asarray(x).__getitem__))
    return jax.tree.map(place, tree, shardings)


def local_documents(mesh: Mesh, documents: int) -> tuple[int, ...]:
    """Which of a batch's documents lie on devices of this process: those are the ones that it has to read."""
    pieces = NamedSharding(mesh, partition(("documents",))).addressable_devices_indices_map((documents,)).values()
    return tuple(sorted({place for index in pieces if index for place in range(documents)[index[0]]}))


def put_batch(batch: Any, mesh: Mesh, places: Sequence[int], documents: int) -> Any:
    """The documents at `places`, which this process holds -> global arrays of all `documents` of the batch."""
    row_of = {place: row for row, place in enumerate(places)}

    def one(x: np.ndarray, sharding: NamedSharding) -> Array:
        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            rows = [row_of[place] for place in range(documents)[index[0]]]
            return x[rows][(slice(None), *index[1:])]

        return jax.make_array_from_callback((documents, *x.shape[1:]), sharding, piece)

    return jax.tree.map(one, batch, batch_shardings(mesh, batch))
