"""What the programs set before they compute."""

import jax
import pytest

from jax_simcas.common import cli

SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


@pytest.mark.parametrize(("given", "kept_from"), [(None, 0.5), ("7", 3.0)])
def test_the_environment_says_which_programs_are_worth_keeping(given, kept_from, monkeypatch, tmp_path):
    """jax reads the variable when it is imported; the programs leave it so."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or str(tmp_path))
    monkeypatch.delenv(SECONDS) if given is None else monkeypatch.setenv(SECONDS, given)
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
    try:
        cli.prepare_jax()
        assert jax.config.jax_persistent_cache_min_compile_time_secs == kept_from
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
