"""How chunks are aligned: by the mean (the paper), by shifting (the released code), not at all.

python -m jax_simcas.experiments configs/experiments/alignment.py

The paper: alignment helps a little on all seven data sets, by at most 2.6 %; it does not mention that its code shifts.
By default on the synthetic task with two topics: only the first chunk contains the query, and without alignment later
chunks' selectors see the query only through previously selected states. 3 variants, 3 seeds, an hour on one CPU core
(two seeds took 41 minutes and are not enough: see docs/results.md).

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


def get_config():
    config = embedded_config()
    config.data.embedded.topics = 2
    config.loop.steps = 1_600
    return config


def get_experiment(config):
    return Experiment(
        variants=tuple(Variant(mode, {"simcas.align": mode}) for mode in ("mean", "shift", "none")),
        evaluations=(Evaluation(split=held_out(config)),),
    )
