"""QMSum meetings: answers to queries, with human-marked evidence; from scratch, with a small model.

python -m jax_simcas.train --config=configs/qmsum.py --workdir=runs/qmsum --config.data.data_dir=DATA

DATA holds train.jsonl[.gz] and validation.jsonl[.gz] with the fields document, query, summary and, where it is
known, evidence: [[start, end), ...] in characters of the document. With --config.data.source=qmsum it is data/ALL/jsonl
or another folder of github.com/Yale-LILY/QMSum, as published: a row per query, its marked turns as evidence.
"""

from jax_simcas.run.presets import small_config


def get_config():
    config = small_config()
    config.data.fields.query = "query"
    config.data.input_template = "{query}\n{document}"
    config.simcas.max_input_len = 8_128  # 32 chunks of 254 tokens
    config.simcas.max_target_len = 160
    config.data.chunk_buckets = (16, 32)
    config.data.target_buckets = (160,)
    config.generate.max_length = 160
    config.generate.min_length = 24
    config.loop.steps = 300
    return config
