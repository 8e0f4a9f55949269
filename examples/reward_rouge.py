"""A reward of your own: ROUGE of a generated summary against the reference, computed on the host.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/rouge \
    --config.simcas.reward=examples.reward_rouge:ROUGE

ROUGE generates at most 8 tokens, the answers of the synthetic task; SUMMARIES at most 64, without repeated trigrams.

The teacher-forced likelihood of the reference is the baseline: what is rewarded is how much better the summary is than
the decoder's probability of the reference promises.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from jax_simcas.method.beam_search import generate
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.reward import Likelihood

SCORER = RougeScorer(["rouge1"])


def rouge1(special, summary, reference):
    """ROUGE-1 F1, 0 to 1, of two rows of token ids, whose numbers serve as words."""
    words = lambda ids: " ".join(str(i) for i in ids.tolist() if i not in special)
    return np.float32(SCORER.score(words(reference), words(summary))["rouge1"].fmeasure)


@dataclass(frozen=True)
class GeneratedRouge:
    """R = scale (ROUGE-1 of a greedy summary - exp(mean log p of the reference))."""

    scale: float = 100.0
    baseline: Likelihood = Likelihood(scale=1.0)  # noqa: RUF009 (frozen)
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(num_beams=1, max_length=8))

    def __call__(self, params, model, example, forward):
        tokens = model.backbone.tokens
        special = frozenset((tokens.pad, tokens.bos, tokens.eos, tokens.decoder_start))
        summary = generate(params, model, self.generate, forward.encoded.compacted).sequence
        score = partial(rouge1, special)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        rouge = jax.pure_callback(score, shape, summary, example.target.ids, vmap_method="sequential")
        return self.scale * (rouge - self.baseline(params, model, example, forward))


ROUGE = GeneratedRouge()
SUMMARIES = GeneratedRouge(generate=GenerateConfig(num_beams=1, max_length=64, no_repeat_ngram_size=3))
