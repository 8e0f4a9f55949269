"""A policy of your own: keeps or drops whole sentences, by the mean keep-probability of their tokens.

python -m jax_simcas.train --config=configs/qmsum.py --workdir=runs/sentences --config.data.data_dir=DATA \
    --config.pretrained=facebook/bart-base --config.simcas.policy=examples.policy_sentences:BART \
    --config.optimizer.max_lr=None --config.optimizer.peak_lr=1e-4
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jax_simcas.method.select import Policy


@dataclass(frozen=True)
class KeepSentences:
    """Chooses sentences; a token of `ends` is the last of its sentence."""

    ends: tuple[int, ...]

    def __call__(self, view):
        """view: what a policy sees of one chunk (method.select.ChunkView); returns keep [S]."""
        last = jnp.isin(view.tokens, jnp.array(self.ends))
        sentence = jnp.cumsum(last) - last  # the number of each token's sentence
        total = lambda x: jax.ops.segment_sum(jnp.where(view.mask, x, 0.0), sentence, num_segments=len(last))
        mean = total(view.keep_prob) / jnp.maximum(total(jnp.ones(len(last))), 1)
        return mean[sentence] > 0.5


BART = Policy(KeepSentences(ends=(4,)), reads_tokens=True)  # 4 is "." in the vocabulary of facebook/bart-base
