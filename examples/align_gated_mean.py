"""An alignment of your own: a gate decides how much each chunk takes over from the mean of all chunks.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/gated \
    --config.simcas.align=examples.align_gated_mean:gated_mean
"""

import jax

from jax_simcas.method.align import chunk_mean


def gated_mean(boundary, real, axis_name):
    """g mean + (1 - g) own, with one gate g = sigmoid(<own, mean> / sqrt(D)) per boundary state.

    boundary [2, D]: BOS and EOS states of one chunk; real []: False for a chunk of pure padding.
    """
    mean = chunk_mean(boundary, real, axis_name)
    gate = jax.nn.sigmoid((boundary * mean).sum(axis=-1, keepdims=True) / boundary.shape[-1] ** 0.5)
    return gate * mean + (1 - gate) * boundary
