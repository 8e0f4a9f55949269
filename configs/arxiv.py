"""arXiv articles and their abstracts.

python -m jax_simcas.train --config=configs/arxiv.py --workdir=runs/arxiv --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, with the fields article and abstract; or train.txt, val.txt and
test.txt as the authors of the set publish them, with lists of sentences article_text and abstract_text.
In place of files: --config.data.source=tfds:scientific_papers/arxiv or
--config.data.source=datasets:ccdv/arxiv-summarization:document, which have these fields, or the authors' own
chunks, --config.data.source=chunked:JW-X/arxiv_bart_512
Published test result of BART-base: ROUGE-1/2/L 47.22/19.35/42.25, BERTScore 63.51. BART-large:
--config.pretrained=facebook/bart-large
Accelerator memory, a document at a time: 4.4 GiB, BART-large 10.7 (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.data.fields.document = "article|article_text"
    config.data.fields.summary = "abstract|abstract_text"
    config.data.fields.summary_list = "sentences"
    config.data.fields.id = "id|article_id"

    config.optimizer.accumulate_step = 8
    config.optimizer.warmup = 10_000
    config.optimizer.max_lr = 1e-2

    config.generate.max_length = 300 + 2  # new tokens, decoder start and BOS
    config.generate.min_length = 50 + 1
    config.generate.length_penalty = 5.0

    config.loop.seed = 5555
    return config
