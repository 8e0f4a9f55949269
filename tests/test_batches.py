"""From features to batches: how rows are padded, in which order they come, and exact resume."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import warnings

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import environment
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import PipelineConfig, make_iterator, pad_batch, pad_to
from jax_simcas.data.features import featurize
from jax_simcas.data.rows import Fields, Row
from jax_simcas.data.text_files import JsonlSource

WORDS = [f"w{i}" for i in range(50)]
CONFIG = PipelineConfig(chunk_length=6, max_input_len=40, max_target_len=8, batch_size=3, seed=5)
PARTS = dataclasses.replace(CONFIG, parts_at="|||||", join_parts="</s>", draw_answer=True, max_input_len=60)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    tokenizer_lib.word_level([*WORDS, "ask", ":", ".", "q"], folder)
    return tokenizer_lib.load_tokenizer(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eleven rows of 1 to 21 words."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"document": " ".join(WORDS[: 2 * i + 1]), "summary": f"w{i} w{i}"} for i in range(11)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(folder / "train.jsonl", Fields(), folder / "cache")


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


def indices(batches):
    return [batch["row_index"][batch["row_mask"]].tolist() for batch in batches]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


# Padding


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 3), st.sampled_from([(), (2, 5), (64,)]))
@settings(deadline=None, max_examples=40)
def test_padding_changes_nothing(words, lengths, more, buckets):
    config = dataclasses.replace(CONFIG, chunk_buckets=buckets, max_target_len=7)  # no power of two
    rows = [
        featurize(Row(str(n), " ".join(WORDS[i % 50] for i in range(n)), "w1 " * n), words, config) for n in lengths
    ]
    batch = pad_batch(rows, config, pad=1, size=len(rows) + more)
    b, k, s = batch["input_ids"].shape
    assert (b, s) == (len(rows) + more, 6) and batch["target_ids"].shape[1] <= config.max_target_len
    assert k in (*buckets, 1, 2, 4, 8, config.most_chunks)
    for i, row in enumerate(rows):
        chunks, target = len(row["input_ids"]), len(row["target_ids"])
        for name, fill in (("input_ids", 1), ("token_mask", False), ("evidence_mask", False)):
            np.testing.assert_array_equal(batch[name][i, :chunks], row[name])
            assert (batch[name][i, chunks:] == fill).all()
        assert batch["chunk_mask"][i].tolist() == [True] * chunks + [False] * (k - chunks)
        np.testing.assert_array_equal(batch["target_ids"][i, :target], row["target_ids"])
        assert (batch["target_ids"][i, target:] == 1).all()
        np.testing.assert_array_equal(batch["target_mask"][i], np.arange(batch["target_ids"].shape[1]) < target)
    assert batch["row_mask"].tolist() == [True] * len(rows) + [False] * more
    for name in ("token_mask", "chunk_mask", "target_mask", "evidence_mask", "has_evidence"):
        assert not batch[name][len(rows) :].any()
    assert (batch["input_ids"][len(rows) :] == 1).all()


def test_types_and_shapes(words, source):
    (batch,) = take(make_iterator(source, words, CONFIG, training=True), 1)
    shapes = {name: (batch[name].dtype, batch[name].ndim) for name in batch}
    assert shapes == {
        "input_ids": (np.int32, 3),
        "token_mask": (bool, 3),
        "chunk_mask": (bool, 2),
        "evidence_mask": (bool, 3),
        "has_evidence": (bool, 1),
        "target_ids": (np.int32, 2),
        "target_mask": (bool, 2),
        "row_index": (np.int64, 1),
        "row_mask": (bool, 1),
        "cut_tokens": (np.int64, 1),
        "cut_target": (np.int64, 1),
    }


def test_few_shapes(words, source):
    batches = take(make_iterator(source, words, CONFIG, training=True), 60)
    assert {batch["input_ids"].shape[1] for batch in batches} <= {1, 2, 4, 8}
    assert {batch["target_ids"].shape[1] for batch in batches} == {8}
    # A batch of one row is that row.
    one = dataclasses.replace(CONFIG, batch_size=1)
    for batch in take(make_iterator(source, words, one, training=True), 11):
        features = featurize(source[int(batch["row_index"][0])], words, CONFIG)
        same(batch, pad_batch([features | {"row_index": batch["row_index"][0]}], CONFIG, 1))


def test_wider_batches_are_padded_further(words, source):
    """As processes do whose batches differ in width; never narrower."""
    (batch,) = take(make_iterator(source, words, CONFIG, training=True), 1)
    chunks, target = batch["input_ids"].shape[1], batch["target_ids"].shape[1]
    wide = pad_to(batch, chunks + 3, target + 2, pad=1)
    for name, value in batch.items():
        index = tuple(slice(size) for size in value.shape)
        np.testing.assert_array_equal(wide[name][index], value, err_msg=name)
    assert (wide["input_ids"][:, chunks:] == 1).all() and not wide["token_mask"][:, chunks:].any()
    assert (wide["target_ids"][:, target:] == 1).all() and not wide["target_mask"][:, target:].any()
    same(pad_to(batch, 1, 1, pad=1), batch)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"bucket_batches": -1}, {"input_template": "x"}])
def test_bad_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


def test_ready_made_chunks_in_batches(words):
    """More chunks than max_input_len alone would make: they were cut at sentences."""
    w = words.convert_tokens_to_ids(WORDS)
    many = tuple((0, w[i], 1, 1, 1, 2) for i in range(14))
    rows = [Row("1", "", "w1", chunks=many), Row("2", "w0 w1", "w1")]
    (batch,) = make_iterator(rows, words, CONFIG, training=False)
    assert batch["input_ids"].shape == (3, 16, 6)
    assert batch["chunk_mask"].sum(axis=1).tolist() == [14, 1, 0]


def test_training_shuffles_parts_anew_each_epoch_and_resumes(words):
    document = "|||||".join(f" {word} " for word in WORDS[:8])
    rows = [Row(str(i), document, f"w{i}", answers=(f"w{i}", f"w{i + 20}")) for i in range(3)]
    config = dataclasses.replace(PARTS, batch_size=1)
    run = lambda **options: make_iterator(rows, words, dataclasses.replace(config, **options), training=True)
    whole = run()
    first = take(whole, 6)
    state = json.loads(json.dumps(whole.get_state()))
    rest = take(whole, 12)
    text = lambda batch: words.decode(batch["input_ids"][batch["token_mask"]], skip_special_tokens=True)
    assert len({text(batch) for batch in first + rest}) > 12
    assert all(sorted(text(batch).split()) == sorted(WORDS[:8]) for batch in first + rest)
    assert len({tuple(batch["target_ids"][0]) for batch in first + rest}) > 3
    assert (first[0]["input_ids"] == words.eos_token_id).sum() >= 8  # </s> is the token itself
    resumed = run()
    resumed.set_state(state)
    for a, b in zip(rest, take(resumed, 12), strict=True):
        same(a, b)
    for a, b in zip(first, take(run(), 6), strict=True):
        same(a, b)


# Order


def test_training_order(words, source):
    """Every row once an epoch, each epoch in another order; another seed, another order."""
    config = dataclasses.replace(CONFIG, batch_size=1)
    order = flat(indices(take(make_iterator(source, words, config, training=True), 44)))
    epochs = [order[i : i + 11] for i in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4 and sorted(epochs[0]) != epochs[0]
    other = make_iterator(source, words, dataclasses.replace(config, seed=6), training=True)
    assert flat(indices(take(other, 11))) not in epochs
    again = make_iterator(source, words, config, training=True)
    assert flat(indices(take(again, 44))) == order


@pytest.mark.parametrize("count", [2, 3])
def test_processes_read_the_batches_of_one(words, source, count):
    """Place by place, whichever places a process reads, with the draws of one process."""
    config = dataclasses.replace(CONFIG, batch_size=6, draw_answer=True)
    places = [list(range(6))[p::count] for p in range(count)]
    whole = take(make_iterator(source, words, config, training=True), 8)
    for own in places:
        parts = take(make_iterator(source, words, config, training=True, places=own), 8)
        for part, batch in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part["row_index"], batch["row_index"][own])
            chunks, target = part["input_ids"].shape[1], part["target_ids"].shape[1]
            np.testing.assert_array_equal(part["input_ids"], batch["input_ids"][own, :chunks])
            np.testing.assert_array_equal(part["target_ids"], batch["target_ids"][own, :target])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_start_passes_over_batches(words, source, training, workers):
    config = dataclasses.replace(CONFIG, workers=workers)
    whole = take(make_iterator(source, words, config, training=training), 4)
    rest = take(make_iterator(source, words, config, training=training, start=1), 3)
    for early, late in zip(whole[1:], rest, strict=True):
        for name, value in early.items():
            np.testing.assert_array_equal(late[name], value, err_msg=name)


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation(words, source, count, workers):
    config = dataclasses.replace(CONFIG, workers=workers, batch_size=3 * count)
    shards = [
        list(make_iterator(source, words, config, training=False, places=range(3 * i, 3 * i + 3))) for i in range(count)
    ]
    assert len({len(shard) for shard in shards}) == 1  # or the processes would wait for one another
    assert sorted(row for shard in shards for row in flat(indices(shard))) == list(range(11))
    assert all(batch["row_mask"].shape == (3,) for shard in shards for batch in shard)
    assert all(batch["input_ids"].shape[0] == 3 for shard in shards for batch in shard)


def test_one_row(words):
    rows = [Row("1", "w0", "w1")]
    assert indices(take(make_iterator(rows, words, CONFIG, training=True), 2)) == [[0, 0, 0]] * 2
    assert indices(make_iterator(rows, words, CONFIG, training=False)) == [[0]]
    with pytest.raises(UserError, match="no rows"):
        make_iterator([], words, CONFIG, training=True)


def test_bad_row(words):
    iterator = make_iterator([Row("1", "w0", "w1"), Row("b", " ", "w1")], words, CONFIG, training=False)
    with pytest.raises(UserError, match="row b: its document is empty"):
        list(iterator)


# Resume


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_resume(words, source, training, at):
    whole = make_iterator(source, words, CONFIG, training=training)
    take(whole, at)
    state = json.loads(json.dumps(whole.get_state()))
    rest = take(whole, 6)
    resumed = make_iterator(source, words, CONFIG, training=training)
    take(resumed, 2)  # wherever it was
    resumed.set_state(state)
    for a, b in zip(rest, take(resumed, 6), strict=True):
        same(a, b)


def test_workers_give_the_same_batches_and_resume(words, source, tmp_path):
    """Two processes, through orbax, in one test: a process takes a while to start."""
    config = dataclasses.replace(CONFIG, workers=2)
    alone = make_iterator(source, words, CONFIG, training=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="orbax")
        together = make_iterator(source, words, config, training=True)
        for a, b in zip(take(alone, 3), take(together, 3), strict=True):
            same(a, b)
        with ocp.CheckpointManager(tmp_path) as manager:
            manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(together)))
            manager.wait_until_finished()
            following = take(alone, 5)
            for a, b in zip(following, take(together, 5), strict=True):
                same(a, b)
            together.close()
            resumed = make_iterator(source, words, config, training=True)
            manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
            for a, b in zip(following, take(resumed, 5), strict=True):
                same(a, b)
            resumed.close()


def test_bad_row_in_a_worker(words):
    config = dataclasses.replace(CONFIG, workers=1)
    iterator = make_iterator([Row("b", " ", "w1")], words, config, training=True)
    with pytest.raises(UserError, match="row b: its document is empty"):
        next(iterator)
    iterator.close()


READS = """
import sys, time
from jax_simcas.data import batches, rows, tokenizer
config = batches.PipelineConfig(chunk_length=6, max_input_len=40, max_target_len=8, workers=1)
words = tokenizer.load_tokenizer(sys.argv[1])
iterator = batches.make_iterator([rows.Row("1", "w0", "w1")], words, config, training=True)
first = next(iterator)
time.sleep(2)  # the worker has made as many batches as it may, and waits for one to be read
print(first["row_index"], flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    tokenizer_lib.word_level(WORDS, tmp_path / "words")
    command = [sys.executable, "-c", READS, tmp_path / "words"]
    started = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert started.stdout.readline() == "[0]\n"
        started.kill()
        assert started.communicate(timeout=30) == ("", None)  # the output ends with the last process that holds it
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def test_rows_with_a_token_that_has_no_embedding_are_left_out_and_named(words, source):
    """As `<mask>` in facebook/bart-large-cnn, whose weights lack its row."""
    rows = words.backend_tokenizer.token_to_id("w15")  # of 11 rows, the last three have w15 and more
    config = dataclasses.replace(CONFIG, embedding_rows=rows)
    with pytest.warns(
        UserWarning, match=r"train\.jsonl:9: its document has the token 'w16' .*; such rows are left out"
    ):
        batches = [*make_iterator(source, words, config, training=False)]
    assert np.concatenate([batch["row_index"][batch["row_mask"]] for batch in batches]).tolist() == [*range(8)]
    assert [batch["row_mask"].sum() for batch in batches] == [3, 3, 2, 0] and not batches[-1]["chunk_mask"].any()
    with pytest.warns(UserWarning, match="left out"):
        seen = take(make_iterator(source, words, config, training=True), 11)
    assert {int(i) for batch in seen for i in batch["row_index"][batch["row_mask"]]} == {*range(8)}
    few = make_iterator(source, words, dataclasses.replace(config, max_bad_rows=2), training=False)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UserError, match=r"3 such rows are left out, more than config\.data\.max_bad_rows=2"),
    ):
        list(few)
