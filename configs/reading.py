"""A small model that learns to read: it repeats some sentences of a window of one chunk. From scratch.

python launch/reading.py DATA/sumpubmed DATA/qmsum --to DATA/reading
python -m jax_simcas.train --config=configs/reading.py --workdir=runs/reading --config.data.data_dir=DATA/reading

4,000 steps take 47 minutes to an hour on one CPU core and end at a validation nll of 2.9. It stands in for a pretrained
model, which has read short texts only too: the runs of docs/results.md on real documents start from it.
"""

from jax_simcas.run.presets import reading_config


def get_config():
    return reading_config()
