"""A small model that learns to read: it repeats some sentences of a window of one chunk. From scratch.

python launch/reading.py DATA/sumpubmed DATA/qmsum --to DATA/reading
python -m jax_simcas.train --config=configs/reading.py --workdir=runs/reading --config.data.data_dir=DATA/reading

4,000 steps take 47 minutes to an hour on one CPU core and end at a validation nll of 2.9. It stands in for a pretrained
model, which has read short texts only too: the runs of RESULTS.md on real documents start from it.
"""

from jax_simcas.presets import small_config, without_selection


def get_config():
    config = small_config()
    config.update_from_flattened_dict(without_selection(config))
    config.simcas.max_input_len = 254
    config.simcas.max_target_len = 160
    config.simcas.capacity = 256
    config.data.batch_size = 8
    config.data.chunk_buckets = (1,)
    config.data.target_buckets = (160,)
    config.optimizer.label_smoothing = 0.0
    config.generate.max_length = 160
    config.loop.steps = 4_000
    config.loop.eval_every = config.loop.checkpoint_every = 200
    return config
