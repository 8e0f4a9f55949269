#!/usr/bin/env bash
# orbax: a checkpoint with a flipped bit in an array is restored without a word.
#
# Expected: the checkpoint's files are compressed and have checksums, so that damage on disk is an error, as a truncated
# file is. Seen: the array comes back with a wrong number. Whoever resumes for weeks from one disk needs digests of the
# arrays beside the checkpoint.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
check <<'PY'
import logging
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
folder = Path("checkpoint").resolve()
weights = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
checkpointer = ocp.StandardCheckpointer()
checkpointer.save(folder, {"w": weights})
checkpointer.wait_until_finished()
largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
content = bytearray(largest.read_bytes())
content[len(content) // 2] ^= 1
largest.write_bytes(content)
restored = checkpointer.restore(folder, {"w": np.zeros_like(weights)})["w"]
print(f"expected an error; seen {int((restored != weights).sum())} wrong of {weights.size} numbers")
assert restored.shape == weights.shape and (restored != weights).any()
PY
