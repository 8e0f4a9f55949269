"""Eight virtual CPU devices, and shape annotations that are checked while tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook("jax_simcas", "beartype.beartype")
