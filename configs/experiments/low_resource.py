"""Training on 10, 100 and 1000 examples, against the same model on one chunk.

python -m jax_simcas.experiments configs/experiments/low_resource.py

The paper: SimCAS improves on its backbone with as few as 10 training examples. The paper starts from pretrained BART,
this experiment on the synthetic task from scratch. The best checkpoint by validation counts. 6 variants, 3 seeds, 50
minutes on one CPU core (two seeds took 35). Data without a tokenizer get one that is trained on all rows.

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


def get_config():
    return embedded_config()


def get_experiment(config):
    lines = {"SimCAS": {}, "one chunk": {"simcas.max_input_len": config.simcas.chunk_length}}
    return Experiment(
        variants=tuple(
            Variant(f"{line} of {rows}", {"data.train_rows": rows, **overrides}, line=line, x=rows)
            for line, overrides in lines.items()
            for rows in (10, 100, 1_000)
        ),
        evaluations=(Evaluation(split=held_out(config)),),
        axis="training examples",
    )
