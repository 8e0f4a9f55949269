"""Groups of news articles, split at |||||, and their summaries (Multi-News).

python -m jax_simcas.train --config=configs/multinews.py --workdir=runs/multinews --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, with the fields document and summary.
In place of files: --config.data.source=tfds:multi_news, which has these fields, or the authors' own chunks,
--config.data.source=chunked:JW-X/multinews_bart_512 (their parts' order is fixed).
Published test result of BART-base: ROUGE-1/2/L 48.88/20.01/25.32, BERTScore 65.05. BART-large:
--config.pretrained=facebook/bart-large
Accelerator memory, a document at a time: 4.4 GiB, BART-large 10.7 (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.data.parts_at = "|||||"

    config.optimizer.accumulate_step = 16
    config.optimizer.warmup = 6_400
    config.optimizer.max_lr = 8e-3

    config.generate.max_length = 400 + 2  # new tokens, decoder start and BOS
    config.generate.min_length = 150 + 1
    config.generate.length_penalty = 2.0

    config.loop.seed = 777
    return config
