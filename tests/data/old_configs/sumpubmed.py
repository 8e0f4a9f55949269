"""SumPubMed articles and their abstracts, from scratch, with a small model.

python -m jax_simcas.train --config=configs/sumpubmed.py --workdir=runs/sumpubmed --config.data.data_dir=DATA

DATA holds train.jsonl[.gz] and validation.jsonl[.gz] with the fields document and summary.
"""

from jax_simcas.presets import small_config


def get_config():
    config = small_config()
    config.simcas.max_input_len = 6_096  # 24 chunks of 254 tokens
    config.simcas.max_target_len = 512  # 95 % of the abstracts are shorter than 590
    config.data.chunk_buckets = (8, 16, 24)
    config.data.target_buckets = (512,)
    config.generate.max_length = 512
    config.generate.min_length = 256
    config.loop.steps = 300
    return config
