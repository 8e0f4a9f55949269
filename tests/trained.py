"""A tiny run, trained once for all tests that read it, and what makes others like it."""

import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from helpers import ROOT, environment, tiny_config

from jax_simcas.checkpoints import hub
from jax_simcas.common import cli
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.method.model import init_params
from jax_simcas.run.loop import train


class Trained(NamedTuple):
    """A finished run and the cache that it filled."""

    workdir: Path
    cache: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Four steps of `tiny_config`."""
    run = Trained(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache"))
    outcome = train(tiny_config(), run.workdir, run.cache, progress=False)
    assert outcome.step == 4 and not outcome.preempted and outcome.metrics["nll"] > 0
    return run


@pytest.fixture
def cache(trained, monkeypatch):
    """Where programs keep tokenizers and compiled functions."""
    monkeypatch.setenv("JAX_SIMCAS_CACHE", str(trained.cache))
    cli.prepare_jax()
    return trained.cache


@pytest.fixture
def workdir(trained, cache):
    """The folder of the trained run, for programs to read."""
    return trained.workdir


@pytest.fixture
def document(tmp_path):
    """A file that the trained run can summarise."""
    path = tmp_path / "document.txt"
    path.write_text(SyntheticSource("test", tiny_config().data.embedded)[0].document, encoding="utf-8")
    return path


def user_runs(*arguments, cache=None, **options):
    """A program in a process of its own."""
    env = environment(**({"JAX_SIMCAS_CACHE": cache} if cache else {}))
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options)


def jsonl_settings(data_dir, **changes):
    """The tiny run on rows of files, scored as summaries."""
    base = tiny_config()
    data = dataclasses.replace(base.data, source="jsonl", data_dir=str(data_dir), vocab_size=300, **changes)
    simcas = dataclasses.replace(base.simcas, max_input_len=100)
    return dataclasses.replace(base, data=dataclasses.replace(data, task="summarization"), simcas=simcas)


def write_split(folder, split, rows):
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def pretrained_folder(folder, extra_tokens=0):
    """A tiny BART without a selector, as the hub would hold it, with a tokenizer beside it."""
    words = tuple(f"word-{i}" for i in range(30))
    word_level(words, folder)
    size = len(load_tokenizer(folder)) - extra_tokens
    settings = tiny_config()
    settings = dataclasses.replace(settings, bart=dataclasses.replace(settings.bart, vocab_size=size))
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), settings.model())
    hub.save(folder, settings.bart, {name: value for name, value in params.items() if name != "selector"})
    return folder
