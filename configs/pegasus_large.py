"""PEGASUS-large: reports of US government offices and their summaries.

python -m jax_simcas.train --config=configs/pegasus_large.py --workdir=runs/pegasus_large --config.data.data_dir=DATA

DATA as for configs/govreport.py. On arXiv's articles: --config=configs/arxiv.py with
--config.pretrained=google/pegasus-large
Fine-tuned checkpoints, such as google/pegasus-arxiv, load the same way; each brings its own limits of length and its
length penalty, which the lines on generation below override.
Accelerator memory, a document at a time: 12.9 GiB (compiled for a TPU v5e with a capacity of 2,048; see
docs/performance.md).
Rates and lengths are those of the published runs of BART-base: for PEGASUS they were not tuned.
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.pretrained = "google/pegasus-large"
    config.data.fields.document = "report"

    config.optimizer.accumulate_step = 8
    config.optimizer.warmup = 1_600
    config.optimizer.max_lr = 4e-3

    config.generate.max_length = 740 + 1  # new tokens and decoder start
    config.generate.min_length = 50 + 1
    config.generate.length_penalty = 2.0

    config.loop.seed = 777
    config.loop.eval_every = config.loop.checkpoint_every = 500
    return config
