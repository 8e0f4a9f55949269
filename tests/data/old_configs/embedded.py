"""The embedded task: generated documents of 8 chunks; the first asks, three facts lie strewn over the others.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/embedded

About two minutes on two CPU cores; exact match on new documents near 100 %. With
--config.data.embedded.topics=2 every second fact is a distractor; it takes about twice as many steps.
"""

from jax_simcas.presets import embedded_config


def get_config():
    return embedded_config()
