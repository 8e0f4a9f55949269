#!/usr/bin/env bash
# jax before 0.12: a branch inside `lax.scan` makes the backward pass keep a second copy of all scanned weights.
#
# Expected: the weights of layers that `scan` walks over are its inputs, which live anyway, so that the backward pass
# reads them there; a branch around the layer's product changes nothing. Seen: behind `lax.cond`, or
# `lax.platform_dependent` with a single platform, the weights are among what the branch saves, and `scan` stacks them
# anew: temporaries grow by as many bytes as the weights have. `jax.checkpoint` around the branch, not within it,
# prevents it. In jax 0.12 the copy is gone.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages jax==0.10.2 jaxlib==0.10.2
check <<'PY'
import jax
import jax.numpy as jnp
from jax import lax

layer = lambda x, w: jnp.tanh(x @ w)
chosen = lambda x, w: lax.cond(x[0, 0] < 1e9, layer, lambda x, w: x @ w, x, w)
by_platform = lambda x, w: lax.platform_dependent(x, w, cpu=layer, default=layer)
weights = jax.ShapeDtypeStruct((16, 512, 512), jnp.float32)
states = jax.ShapeDtypeStruct((4, 512), jnp.float32)

def temporaries(layer):
    """MiB of the gradient's program."""
    loss = lambda weights, x: lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0].sum()
    return jax.jit(jax.grad(loss)).lower(weights, states).compile().memory_analysis().temp_size_in_bytes / 2**20

layers = {"plain": layer, "cond": chosen, "by platform": by_platform, "checkpoint around cond": jax.checkpoint(chosen)}
seen = {name: round(temporaries(layer), 1) for name, layer in layers.items()}
print(f"jax {jax.__version__}: weights of 16.0 MiB; MiB of temporaries, expected about 2 everywhere, seen {seen}")
assert seen["cond"] > 16 and seen["by platform"] > 16 and seen["plain"] < 4 and seen["checkpoint around cond"] < 4
PY
