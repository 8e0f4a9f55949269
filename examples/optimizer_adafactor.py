"""An optimizer of your own: Adafactor, which needs no second moment per parameter, with a cosine decay.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/adafactor --config.optimizer.max_lr=3e-3 \
    --config.optimizer.algorithm=examples.optimizer_adafactor:adafactor \
    --config.optimizer.schedule=examples.optimizer_adafactor:cosine
"""

import optax


def cosine(max_lr, warmup, steps):
    """From 0 to max_lr in `warmup` optimizer steps, and by a cosine to 0 at the end of the run."""
    warmup = min(warmup, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0, max_lr, warmup, max(steps, warmup + 1))


def adafactor(schedule):
    return optax.adafactor(schedule, min_dim_size_to_factor=32)
