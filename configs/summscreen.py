"""Transcripts of television episodes and their recaps (SummScreen).

python -m jax_simcas.train --config=configs/summscreen.py --workdir=runs/summscreen --config.data.data_dir=DATA

DATA holds train.jsonl[.gz], validation and test, or fd_train.json, fd_dev.json and fd_test.json as the authors of the
set publish them, with the fields Transcript (a list of lines) and Recap (a list: training learns the first, scores
take the best).
In place of files: the authors' own chunks, --config.data.source=chunked:JW-X/summscreen_bart_512, or
--config.data.source=tfds:summscreen/fd with --config.data.fields.document=transcript and
--config.data.fields.summary=recap, once it has been prepared where TensorFlow is installed.
Published test result of BART-base: ROUGE-1/2/L 43.45/12.74/18.38, BERTScore 62.46. BART-large:
--config.pretrained=facebook/bart-large
Accelerator memory, a document at a time: 4.4 GiB, BART-large 10.7 (compiled for a TPU v5e; see docs/performance.md).
"""

from jax_simcas.run.presets import published_config


def get_config():
    config = published_config()
    config.data.fields.document = "Transcript"
    config.data.fields.summary = "Recap"

    config.optimizer.accumulate_step = 8
    config.optimizer.warmup = 6_400
    config.optimizer.max_lr = 8e-3

    config.generate.max_length = 750 + 2  # new tokens, decoder start and BOS
    config.generate.min_length = 50 + 1
    config.generate.length_penalty = 4.0

    config.loop.seed = 777
    return config
