"""The token cache on disk: how it is made, once; and what is done about kills, damage and full disks."""

import dataclasses
import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cached_rows import CONFIG, COUNT, contents, jsonl, rows, same, take
from cached_rows import made as made
from cached_rows import source as source
from cached_rows import words as words
from helpers import environment, with_disk

from jax_simcas.common.errors import UserError
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import make_iterator
from jax_simcas.data.cache import TokenCache, find, token_cache

# Making it


def test_workers_write_the_same_bytes_and_read_them(source, words, made, tmp_path):
    config = dataclasses.replace(CONFIG, workers=2, bucket_batches=2)
    cache = token_cache(source, words, config, tmp_path)
    for name in ("rows", "index"):
        assert (cache.folder / name).read_bytes() == (made.folder / name).read_bytes()
    alone = make_iterator(source, words, dataclasses.replace(config, workers=0), training=True, cache=made)
    together = make_iterator(source, words, config, training=True, cache=cache)
    for a, b in zip(take(alone, 6), take(together, 6), strict=True):
        same(a, b)
    together.close()
    assert not multiprocessing.active_children()


def test_it_is_made_once(source, words, tmp_path):
    """Of several at the same time one makes it, and reports every row; the others wait and find it."""
    reported = [[] for _ in range(4)]
    caches = [None] * 4

    def make(i):
        caches[i] = token_cache(source, words, CONFIG, tmp_path, reported[i].append)

    threads = [threading.Thread(target=make, args=(i,)) for i in range(4)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert sorted(map(sum, reported)) == [0, 0, 0, COUNT]
    assert len({cache.folder for cache in caches}) == 1
    assert contents(tmp_path) == sorted(f"{caches[0].folder.name}{end}" for end in (".lock", "/index", "/rows"))


def test_it_holds_no_row(made):
    assert len(pickle.dumps(made)) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)).chunks, made.chunks)


def test_a_bad_row_leaves_nothing(words, tmp_path):
    source = jsonl(tmp_path / "rows", rows(3))
    config = dataclasses.replace(CONFIG, input_template="{query} {document}")
    with pytest.raises(UserError, match="row 0: no query"):
        token_cache(source, words, config, tmp_path / "tokens")
    assert all(name.endswith(".lock") for name in contents(tmp_path / "tokens"))


KILLED = """
import sys, time, pathlib
from jax_simcas.data import cache, tokenizer
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.rows import Fields
from jax_simcas.data.text_files import JsonlSource
rows, words, folder, lengths = sys.argv[1:]
def slowly(count):
    print(count, flush=True)
    time.sleep(0.05)
source = JsonlSource(rows, Fields(), pathlib.Path(rows).parent / "cache")
cache.token_cache(source, tokenizer.load_tokenizer(words), PipelineConfig(*eval(lengths)), pathlib.Path(folder), slowly)
"""


def test_a_killed_run_leaves_no_cache_and_the_next_resumes(source, words, made, tmp_path):
    tokenizer_lib.save_tokenizer(words, tmp_path / "words")
    lengths = (CONFIG.chunk_length, CONFIG.max_input_len, CONFIG.max_target_len)
    arguments = [source.path, tmp_path / "words", tmp_path / "tokens", lengths]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as child:
        assert [child.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "1\n"]
        child.send_signal(signal.SIGKILL)
    assert [name for name in contents(tmp_path / "tokens") if name.endswith("/rows")]  # it was at it
    assert find(source, words, CONFIG, tmp_path / "tokens") is None
    cache = token_cache(source, words, CONFIG, tmp_path / "tokens")
    assert all((cache.folder / name).read_bytes() == (made.folder / name).read_bytes() for name in ("rows", "index"))


@pytest.mark.parametrize("rows_left", [0, 1, 0.5, 1.0])
@pytest.mark.parametrize("entries_left", [0, 0.3, 0.701, 1.0])
def test_a_build_resumes_from_what_a_killed_run_left(source, words, made, tmp_path, rows_left, entries_left):
    """Either file may have reached the disk further than the other, and end within a record."""
    folder = Path(shutil.copytree(made.folder, tmp_path / f".{made.folder.name}"))
    sizes = []
    for name, share in (("rows", rows_left), ("index", entries_left)):
        sizes.append(share if share == 1 and type(share) is int else int(share * (folder / name).stat().st_size))
        os.truncate(folder / name, sizes[-1])
    reported = []
    cache = token_cache(source, words, CONFIG, tmp_path, reported.append)
    whole = int((made.index["end"][: sizes[1] // made.index.itemsize] <= sizes[0]).sum())
    assert reported == [whole] + [1] * (COUNT - whole)
    assert all((cache.folder / name).read_bytes() == (made.folder / name).read_bytes() for name in ("rows", "index"))


# Damage


@pytest.mark.parametrize("name", ["rows", "index"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "empty"])
def test_an_incomplete_cache_is_rebuilt(source, words, made, tmp_path, name, damage):
    folder = Path(shutil.copytree(made.folder.parent, tmp_path / "tokens"))
    path = folder / made.folder.name / name
    if damage == "delete":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    assert find(source, words, CONFIG, folder) is None
    cache = token_cache(source, words, CONFIG, folder)
    assert path.read_bytes() == (made.folder / name).read_bytes()
    same(cache.read(COUNT - 1), made.read(COUNT - 1))


def test_damaged_rows_are_tokenised_again(source, words, made, tmp_path):
    """In the middle of a run: a flipped bit in every row, then no file at all."""
    folder = shutil.copytree(made.folder, tmp_path / "tokens")
    cache = TokenCache(Path(folder), tokenizer_lib.LightTokenizer.of(words), CONFIG)
    expected = take(make_iterator(source, words, CONFIG, training=True), 12)
    damaged = bytearray((folder / "rows").read_bytes())
    for end in made.index["end"].tolist():
        damaged[end - 1] ^= 1
    (folder / "rows").write_bytes(damaged)
    assert all(cache.read(i) is None for i in range(COUNT))
    batches = make_iterator(source, words, CONFIG, training=True, cache=cache)
    for i, batch in enumerate(expected):
        same(next(batches), batch)
        if i == 5:
            (folder / "rows").unlink()


def test_a_disk_that_would_become_full_is_an_error_before_it_is(source, words, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_lib, "ROWS_PER_CHECK", 5)
    monkeypatch.setattr(cache_lib.shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(OSError, match=r"GB more are needed, 0\.0 GB are free") as caught:
        token_cache(source, words, CONFIG, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert all(name.endswith(".lock") for name in contents(tmp_path))


FULL = """
import sys, pathlib
from jax_simcas.data import cache, tokenizer
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.rows import Fields
from jax_simcas.data.text_files import JsonlSource
rows, words, folder = sys.argv[1:]
source = JsonlSource(rows, Fields(), pathlib.Path(rows).parent / "cache")
cache.ROWS_PER_CHECK = 10**9
try:
    cache.token_cache(source, tokenizer.load_tokenizer(words), PipelineConfig(64, 10**6, 64), pathlib.Path(folder))
except OSError as error:
    print(error.strerror, list(pathlib.Path(folder).glob(".*")))
"""


def test_a_disk_that_is_full(words, tmp_path):
    source = jsonl(tmp_path / "rows", [{"document": "w1 " * 200_000, "summary": "w1"}] * 8)
    tokenizer_lib.save_tokenizer(words, tmp_path / "words")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*with_disk(disk, 1), sys.executable, "-c", FULL, source.path, tmp_path / "words", disk / "tokens"]
    out = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True, check=True).stdout
    assert out == "No space left on device []\n"
