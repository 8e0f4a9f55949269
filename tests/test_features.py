"""From a row to features: limits, templates, offsets, evidence, parts, answers, ready-made chunks."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from helpers import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from jax_simcas.common.errors import UserError
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.features import (
    SENTENCE_END,
    FeatureConfig,
    check_template,
    draw_answer,
    featurize,
    shuffle_parts,
)
from jax_simcas.data.rows import Row

WORDS = [f"w{i}" for i in range(50)]
CONFIG = FeatureConfig(chunk_length=6, max_input_len=40, max_target_len=8)
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


def framed(single, names):
    """A tokenizer of words that frames a text as `single` says, with its special tokens."""
    ids = {"<pad>": 0, "</s>": 1, "<bos>": 2, "<extra>": 3, "<unk>": 4} | {w: 5 + i for i, w in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    specials = [(token, ids[token]) for token in ("</s>", "<bos>")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", **names)


def test_a_tokenizer_without_bos_as_t5s():
    """Alone as the tokenizer frames it; each of several chunks begins with EOS, or with what the config names."""
    tokenizer = framed("$A </s>", {})
    config = dataclasses.replace(CONFIG, decoder_start=0)
    alone = featurize(Row("1", "w0 w1", "w2"), tokenizer, config)
    np.testing.assert_array_equal(alone["input_ids"], [[5, 6, 1, 0, 0, 0]])
    np.testing.assert_array_equal(alone["target_ids"], [0, 7, 1])
    several = Row("1", " ".join(WORDS[:6]), "w2")
    np.testing.assert_array_equal(
        featurize(several, tokenizer, config)["input_ids"], [[1, 5, 6, 7, 8, 1], [1, 9, 10, 0, 0, 1]]
    )
    config = dataclasses.replace(config, chunk_start=3)
    np.testing.assert_array_equal(featurize(several, tokenizer, config)["input_ids"][:, 0], [3, 3])
    np.testing.assert_array_equal(featurize(Row("1", "w0 w1", "w2"), tokenizer, config)["input_ids"][0, :3], [5, 6, 1])


def test_a_tokenizer_that_ends_no_text_as_gemmas():
    """A target is content and EOS, and so is what ends each of several chunks."""
    tokenizer = framed("<bos> $A", {"bos_token": "<bos>"})
    config = dataclasses.replace(CONFIG, decoder_start=2)
    alone = featurize(Row("1", "w0 w1", "w2"), tokenizer, config)
    np.testing.assert_array_equal(alone["input_ids"], [[2, 5, 6, 0, 0, 0]])
    np.testing.assert_array_equal(alone["target_ids"], [2, 7, 1])
    several = featurize(Row("1", " ".join(WORDS[:6]), "w2"), tokenizer, config)
    np.testing.assert_array_equal(several["input_ids"], [[2, 5, 6, 7, 8, 1], [2, 9, 10, 0, 0, 1]])


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


@pytest.mark.parametrize("chunking", ["fixed", "sentences"])
def test_a_question_behind_a_document_is_not_cut(words, chunking):
    config = dataclasses.replace(
        CONFIG, input_template="ask : {document} q {query} .", max_input_len=12, chunking=chunking
    )
    read = lambda row: words.decode(
        (found := featurize(row, words, config))["input_ids"][found["token_mask"]], skip_special_tokens=True
    )
    row = Row("1", "w0 w1 w2 w3 w4 w5 w6 w7 w8", "w9", query="w40 w41", evidence=((0, 2), (21, 23)))
    features = featurize(row, words, config)
    assert read(row) == "ask : w0 w1 w2 w3 q w40 w41 ." and features["cut_tokens"] == 5
    shown = features["token_offsets"][..., 0] >= 0
    assert words.decode(features["input_ids"][shown]) == "w0 w1 w2 w3"
    assert words.decode(features["input_ids"][features["evidence_mask"]]) == "w0"
    assert read(dataclasses.replace(row, document="w0 w1 w2")) == "ask : w0 w1 w2 q w40 w41 ."
    # One that leaves no room for a document is cut, not the document.
    assert read(dataclasses.replace(row, query=" ".join(WORDS[20:30]))).startswith("ask : w0 w1 w2 w3 w4 w5")


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
    config = FeatureConfig(length, 512, 16, chunking, input_template="{query}{document}")
    row = Row("1", document, "the fox", query=prefix, evidence=spans)
    features = featurize(row, bpe, config)
    plain = tokenizer_lib.tokenize(bpe, prefix + document)
    content = features["content_mask"]
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
    config = FeatureConfig(10, 512, 16, "sentences")
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
def test_bad_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


# Ready-made chunks


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
        ready = featurize(dataclasses.replace(text, chunks=chunks), words, other)
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
    row = Row("1", "a|||||b", "x", ("x", "y"), chunks=chunks)
    assert shuffle_parts(row, PARTS, np.random.default_rng(3)) == row


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


# Templates, parts, answers


def test_context(words):
    """The template is filled in one pass: braces in a query are text."""
    config = dataclasses.replace(CONFIG, input_template="{query} : {context} : {document}", max_input_len=60)
    row = Row("1", "w0 w1", "w3", query="{context} ask", context="w7 w8")
    features = featurize(row, words, config)
    shown = words.decode(features["input_ids"][features["token_mask"]], skip_special_tokens=True)
    assert shown.endswith("ask : w7 w8 : w0 w1") and shown.count("w7") == 1
    with pytest.raises(UserError, match=r"row 1: no context, .* config\.data\.fields\.context"):
        featurize(dataclasses.replace(row, context=None), words, config)


def test_evaluation_keeps_the_order_of_parts_and_the_first_answer():
    row = Row("1", "|||||".join("abcdef"), "x", answers=("x", "y", "z"), evidence=((0, 1),))
    joined = shuffle_parts(row, PARTS)
    assert joined.document == "a</s>b</s>c</s>d</s>e</s>f" and joined.evidence is None
    assert draw_answer(row, PARTS) == row


def test_training_shuffles_parts_and_draws_answers():
    row = Row("1", "|||||".join("abcdef"), "x", answers=("x", "y", "z"))
    documents = [shuffle_parts(row, PARTS, np.random.default_rng(i)).document for i in range(30)]
    assert all(sorted(document.split("</s>")) == list("abcdef") for document in documents)
    assert len(set(documents)) > 20
    assert {draw_answer(row, PARTS, np.random.default_rng(i)).summary for i in range(30)} == {"x", "y", "z"}
    for change in (shuffle_parts, draw_answer):
        assert change(row, CONFIG, np.random.default_rng(0)) == row


def test_training_features_follow_the_generator(words):
    """One generator shuffles the parts first, then draws the answer."""
    row = Row("1", "|||||".join(f" {word} " for word in WORDS[:8]), "w0", answers=("w0", "w20"))
    rng, again = np.random.default_rng(4), np.random.default_rng(4)
    drawn = draw_answer(shuffle_parts(row, PARTS, rng), PARTS, rng)
    features = featurize(row, words, PARTS, again)
    plain = dataclasses.replace(PARTS, parts_at="", draw_answer=False)
    for name, value in featurize(drawn, words, plain).items():
        np.testing.assert_array_equal(features[name], value, err_msg=name)


@given(st.lists(st.sampled_from(["{document}", "{query}", "{", "}", "document", " "])).map("".join))
def test_a_template_has_the_document_once(template):
    if template.count("{document}") == 1:
        check_template(template)
    else:
        with pytest.raises(ValueError, match=r"input_template=.*expected '\{document\}' in it, once"):
            check_template(template)


@pytest.mark.parametrize("smaller", slow_but([1, 4], 4))
@pytest.mark.parametrize(("chunking", "end"), [("fixed", ""), ("sentences", " ")])
def test_of_a_huge_document_only_the_start_is_tokenised(bpe, chunking, end, smaller, monkeypatch):
    rng = np.random.default_rng(0)
    letters = rng.choice([*"thefoxanddog.\n"], 4_000_000 // smaller).tolist()
    text = "".join(letters) if not end else end.join("".join(letters[i : i + 5]) for i in range(0, len(letters), 5))
    config = dataclasses.replace(CONFIG, chunking=chunking, chunk_length=100, max_input_len=2_000)
    read, tokenize = [], tokenizer_lib.tokenize
    for limit in ("LONG", "SAMPLE"):
        monkeypatch.setattr(tokenizer_lib, limit, getattr(tokenizer_lib, limit) // smaller)
    monkeypatch.setattr(tokenizer_lib, "tokenize", lambda *args: read.append(len(args[1])) or tokenize(*args))
    found = featurize(Row("1", text, "the fox"), bpe, config)
    assert sum(read) < len(text) / 4
    short = featurize(Row("1", text[:20_000], "the fox"), bpe, config)
    for name in ("input_ids", "token_mask", "content_mask", "token_offsets", "target_ids"):
        np.testing.assert_array_equal(found[name], short[name])
    whole = len(tokenize(bpe, text).ids)
    assert abs(found["content_mask"].sum() + found["cut_tokens"] - whole) < 0.1 * whole


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_first_tokens_are_those_of_the_whole_text(bpe, words, data):
    pieces = ["the", " fox", "\n", " ", "\u00e9", "</s>", "w1 ", ".", "\U0001f600", "dog" * 30]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=400)))
    limit = data.draw(st.integers(0, 100))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LONG", 64), ("SETTLED", 20), ("SAMPLE", 8)):
            patch.setattr(tokenizer_lib, name, value)
        for tokenizer in (bpe, words):
            whole = tokenizer_lib.tokenize(tokenizer, text)
            (ids, offsets), cut = tokenizer_lib.tokenize_start(tokenizer, text, limit)
            np.testing.assert_array_equal(ids, whole.ids[:limit])
            np.testing.assert_array_equal(offsets, whole.offsets[:limit])
            assert (cut > 0) == (len(whole.ids) > limit)
