"""Tokens on disk: the same batches as without, whole or not there, and another cache when anything changes."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import tokenizers
from cached_rows import CONFIG, COUNT, WORDS, jsonl, rows, same, take
from cached_rows import made as made
from cached_rows import source as source
from cached_rows import words as words

from jax_simcas.common.errors import UserError
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import make_iterator
from jax_simcas.data.cache import find, of_first_format, reshuffles_parts, token_cache
from jax_simcas.data.features import FeatureConfig, featurize
from jax_simcas.data.rows import Fields, First
from jax_simcas.data.text_files import JsonlSource


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
        "chunk_start": 3,
        "chunk_end": 3,
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


def test_tokens_of_the_first_format_are_found_and_not_read(source, words, tmp_path):
    """Version 0.2.0 named the folder by this and framed what fits one chunk otherwise."""
    special = {"bos": words.bos_token_id, "eos": words.eos_token_id, "pad": words.pad_token_id}
    settings = [
        *(("chunk_length", 6), ("chunking", "fixed"), ("decoder_start", 2), ("draw_answer", False)),
        *(("input_template", "{document}"), ("join_parts", "</s>"), ("max_input_len", 40), ("max_target_len", 8)),
        ("parts_at", ""),
    ]
    tokens = (words.backend_tokenizer.to_str(), special, tokenizers.__version__)
    key = hashlib.sha256(repr((1, source.fingerprint, tokens, settings)).encode()).hexdigest()[:20]
    assert of_first_format(source, words, CONFIG, tmp_path) is None
    (tmp_path / key).mkdir()
    assert of_first_format(source, words, CONFIG, tmp_path) == tmp_path / key
    assert find(source, words, CONFIG, tmp_path) is None
