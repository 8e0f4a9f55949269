"""From rows to batches: what a row becomes, how rows are padded, in which order they come, and exact resume."""

import dataclasses
import itertools
import json
import warnings

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import SENTENCE_END, PipelineConfig, arranged, featurize, make_iterator, pad_batch
from jax_simcas.data.rows import Fields, JsonlSource, Row

WORDS = [f"w{i}" for i in range(50)]
CONFIG = PipelineConfig(chunk_length=6, max_input_len=40, max_target_len=8, batch_size=3, seed=5)
PARTS = dataclasses.replace(CONFIG, parts_at="|||||", join_parts="</s>", draw_answer=True, max_input_len=60)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    tokenizer_lib.word_level([*WORDS, "ask", ":", ".", "q"], folder)
    return tokenizer_lib.load_tokenizer(folder)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    tokenizer_lib.byte_level_bpe(["the fox and the dog . and the fox again\n"] * 3, 290, folder)
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


# One row


def test_by_hand(words):
    row = Row("1", "w0 w1 w2 w3 w4", "w5 w6", evidence=((4, 8),))
    features = featurize(row, words, CONFIG)
    w = words.convert_tokens_to_ids(WORDS)
    np.testing.assert_array_equal(features["input_ids"], [[0, *w[:4], 2], [0, w[4], 1, 1, 1, 2]])
    np.testing.assert_array_equal(features["token_mask"], [[1] * 6, [1, 1, 0, 0, 0, 1]])
    np.testing.assert_array_equal(features["evidence_mask"], [[0, 0, 1, 1, 0, 0], [0] * 6])
    np.testing.assert_array_equal(features["token_offsets"][0, :3], [[-1, -1], [0, 2], [3, 5]])
    np.testing.assert_array_equal(features["token_offsets"][1, :3], [[-1, -1], [12, 14], [-1, -1]])
    np.testing.assert_array_equal(features["target_ids"], [2, 0, w[5], w[6], 2])
    assert features["has_evidence"] and features["cut_tokens"] == features["cut_target"] == 0


def test_limits(words):
    """16,384 tokens hold 16,382 of content; a target keeps its EOS."""
    config = dataclasses.replace(CONFIG, max_input_len=9, max_target_len=5)
    features = featurize(Row("1", " ".join(WORDS[:10]), " ".join(WORDS[:4])), words, config)
    w = words.convert_tokens_to_ids(WORDS)
    assert features["input_ids"][features["token_offsets"][..., 0] >= 0].tolist() == w[:7]
    assert features["target_ids"].tolist() == [2, 0, w[0], w[1], 2]
    assert (features["cut_tokens"], features["cut_target"]) == (3, 2)
    exact = featurize(Row("1", " ".join(WORDS[:7]), "w0 w1"), words, config)
    assert (exact["cut_tokens"], exact["cut_target"]) == (0, 0)
    np.testing.assert_array_equal(exact["input_ids"], features["input_ids"])


def test_query(words):
    config = dataclasses.replace(CONFIG, input_template="ask : {query}\n{document} .")
    row = Row("1", "w0 w1 w2", "w3", query="q q", evidence=((3, 5),))
    features = featurize(row, words, config)
    shown = features["token_offsets"][..., 0] >= 0
    assert words.decode(features["input_ids"][features["token_mask"]], skip_special_tokens=True) == (
        "ask : q q w0 w1 w2 ."
    )
    assert words.decode(features["input_ids"][shown]) == "w0 w1 w2"
    assert words.decode(features["input_ids"][features["evidence_mask"]]) == "w1"
    # Braces in the text are text.
    braces = dataclasses.replace(row, query="{document} {query}", document="{query} w1 w2")
    ids = featurize(braces, words, config)["input_ids"]
    assert (ids == words.unk_token_id).sum() == 3
    with pytest.raises(UserError, match=r"row 1: no query, which input_template=.* config\.data\.fields\.query"):
        featurize(dataclasses.replace(row, query=None), words, config)


def test_an_empty_span_is_no_evidence(words):
    assert not featurize(Row("1", "w0 w12", "w3", evidence=((4, 4),)), words, CONFIG)["evidence_mask"].any()


def test_a_token_across_the_edge_of_the_document(words):
    """It counts with the part that lies in the document."""
    config = dataclasses.replace(CONFIG, input_template="{query}{document}1 w2")
    row = Row("1", "1 w2 w", "w3", query="w", evidence=((0, 1),))
    features = featurize(row, words, config)
    np.testing.assert_array_equal(features["token_offsets"][0, 1:5], [[0, 1], [2, 4], [5, 6], [-1, -1]])
    assert features["evidence_mask"][0].tolist() == [False, True, False, False, False, False]


@given(
    prefix=st.text("ab \n", max_size=6),
    document=st.text("the fox. 😀ß\n", min_size=1, max_size=60).filter(str.strip),
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=3),
    chunking=st.sampled_from(["fixed", "sentences"]),
    length=st.integers(3, 12),
)
@settings(deadline=None, max_examples=150)
def test_offsets_and_evidence(bpe, prefix, document, spans, chunking, length):
    """Tokens point into the original document whatever stands before it, and evidence is what overlaps a span."""
    spans = tuple((min(a, len(document)), min(b, len(document))) for a, b in map(sorted, spans))
    config = PipelineConfig(length, 512, 16, chunking, input_template="{query}{document}")
    row = Row("1", document, "the fox", query=prefix, evidence=spans)
    features = featurize(row, bpe, config)
    plain = tokenizer_lib.encode_text(bpe, prefix + document)
    content = features["token_mask"].copy()
    content[:, [0, -1]] = False
    np.testing.assert_array_equal(features["input_ids"][content], plain.ids)
    for (start, end), (a, b), marked in zip(
        features["token_offsets"][content],
        plain.offsets - len(prefix),
        features["evidence_mask"][content],
        strict=True,
    ):
        characters = set(range(start, end))
        assert characters == set(range(a, b)) & set(range(len(document)))
        assert start >= 0 or not characters
        if characters:
            assert marked == any(characters & set(range(*span)) for span in spans)
        else:
            assert not marked or any(s < start < e for s, e in spans)
    assert (features["token_offsets"][~content] == -1).all()
    assert not features["evidence_mask"][~content].any()
    assert len(features["input_ids"]) <= config.most_chunks


def test_sentences(bpe):
    config = PipelineConfig(10, 512, 16, "sentences")
    features = featurize(Row("1", 'the fox. "the dog?" and\nthe fox', ""), bpe, config)
    texts = [bpe.decode(ids, skip_special_tokens=True) for ids in features["input_ids"]]
    assert "".join(texts) == 'the fox. "the dog?" and\nthe fox'
    ends = {0, 8, 19, 24, 31}
    assert set(np.cumsum([len(text) for text in texts]).tolist()) <= ends
    found = [match.end() for match in SENTENCE_END.finditer("a. b.c? (d!) e。f\n3.5 g")]
    assert found == [2, 7, 12, 15, 17]


def test_nothing_to_read(words):
    with pytest.raises(UserError, match="row 17: its document is empty"):
        featurize(Row("17", " \n", "s"), words, CONFIG)
    # A document may still have no tokens for a tokenizer that drops what it does not know; here, a summary.
    assert featurize(Row("1", "w0", ""), words, CONFIG)["target_ids"].tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    "change", [{"input_template": "x"}, {"chunking": "words"}, {"chunk_length": 2}, {"max_target_len": 2}]
)
def test_config(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


# Chunks that a row brings along


@given(st.integers(1, 30), st.integers(3, 40), st.sampled_from(["fixed", "sentences"]))
@settings(deadline=None, max_examples=60)
def test_ready_made_chunks_are_what_the_text_gives(words, length, limit, chunking):
    """A text that was cut as we cut, with PAD in its last chunk or none, is read like the text itself."""
    config = dataclasses.replace(CONFIG, max_input_len=limit)
    text = Row("1", " ".join(WORDS[i % 50] for i in range(length)), "w1 w2")
    expected = featurize(text, words, config)
    whole = featurize(text, words, dataclasses.replace(config, max_input_len=999))
    padded = tuple(tuple(ids) for ids in whole["input_ids"].tolist())
    bare = (*padded[:-1], tuple(token for token in padded[-1] if token != words.pad_token_id))
    other = dataclasses.replace(config, chunking=chunking, input_template="{query} {document}", parts_at="w1")
    for chunks in (padded, bare):
        ready = featurize(arranged(dataclasses.replace(text, chunks=chunks), other), words, other)
        for name in ("input_ids", "token_mask", "target_ids", "cut_tokens"):
            np.testing.assert_array_equal(ready[name], expected[name], err_msg=name)
        assert (ready["token_offsets"] == -1).all() and not ready["evidence_mask"].any() and not ready["has_evidence"]


def test_ready_made_chunks_keep_their_cuts(words):
    """Whatever they were cut at: here the second chunk is short, and there is no document."""
    w = words.convert_tokens_to_ids(WORDS)
    chunks = ((0, *w[:4], 2), (0, w[4], 1, 1, 1, 2), (0, w[5], w[6], 2))
    features = featurize(Row("1", "", "w5", chunks=chunks), words, CONFIG)
    np.testing.assert_array_equal(features["input_ids"], [*chunks[:2], (0, w[5], w[6], 1, 1, 2)])
    np.testing.assert_array_equal(features["token_mask"].sum(axis=1), [6, 3, 4])
    cut = featurize(Row("1", "", "w5", chunks=chunks), words, dataclasses.replace(CONFIG, max_input_len=7))
    np.testing.assert_array_equal(cut["input_ids"], chunks[:2])
    assert cut["cut_tokens"] == 2
    drawn = arranged(Row("1", "a|||||b", "x", ("x", "y"), chunks=chunks), PARTS, np.random.default_rng(3))
    assert drawn.chunks == chunks and drawn.document == "a|||||b"


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (
            ((0, 5, 6, 2), (0, 5, 2)),
            r"row 9: chunk 0 of its token ids \(config\.data\.fields\.chunks\) has 4 tokens, ex",
        ),
        (((0, 5, 6, 7, 8, 9, 2),), r"chunk 0 .* has 7 tokens, expected 6: config\.simcas\.chunk_length must be what"),
        (((0, 5, 6, 7, 8, 2), (5, 6, 2)), r"chunk 1 .* is \(5,\) \.\.\. \(2,\), expected BOS 0 \.\.\. EOS 2"),
        (((0,),), r"chunk 0 .*expected BOS 0"),
        (((0, 5, 999, 2),), r"chunk 0 .* has 5 to 999, but the tokenizer has 59 tokens"),
        (((0, -5, 2),), r"chunk 0 .* has -5 to -5"),
        (((0, 1, 1, 2),), r"row 9: its chunks .* have no token"),
        ((), r"row 9: its chunks .* have no token"),
    ],
)
def test_ready_made_chunks_that_do_not_fit(words, chunks, message):
    with pytest.raises(UserError, match=message):
        featurize(Row("9", "d", "w1", chunks=chunks), words, CONFIG)


def test_ready_made_chunks_in_batches(words):
    """More chunks than max_input_len alone would make: they were cut at sentences."""
    w = words.convert_tokens_to_ids(WORDS)
    many = tuple((0, w[i], 1, 1, 1, 2) for i in range(14))
    rows = [Row("1", "", "w1", chunks=many), Row("2", "w0 w1", "w1")]
    (batch,) = make_iterator(rows, words, CONFIG, training=False)
    assert batch["input_ids"].shape == (3, 16, 6)
    assert batch["chunk_mask"].sum(axis=1).tolist() == [14, 1, 0]


# Batches


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


def test_context(words):
    """One pass over the template: what a query says is not taken for a place in it."""
    config = dataclasses.replace(CONFIG, input_template="{query} : {context} : {document}", max_input_len=60)
    row = Row("1", "w0 w1", "w3", query="{context} ask", context="w7 w8")
    features = featurize(row, words, config)
    shown = words.decode(features["input_ids"][features["token_mask"]], skip_special_tokens=True)
    assert shown.endswith("ask : w7 w8 : w0 w1") and shown.count("w7") == 1
    with pytest.raises(UserError, match=r"row 1: no context, .* config\.data\.fields\.context"):
        featurize(dataclasses.replace(row, context=None), words, config)


def test_parts_and_answers_keep_their_order_but_in_training():
    row = Row("1", "|||||".join("abcdef"), "x", answers=("x", "y", "z"), evidence=((0, 1),))
    still = arranged(row, PARTS)
    assert still.document == "a</s>b</s>c</s>d</s>e</s>f" and still.summary == "x" and still.evidence is None
    drawn = [arranged(row, PARTS, np.random.default_rng(i)) for i in range(30)]
    assert all(sorted(other.document.split("</s>")) == list("abcdef") for other in drawn)
    assert len({other.document for other in drawn}) > 20 and {other.summary for other in drawn} == {"x", "y", "z"}
    assert arranged(row, CONFIG, np.random.default_rng(0)) == row


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
