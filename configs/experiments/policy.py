"""The learned policy's selection against other selections of the same size.

python -m jax_simcas.experiments configs/experiments/policy.py

The paper shows that selection is no worse than keeping everything, not that the learned selection beats another of the
same size. One trained model, evaluated with its own policy (greedy by default) and with policies that keep equally many
candidates per document: the most probable of each chunk (topk), random ones (the baseline), the first ones, evenly
spaced ones; and with all candidates, a larger budget. Where evidence is marked, recall and precision show how well each
policy finds it. 1 variant, 3 seeds, 6 evaluations, a quarter of an hour on one CPU core.

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


def get_config():
    return embedded_config()


def get_experiment(config):
    policies = ("topk", "random", "first", "spaced", "all")
    return Experiment(
        variants=(Variant("SimCAS"),),
        evaluations=(
            Evaluation("learned", split=held_out(config)),
            *(Evaluation(policy, policy, split=held_out(config)) for policy in policies),
        ),
    )
