"""Reports of US government offices and their summaries.

python -m jax_simcas.train --config=configs/govreport.py --workdir=runs/govreport --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, with the fields report and summary.
In place of files: --config.data.source=datasets:ccdv/govreport-summarization, which has these fields, or the
authors' own chunks, --config.data.source=chunked:JW-X/govreport_bart_512 (tensorflow-datasets' gov_report will
not do: its summaries are empty).
Published test result of BART-base: ROUGE-1/2/L 59.30/25.95/27.07, BERTScore 68.17. BART-large:
--config.pretrained=facebook/bart-large
Accelerator memory, a document at a time: 4.4 GiB, BART-large 10.7 (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.data.fields.document = "report"

    config.optimizer.accumulate_step = 8
    config.optimizer.warmup = 1_600
    config.optimizer.max_lr = 4e-3

    config.generate.max_length = 740 + 2  # new tokens, decoder start and BOS
    config.generate.min_length = 50 + 1
    config.generate.length_penalty = 2.0

    config.loop.seed = 777
    config.loop.eval_every = config.loop.checkpoint_every = 500
    return config
