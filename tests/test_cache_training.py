"""Training with the token cache: the same numbers."""

import shutil

import jax
import numpy as np
import pytest
from cached_rows import contents, jsonl
from helpers import figures, tiny_config

from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.data import cache as cache_lib
from jax_simcas.run import loop as train

# Training


def text_run(folder, **changes):
    """Settings of a run of a few seconds on files."""
    words = lambda rng, count: " ".join(f"w{i}" for i in rng.integers(40, size=count))
    for split, count in (("train", 6), ("validation", 3)):
        rng = np.random.default_rng(count)
        lines = [{"document": words(rng, rng.integers(10, 60)), "summary": words(rng, 5)} for _ in range(count)]
        jsonl(folder, lines, split)
    files = {"data.source": "jsonl", "data.data_dir": str(folder), "data.vocab_size": 300, "data.batch_size": 2}
    shapes = {"data.chunk_buckets": (16,), "data.target_buckets": (8,)}  # one compilation
    return tiny_config(**files | shapes | changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without a cache: (folder of the data, workdir, folder of caches). What it compiles serves the others."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_SIMCAS_CACHE", str(folder / "cache"))
        cli.prepare_jax()
    settings = text_run(folder / "data", **{"data.cache": False})
    train.train(settings, folder / "run", folder / "cache", progress=False)
    assert not (folder / "cache" / "tokens").exists()
    return folder / "data", folder / "run", folder / "cache"


def assert_same_run(workdir, expected):
    assert [row for row in figures(workdir) if row["split"] == "train" or row["step"] != 3] == figures(expected)
    newest = [load_params(folder / "checkpoints", "latest")[0] for folder in (workdir, expected)]
    for a, b in zip(*map(jax.tree.leaves, newest), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_training_with_a_cache_gives_the_same_numbers_and_resumes_with_or_without(plain, tmp_path, capsys):
    data, expected, cache = plain
    train.train(text_run(data), tmp_path / "run", cache, progress=False)
    err = capsys.readouterr().err
    assert f"the tokens of 6 rows are cached in {cache}/tokens/" in err
    assert f"the tokens of 3 rows are cached in {cache}/tokens/" in err
    assert_same_run(tmp_path / "run", expected)
    train.train(text_run(data, **{"loop.steps": 3}), tmp_path / "half", cache, progress=False)
    train.train(text_run(data, **{"data.cache": False}), tmp_path / "half", cache, progress=False)
    assert "are cached" not in capsys.readouterr().err  # they were there
    assert_same_run(tmp_path / "half", expected)


@pytest.mark.slow
def test_a_short_run_does_not_wait_for_a_cache(plain, tmp_path):
    """Less than an epoch, and one look at the validation rows."""
    settings = text_run(plain[0], **{"loop.steps": 2, "loop.eval_every": 2})
    train.train(settings, tmp_path / "run", tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache" / "tokens").exists()


@pytest.mark.slow
def test_joined_documents_are_not_cached(plain, tmp_path, capsys):
    settings = text_run(plain[0], **{"data.parts_at": "w1", "loop.steps": 1, "loop.eval_every": 1})
    train.train(settings, tmp_path / "run", tmp_path / "cache", progress=False)
    assert "note: training's tokens are not cached: documents are joined in another" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "tokens").exists()
    with pytest.raises(UserError, match=r"bucket_batches=2 needs .* no config\.data\.parts_at"):
        buckets = text_run(plain[0], **{"data.parts_at": "w1", "data.bucket_batches": 2})
        train.train(buckets, tmp_path / "other", tmp_path / "cache", progress=False)


@pytest.mark.slow
def test_a_full_disk_is_a_warning_and_training_continues(plain, tmp_path, capsys, monkeypatch):
    data, expected, _ = plain

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_lib, "ROWS_PER_CHECK", 1)
    monkeypatch.setattr(cache_lib.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    train.train(text_run(data), tmp_path / "run", tmp_path / "cache", progress=False)
    err = capsys.readouterr().err
    line = f"warning: {tmp_path}/cache/tokens: tokens cannot be cached there (about 0.0 GB more are needed, "
    assert line in err and "--config.data.cache=False" in err
    assert_same_run(tmp_path / "run", expected)
    assert all(name.endswith(".lock") for name in contents(tmp_path / "cache" / "tokens"))
