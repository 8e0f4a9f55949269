"""The token that begins each of several chunks, for a tokenizer without a begin token: `</s>` or `<extra_id_0>`.

python -m jax_simcas.experiments configs/experiments/boundaries.py --base=configs/sumpubmed.py \
  --config.data.data_dir=DATA --config.pretrained=runs/reading_t5 --config.optimizer.label_smoothing=0.0 --limit=60

Against reading the first chunk only, which is framed as the tokenizer frames a text in either case. runs/reading_t5 is
what configs/reading_t5.py makes; a T5 of one's own does as well. 3 variants, 3 seeds, about 100 minutes on one CPU
core.

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA, or a published config.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import held_out, reading_config


def get_config():
    return reading_config()


def get_experiment(config):
    return Experiment(
        variants=(
            Variant("SimCAS"),
            Variant("begin with extra_id_0", {"simcas.chunk_start": "<extra_id_0>"}),
            Variant("without chunk", {"simcas.max_input_len": config.simcas.chunk_length}),
        ),
        evaluations=(Evaluation(split=held_out(config)),),
    )
