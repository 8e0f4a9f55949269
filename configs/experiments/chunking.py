"""Where documents are cut: after so many tokens, or between sentences.

python -m jax_simcas.experiments configs/experiments/chunking.py

The paper cuts between sentences, its code after a fixed number of tokens, which needs fewer chunks. By default on the
synthetic task in plain English with chunks of 18 tokens, where three of four cuts fall within a sentence. 2 variants,
3 seeds, 20 minutes on one CPU core (one seed took 7).

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import held_out, quickstart_config


def get_config():
    config = quickstart_config()
    config.simcas.chunk_length = 18
    config.data.chunk_buckets = (13,)
    return config


def get_experiment(config):
    return Experiment(
        variants=tuple(Variant(kind, {"simcas.chunking": kind}) for kind in ("fixed", "sentences")),
        evaluations=(Evaluation(split=held_out(config)),),
    )
