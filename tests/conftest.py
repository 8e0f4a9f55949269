"""Eight virtual CPU devices, and shape annotations that are checked while tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads, by default one a core. Virtual devices wait for each other in a collective with a thread each: where
# another task holds one of so few, the last device never comes, and the program aborts.
os.environ.setdefault("NPROC", "16")

import jax
import pytest
from jaxtyping import install_import_hook
from launching import place as place

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook("jax_simcas", "beartype.beartype")


@pytest.fixture(scope="module")
def quick_compiles():
    """What the module compiles is optimised little, which is quicker; see `quickly_compiled` for other processes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
