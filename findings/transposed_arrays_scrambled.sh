#!/usr/bin/env bash
# safetensors: saving a transposed NumPy array stores other numbers at its places.
#
# Expected: `safetensors.numpy.save_file` writes the array that it is given, or refuses one that is not contiguous, as
# `safetensors.torch.save_file` does. Seen: the bytes are written in the order in which they lie in memory, under the
# transposed shape. A kernel `[in, out]` turned into PyTorch's weight `[out, in]` by `.T` is loaded with the right
# shape and wrong numbers; `numpy.ascontiguousarray` before saving is needed.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages safetensors==0.8.0 numpy==2.4.6
check <<'PY'
import numpy as np
from safetensors.numpy import load_file, save_file

weight = np.arange(6, dtype=np.float32).reshape(2, 3).T
save_file({"plain": weight, "copied": np.ascontiguousarray(weight)}, "weights.safetensors")
loaded = load_file("weights.safetensors")
print("expected", weight.tolist(), "seen", loaded["plain"].tolist())
assert np.array_equal(loaded["copied"], weight)
assert loaded["plain"].shape == weight.shape and not np.array_equal(loaded["plain"], weight)
PY
