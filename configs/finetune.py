"""Your own documents and their summaries, with pretrained BART-base.

python -m jax_simcas.train --config=configs/finetune.py --workdir=runs/mine --config.data.data_dir=DATA

DATA holds train.jsonl[.gz] and validation.jsonl[.gz] with the fields document and summary (other names:
--config.data.fields.document=NAME). docs/training.md explains every choice.
In place of facebook/bart-base from the hub, a folder that transformers saved: --config.pretrained=FOLDER
Steps of 4 documents: three passes over the rows, at least 500 steps, at most 20 passes.
Accelerator memory: below 4.4 GiB (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import finetune_config


def get_config():
    return finetune_config()
