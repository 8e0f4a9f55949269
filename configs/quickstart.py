"""The synthetic task in plain English, which launch/quickstart.sh trains on.

python -m jax_simcas.train --config=configs/quickstart.py --workdir=runs/english

The first chunk of a generated document asks where somebody was born, lives and works; one sentence each, in any of
seven later chunks, tells it. Two minutes on two CPU cores.
"""

from jax_simcas.run.presets import quickstart_config


def get_config():
    return quickstart_config()
