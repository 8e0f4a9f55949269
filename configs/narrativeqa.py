"""Questions on books and film scripts (NarrativeQA).

python -m jax_simcas.train --config=configs/narrativeqa.py --workdir=runs/narrativeqa --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, with the fields document.text, document.summary.text,
question.text and answers (a list of objects with a text).
In place of files: --config.data.source=datasets:deepmind/narrativeqa, which has these fields, or the authors' own
chunks, --config.data.source=chunked:JW-X/nrtv_bart_512
Published test result of BART-base: F1 31.76. BART-large:
--config.pretrained=facebook/bart-large
Accelerator memory, a document at a time: 4.4 GiB, BART-large 10.7 (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.data.fields.document = "document.text"
    config.data.fields.summary = "answers"
    config.data.fields.query = "question.text"
    config.data.fields.context = "document.summary.text"
    config.data.input_template = "Answer the question: {query}\n\nSummary: {context}\n\nSource: {document}"
    config.data.task = "answers"
    config.data.draw_answer = True

    config.optimizer.accumulate_step = 4
    config.optimizer.warmup = 1_600
    config.optimizer.max_lr = 4e-3

    config.generate.max_length = 20
    config.generate.min_length = 1
    config.generate.length_penalty = 3.0

    config.loop.seed = 777
    return config
