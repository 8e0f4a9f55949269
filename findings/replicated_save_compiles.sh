#!/usr/bin/env bash
# orbax: the first save of arrays that every device holds compiles a program for each shape and device.
#
# Expected: saving copies bytes and compiles nothing, as it does for arrays that are sharded. Seen: each device writes a
# slice of what all of them hold, and each slice is cut by a program of its own: 80 for ten shapes on eight devices. The
# first checkpoint of a training stalls it for seconds, and a persistent cache fills with small programs.
# min_slice_bytes_for_replica_parallel of the array handler sets the size from which arrays are cut so.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
export JAX_NUM_CPU_DEVICES=8
check <<'PY'
import logging
import time
from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

logging.disable(logging.CRITICAL)
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
)
mesh = Mesh(np.array(jax.devices()), ("data",))


def programs_of_saving(spec, name):
    sharding = NamedSharding(mesh, spec)
    arrays = {f"w{i}": jax.device_put(np.ones((64 + 8 * i, 8), np.float32), sharding) for i in range(10)}
    before, begun = len(compiled), time.perf_counter()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(name).resolve(), arrays)
    print(f"{name}: {len(compiled) - before} programs compiled, {time.perf_counter() - begun:.1f} s")
    return len(compiled) - before


assert programs_of_saving(PartitionSpec("data"), "sharded") == 0
assert programs_of_saving(PartitionSpec(), "replicated") == 10 * jax.device_count()
assert programs_of_saving(PartitionSpec(), "replicated again") == 0
PY
