"""Tokens on disk: the same batches as without, whole or not there, and another cache when anything changes."""

import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import environment, figures, tiny_config, with_disk

from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import PipelineConfig, make_iterator
from jax_simcas.data.cache import TokenCache, find, reshuffles_parts, token_cache
from jax_simcas.data.features import FeatureConfig, featurize
from jax_simcas.data.rows import Fields, First
from jax_simcas.data.text_files import JsonlSource
from jax_simcas.run import loop as train

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


@pytest.mark.parametrize("chunking", ["fixed", "sentences"])
def test_a_row_is_what_tokenising_gives(source, words, tmp_path, chunking):
    config = dataclasses.replace(CONFIG, chunking=chunking)
    cache = token_cache(source, words, config, tmp_path)
    assert len(cache) == len(source) == COUNT
    marked = 0
    for i in range(COUNT):
        expected = featurize(source[i], words, config)
        expected.pop("token_offsets")
        same(cache.read(i), expected)
        assert cache.chunks[i] == len(expected["input_ids"])
        marked += expected["evidence_mask"].sum()
    assert marked > 20 and len(set(cache.chunks.tolist())) > 5
    assert 2 * 23 * 23 < cache.size < 6_000  # two bytes per token


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"draw_answer": True},
        {"chunking": "sentences", "batch_size": 5, "chunk_buckets": (3, 8), "target_buckets": (5, 8)},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_batches_are_the_same_to_the_bit(source, words, tmp_path, change, training):
    config = dataclasses.replace(CONFIG, **change)
    cache = token_cache(source, words, config, tmp_path)
    shutil.copytree(source.path.parent, tmp_path / "moved")
    rows = JsonlSource(tmp_path / "moved" / source.path.name, Fields(), tmp_path / "index")
    (tmp_path / "moved" / source.path.name).write_bytes(b"")  # nothing is read of it
    plain = take(make_iterator(source, words, config, training=training), 40)
    for a, b in zip(plain, take(make_iterator(rows, words, config, training=training, cache=cache), 40), strict=True):
        same(a, b)
    targets = lambda batch: batch["target_ids"][(batch["row_index"] == 5) & batch["row_mask"]]
    answers = {tuple(ids[ids != words.pad_token_id]) for batch in plain for ids in targets(batch)}
    assert (len(answers) > 1) == (training and config.draw_answer)


def test_large_vocabularies_take_four_bytes(source, tmp_path):
    tokenizer_lib.word_level([*(f"x{i}" for i in range(2**16)), *WORDS], tmp_path / "tokenizer")
    large = tokenizer_lib.load_tokenizer(tmp_path / "tokenizer")
    cache = token_cache(source, large, CONFIG, tmp_path)
    features = cache.read(20)
    assert features["input_ids"].max() > 2**16
    np.testing.assert_array_equal(features["input_ids"], featurize(source[20], large, CONFIG)["input_ids"])


def test_ready_made_chunks(words, tmp_path):
    w = words.convert_tokens_to_ids(WORDS)
    chunks = [[0, *w[:4], 2], [0, w[4], 1, 1, 1, 2], [0, w[5], w[6], 2]]
    (tmp_path / "train.jsonl").write_text(json.dumps({"summary": "w1", "chunks": chunks}) + "\n")
    fields = Fields(document="", chunks="chunks")
    source = JsonlSource(tmp_path / "train.jsonl", fields, tmp_path)
    config = dataclasses.replace(CONFIG, parts_at="|||||")
    assert not reshuffles_parts(source, config)
    features = token_cache(source, words, config, tmp_path).read(0)
    expected = featurize(source[0], words, config)
    expected.pop("token_offsets")
    same(features, expected)


# What the key stands for


def test_every_setting_that_changes_tokens_makes_another_cache(source, words, tmp_path):
    light = tokenizer_lib.LightTokenizer.of(words)
    changes = {
        "chunk_length": 7,
        "max_input_len": 41,
        "max_target_len": 9,
        "chunking": "sentences",
        "input_template": "{document} .",
        "decoder_start": 0,
        "parts_at": "|",
        "join_parts": " ",
        "draw_answer": True,
    }
    assert {field.name for field in dataclasses.fields(FeatureConfig)} == set(changes)
    key = cache_lib.key_of(source, light, CONFIG)
    others = [cache_lib.key_of(source, light, dataclasses.replace(CONFIG, **{k: v})) for k, v in changes.items()]
    assert len({key, *others}) == 1 + len(changes)
    batching = dataclasses.replace(CONFIG, batch_size=9, seed=9, workers=9, bucket_batches=9, chunk_buckets=(9,))
    assert cache_lib.key_of(source, light, batching) == key
    assert cache_lib.key_of(First(source, 3), light, CONFIG) != key


def test_other_rows_and_another_tokenizer_make_another_cache(source, words, made, tmp_path):
    folder = made.folder.parent
    assert find(source, words, CONFIG, folder).folder == made.folder
    other = [*rows(COUNT - 1), next(rows()) | {"document": "w1"}]
    assert find(jsonl(tmp_path / "other", other), words, CONFIG, folder) is None
    # The same content elsewhere is the same; a tokenizer that was saved and loaded is too.
    assert find(jsonl(tmp_path / "same", rows()), words, CONFIG, folder).folder == made.folder
    tokenizer_lib.save_tokenizer(words, tmp_path / "saved")
    assert find(source, tokenizer_lib.load_tokenizer(tmp_path / "saved"), CONFIG, folder).folder == made.folder
    tokenizer_lib.word_level([*WORDS[:-1], "."], tmp_path / "tokenizer")
    assert find(source, tokenizer_lib.load_tokenizer(tmp_path / "tokenizer"), CONFIG, folder) is None


# Order and resume


def test_resume_at_every_batch_and_places(source, words, made):
    config = dataclasses.replace(CONFIG, bucket_batches=2, batch_size=4)
    run = lambda **options: make_iterator(source, words, config, training=True, cache=made, **options)
    whole = take(run(), 20)
    for start in range(16):
        for a, b in zip(whole[start:], take(run(start=start), 3), strict=False):
            same(a, b)
    for own in ([0, 2], [1, 3]):
        for part, batch in zip(take(run(places=own), 20), whole, strict=True):
            np.testing.assert_array_equal(part["row_index"], batch["row_index"][own])
            width = part["input_ids"].shape[1]
            np.testing.assert_array_equal(part["input_ids"], batch["input_ids"][own, :width])


@pytest.mark.parametrize("size", [1, 2, 4, 5, 23, 40])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_buckets_keep_epochs_whole(source, words, made, size, window):
    """Every row once an epoch, whatever divides into what."""
    config = dataclasses.replace(CONFIG, bucket_batches=window, batch_size=size)
    count = -(-4 * COUNT // size)
    batches = take(make_iterator(source, words, config, training=True, cache=made), count)
    order = np.concatenate([batch["row_index"] for batch in batches])[: 4 * COUNT].reshape(4, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in order.tolist())
    assert len({tuple(epoch) for epoch in order.tolist()}) == 4


def test_buckets_hold_rows_of_about_as_many_chunks(source, words, made):
    shares = []
    for window in (0, 5):
        config = dataclasses.replace(CONFIG, bucket_batches=window, batch_size=4, chunk_buckets=tuple(range(13)))
        batches = take(make_iterator(source, words, config, training=True, cache=made), 100)
        real = sum(batch["token_mask"].sum() for batch in batches)
        shares.append(real / sum(batch["token_mask"].size for batch in batches))
        widths = [batch["input_ids"].shape[1] for batch in batches[:5]]
    assert shares[1] > 1.15 * shares[0]
    assert widths != sorted(widths)  # not the short ones first


def test_buckets_need_a_cache(source, words):
    config = dataclasses.replace(CONFIG, bucket_batches=2)
    with pytest.raises(UserError, match=r"config\.data\.bucket_batches needs .* config\.data\.cache=True"):
        make_iterator(source, words, config, training=True)


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
    with pytest.raises(UserError, match=r"bucket_batches needs .* no config\.data\.parts_at"):
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
