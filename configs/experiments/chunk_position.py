"""Encodings of the order of chunks: none (as published), sinusoidal, or a learned table.

python -m jax_simcas.experiments configs/experiments/chunk_position.py

Neither the paper nor its code encodes the order of chunks, and the cost of that is unpublished. By default on the
synthetic task with two facts that must be answered in document order: a model that does not know the order of chunks
swaps two facts of different chunks half of the time. 2,000 steps (800 are too few for most seeds), 3 variants, 3
seeds, 70 minutes on one CPU core (two seeds took 45).

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


def get_config():
    config = embedded_config()
    config.data.embedded.ordered = True
    config.data.embedded.slots = 2
    config.data.embedded.values_per_slot = 8
    config.loop.steps = 2_000
    return config


def get_experiment(config):
    kinds = ("none", "sinusoidal", "learned")
    return Experiment(
        variants=tuple(Variant(kind, {"simcas.chunk_position": kind}) for kind in kinds),
        evaluations=(Evaluation(split=held_out(config)),),
    )
