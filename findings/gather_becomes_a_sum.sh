#!/usr/bin/env bash
# XLA:TPU (libtpu 0.0.42.1 and 0.0.50.1): small pieces on many chips are not gathered, but summed between zeros.
#
# Expected: an array in pieces that is asked for whole (`out_shardings`, `with_sharding_constraint`) is an all-gather,
# at any size. Seen, for float32 [1024, 2048] in pieces of 4 rows on 256 chips of a v5e: each chip writes its rows into a
# whole array of zeros, and an all-reduce adds up 256 of these with a floating-point add. Twice the bytes pass the links,
# every chip fills the whole array first, and by the rules of that add -0.0 becomes 0.0. The same array in 16
# pieces, or one of 4,096 rows in 256, is an all-gather. So an optimizer's state that is split over all chips in order to
# exchange no more than before (ZeRO's first stage) exchanges half as much again or more, without a word of it.
# No TPU is needed: libtpu compiles for chips that are not there. With jax 0.12.0.1 and libtpu 0.0.50.1 it is the same.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5litepod-4 ALLOW_MULTIPLE_LIBTPU_LOAD=1
check <<'PY'
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

slice_of_256 = {"chips_per_host_bounds": (2, 2, 1), "wrap": (True, True, False)}
chips = np.array(topologies.get_topology_desc("v5e:16x16", "tpu", **slice_of_256).devices)

def gathering(rows, pieces):
    """The collective that makes [rows, 2048] whole, and whether its operand is first written into a whole array."""
    mesh = Mesh(chips.reshape(pieces, -1), ("pieces", "copies"))
    x = jax.ShapeDtypeStruct((rows, 2048), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("pieces")))
    whole = jax.jit(lambda x: 2 * x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = whole.trace(x).lower(lowering_platforms=("tpu",)).compile().as_text()
    (kind,) = re.findall(r" (all-reduce|all-gather)(?:-start)?\(", text)
    return f"{kind}{' of whole arrays' if 'dynamic-update-slice' in text else ''}"

cases = {"1,024 rows, 256 pieces": (1024, 256), "1,024 rows, 16 pieces": (1024, 16), "4,096 rows, 256 pieces": (4096, 256)}
seen = {name: gathering(*case) for name, case in cases.items()}
print(f"jax {jax.__version__}: expected all-gather everywhere, seen {seen}")
assert list(seen.values()) == ["all-reduce of whole arrays", "all-gather", "all-gather"]
PY
