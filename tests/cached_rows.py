"""Rows and the cache of their tokens, which the tests of the cache share."""

import itertools
import json

import numpy as np
import pytest

from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.cache import token_cache
from jax_simcas.data.rows import Fields
from jax_simcas.data.text_files import JsonlSource

WORDS = [f"w{i}" for i in range(50)]


CONFIG = PipelineConfig(chunk_length=6, max_input_len=40, max_target_len=8, batch_size=3, seed=5)
COUNT = 23


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    tokenizer_lib.word_level([*WORDS, "."], folder)
    return tokenizer_lib.load_tokenizer(folder)


def rows(count=COUNT):
    """Of 1 to 45 words and zero to three answers; some with evidence, none of it or some."""
    rng = np.random.default_rng(7)
    for i in range(count):
        text = " ".join(rng.choice(WORDS, 2 * i + 1))
        row = {"id": str(i), "document": text, "summary": [f"w{i} " * (3 * k + 1) for k in range(1 + i % 3)]}
        yield row | ({"evidence": [[0, 2], [len(text) // 2, len(text)]] if i % 4 else []} if i % 2 else {})


def jsonl(folder, lines, name="train"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlSource(path, Fields(), folder / "cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return jsonl(tmp_path_factory.mktemp("rows"), rows())


@pytest.fixture(scope="module")
def made(source, words, tmp_path_factory):
    """A cache that serves CONFIG, and others that differ in batching alone."""
    return token_cache(source, words, CONFIG, tmp_path_factory.mktemp("tokens"))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
