"""Groups of news articles, split at </s>, and what Wikipedia says of the event (WCEP).

python -m jax_simcas.train --config=configs/wcep.py --workdir=runs/wcep --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, with the fields document and summary.
In place of files: the authors' own chunks, --config.data.source=chunked:JW-X/wcep_bart_512 (their parts' order is
fixed); tensorflow-datasets lacks this set.
Published test result of BART-base: ROUGE-1/2/L 45.68/22.80/37.71, BERTScore 70.59. BART-large:
--config.pretrained=facebook/bart-large
Accelerator memory, a document at a time: 4.4 GiB, BART-large 10.7 (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.data.parts_at = "</s>"

    config.optimizer.accumulate_step = 8
    config.optimizer.warmup = 1_600
    config.optimizer.max_lr = 4e-3

    config.generate.max_length = 40 + 2  # new tokens, decoder start and BOS
    config.generate.min_length = 15 + 1
    config.generate.length_penalty = 2.0

    config.loop.seed = 970913
    config.loop.selector_every = 100
    config.loop.eval_every = config.loop.checkpoint_every = 400
    return config
