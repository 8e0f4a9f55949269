"""PubMed articles and their abstracts.

python -m jax_simcas.train --config=configs/pubmed.py --workdir=runs/pubmed --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, with the fields article and abstract; or train.txt, val.txt and
test.txt as the authors of the set publish them, with lists of sentences article_text and abstract_text.
In place of files: --config.data.source=tfds:scientific_papers/pubmed or
--config.data.source=datasets:ccdv/pubmed-summarization:document, which have these fields, or the authors' own
chunks, --config.data.source=chunked:JW-X/pubmed_bart_512
Published test result of BART-base: ROUGE-1/2/L 48.17/21.11/43.90, BERTScore 66.33. BART-large:
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

    config.optimizer.accumulate_step = 16
    config.optimizer.warmup = 10_000
    config.optimizer.max_lr = 1e-2

    config.generate.max_length = 400 + 2  # new tokens, decoder start and BOS
    config.generate.min_length = 40 + 1
    config.generate.length_penalty = 4.0

    config.loop.seed = 555
    return config
