"""Flan-T5-base: reports of US government offices and their summaries.

python -m jax_simcas.train --config=configs/flan_t5_base.py --workdir=runs/flan_t5_base --config.data.data_dir=DATA

DATA as for configs/govreport.py. On arXiv's articles: --config=configs/arxiv.py with
--config.pretrained=google/flan-t5-base
Its positions are relative: a chunk may have any length. Boundaries: `</s>` at both ends of each of several chunks;
--config.simcas.chunk_start='<extra_id_0>' is the alternative (docs/backbones.md).
Accelerator memory, a document at a time: 6.5 GiB (compiled for a TPU v5e with a capacity of 2,048; see
docs/performance.md).
Rates and lengths are those of the published runs of BART-base: for Flan-T5 they were not tuned.
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.pretrained = "google/flan-t5-base"
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
