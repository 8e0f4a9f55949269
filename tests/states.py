"""Training states and checkpoints of them, which the tests of checkpoints share; and how files are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_simcas.checkpoints.run_state import Checkpointer


def make_state(seed: int):
    key = jax.random.key(seed)
    params = {
        "layers": {str(i): {"kernel": jax.random.normal(key, (8, 8)) + i, "bias": jnp.zeros(8)} for i in range(2)}
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        "params": params,
        "opt_state": optimizer.init(params),
        "key": key,
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "step": jnp.int32(seed),
        "flags": jnp.array([True, False, bool(seed % 2)]),
        "half": jnp.full(3, seed, jnp.bfloat16),
    }


def plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(plain(a), plain(b))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """Steps 1 and 2; tests damage a copy of it."""
    folder = tmp_path_factory.mktemp("two") / "steps"
    with Checkpointer(folder, asynchronous=False) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {"loss": float(step)}, {"rows": 2 * step})
    return folder


@pytest.fixture
def folder(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "copy"))


def restored_step(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Restores, checks that nothing restored is wrong, and gives (step, warnings)."""
    with Checkpointer(folder) as checkpointer:
        found = checkpointer.restore(make_state(9))
    assert_same(found.state, make_state(found.step))
    assert found.meta == {"rows": 2 * found.step}
    return found.step, found.warnings


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes()) or bytearray(1)  # an empty file gets a byte
    content[len(content) // 2 if position is None else position] ^= 0x10
    path.write_bytes(bytes(content))
