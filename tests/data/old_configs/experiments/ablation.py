"""The paper's ablation: SimCAS without chunking (one chunk is read), without alignment, without selection.

python -m jax_simcas.experiments configs/experiments/ablation.py

The paper: each part's removal costs score on all seven data sets; alignment's least, at most 2.6 %. Here by default on
the embedded task: 4 variants, 3 seeds: 34 minutes on one CPU core. Without selection the decoder sees all states, in
training too.

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.grid import Evaluation, Experiment, Variant
from jax_simcas.presets import embedded_config, held_out, without_selection


def get_config():
    return embedded_config()


def get_experiment(config):
    return Experiment(
        variants=(
            Variant("SimCAS"),
            Variant("without chunk", {"simcas.max_input_len": config.simcas.chunk_length}),
            Variant("without align", {"simcas.align": "none"}),
            Variant("without select", without_selection(config)),
        ),
        evaluations=(Evaluation(split=held_out(config)),),
    )
