"""The synthetic task: a function of its seed, answers that the first chunk lacks, evidence that is right."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.data.synthetic import SPLITS, SyntheticConfig, SyntheticSource
from jax_simcas.data.tokenizer import load_tokenizer, tokenize, word_level

sizes = st.builds(
    SyntheticConfig,
    seed=st.integers(0, 1000),
    chunks=st.integers(2, 6),
    words_per_chunk=st.integers(12, 20),
    topics=st.integers(1, 3),
    slots=st.integers(1, 4),
    values_per_slot=st.integers(1, 9),
    fillers=st.integers(1, 50),
)


@settings(max_examples=60, deadline=None)
@given(config=sizes, split=st.sampled_from(SPLITS), index=st.integers(0, 400))
def test_the_evidence_holds_the_answer(config, split, index):
    row = SyntheticSource(split, config)[index]
    words = row.document.split(" ")
    assert len(words) == config.chunks * config.words_per_chunk
    assert set(words) | set(row.summary.split()) <= set(config.words)
    first = words[: config.words_per_chunk]
    asked = [word.removeprefix("ask-") for word in words if word.startswith("ask-")]
    assert len(asked) == 1 and f"ask-{asked[0]}" in first
    assert not any(word.startswith("fact-") for word in first)
    facts = sorted(row.document[start:end] for start, end in row.evidence)
    assert facts == sorted(word for word in words if word.startswith(f"fact-{asked[0]}-"))
    assert len(facts) == config.slots
    answer = " ".join(f"value-{slot}-{value}" for slot, value in (fact.split("-")[2:] for fact in facts))
    assert row.summary == answer
    assert sum(word.startswith("fact-") for word in words) == config.topics * config.slots


english_sizes = st.builds(
    SyntheticConfig,
    seed=st.integers(0, 1000),
    chunks=st.integers(4, 9),
    words_per_chunk=st.integers(18, 40),
    topics=st.integers(1, 2),
    slots=st.integers(1, 3),
    values_per_slot=st.integers(1, 12),
    fillers=st.integers(1, 50),
    wording=st.just("english"),
)


@settings(max_examples=50, deadline=None)
@given(config=english_sizes, split=st.sampled_from(SPLITS), index=st.integers(0, 400))
def test_english_documents_fill_their_chunks_and_hold_the_answer(config, split, index):
    row = SyntheticSource(split, config)[index]
    tokens = re.findall(r"\w+|[^\w\s]", row.document)
    assert len(tokens) == config.chunks * config.words_per_chunk
    assert {*tokens, *re.findall(r"\w+|,", row.summary)} <= set(config.words)
    chunks = np.array(tokens).reshape(config.chunks, config.words_per_chunk)
    assert all(chunk[-1] == "." for chunk in chunks), "a chunk ends within a sentence"
    question, *sentences = re.split(r"(?<=[.?]) ", row.document)
    name, she = re.match(r"Where was (\w+) born", question)[1], re.search(r" (she|he) ", f"{question} she ")[1]
    asked = [f"where was {name} born", f"where does {she} live", f"where does {she} work"][: config.slots]
    assert question.lower().rstrip("?").replace(" and ", ", ") == ", ".join(asked).lower()
    facts = [f"{name} was born in (.+)\\.", f"{name} lives in (.+)\\.", f"{name} works at the (.+)\\."][: config.slots]
    places = [m[1] for fact in facts for m in map(re.compile(fact).fullmatch, sentences) if m]
    assert row.summary == ", ".join(places)
    assert sorted(row.document[a:b] for a, b in row.evidence) == sorted(places)
    assert list(row.evidence) == sorted(row.evidence)
    told = [sentence for sentence in sentences if re.search(" born | lives | works ", sentence)]
    assert len(told) == config.topics * config.slots
    second_chunk = [m.start() for m in re.finditer(r"\w+|[^\w\s]", row.document)][config.words_per_chunk]
    assert not any(row.document.index(sentence) < second_chunk for sentence in told)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    values=st.integers(1, 9),
    split=st.sampled_from(SPLITS),
    index=st.integers(0, 400),
)
def test_the_answer_is_the_column_of_the_table_that_the_first_chunk_asks_for(rows, columns, values, split, index):
    sizes = {"chunks": rows + 1, "slots": rows, "topics": columns, "words_per_chunk": columns}
    config = SyntheticConfig(wording="table", values_per_slot=values, **sizes)
    row = SyntheticSource(split, config)[index]
    first, *table = np.array(row.document.split(" ")).reshape(rows + 1, columns)
    assert {*first, *np.ravel(table)} <= set(config.words)
    (asked,) = (int(word.removeprefix("ask-")) for word in first if word.startswith("ask-"))
    assert row.summary.split(" ") == [cells[asked] for cells in table]
    assert all(cell.startswith(f"value-{number}-") for number, cells in enumerate(table) for cell in cells)
    assert [row.document[start:end] for start, end in row.evidence] == row.summary.split(" ")


def test_a_tokenizer_of_words_and_punctuation_gives_the_text_back(tmp_path):
    config = SyntheticConfig(wording="english", topics=1)
    word_level(config.words, tmp_path / "words", punctuated=True)
    tokenizer = load_tokenizer(tmp_path / "words")
    row = SyntheticSource("train", config)[3]
    for text in (row.document, row.summary):
        ids, offsets = tokenize(tokenizer, text)
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
        assert [text[a:b] for a, b in offsets] == re.findall(r"\w+|[^\w\s]", text)


def test_evaluations_name_the_set_as_those_of_earlier_versions_did():
    assert repr(SyntheticSource("test", SyntheticConfig(seed=3))) == (
        "EmbeddedSource('test', EmbeddedConfig(seed=3, rows=100000, held_out_rows=500, chunks=8, words_per_chunk=30, "
        "topics=4, slots=3, values_per_slot=8, fillers=100, ordered=False))"
    )
    assert "ordered=False, wording='english')" in repr(SyntheticSource("test", SyntheticConfig(wording="english")))


def test_ordered_facts_come_in_the_documents_order():
    config = SyntheticConfig(topics=2, slots=3, values_per_slot=5, ordered=True)
    for index in range(20):
        row = SyntheticSource("test", config)[index]
        words = row.document.split(" ")
        assert set(words) | set(row.summary.split()) <= set(config.words)
        (asked,) = (word.removeprefix("ask-") for word in words if word.startswith("ask-"))
        facts = [word for word in words if word.startswith(f"fact-{asked}-")]
        assert facts == [row.document[start:end] for start, end in row.evidence] and len(facts) == 3
        assert row.summary == " ".join(f"value-0-{fact.rsplit('-', 1)[1]}" for fact in facts)


def test_a_row_depends_on_seed_split_and_number_only():
    source = SyntheticSource("train", SyntheticConfig())
    assert source[5] == pickle.loads(pickle.dumps(source))[5] == SyntheticSource("train", SyntheticConfig())[5]
    others = [
        source[6],
        SyntheticSource("test", SyntheticConfig())[5],
        SyntheticSource("train", SyntheticConfig(seed=1))[5],
    ]
    assert len({source[5].document, *(row.document for row in others)}) == 4


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="split 'dev'"):
        SyntheticSource("dev", SyntheticConfig())
    with pytest.raises(ValueError, match="topics=20 x slots=3 are 60 facts, which do not fit into the 28 words"):
        SyntheticConfig(topics=20, slots=3, chunks=3, words_per_chunk=14)
    with pytest.raises(ValueError, match="fillers=0"):
        SyntheticConfig(fillers=0)
    table = partial(SyntheticConfig, wording="table", chunks=5, words_per_chunk=6, slots=4, topics=6)
    for wrong, message in (
        ({"ordered": True}, "ordered=True: expected False"),
        ({"slots": 3}, "slots=3: expected 4, a row for each chunk after the first"),
        ({"topics": 4}, "topics=4: expected 6, a column for each word of a chunk"),
    ):
        with pytest.raises(ValueError, match=message):
            table(**wrong)
    english = partial(SyntheticConfig, wording="english", topics=1)
    for wrong, message in (
        ({"slots": 4}, "slots=4: expected 1 to 3"),
        ({"topics": 13}, "topics=13: expected 1 to 12"),
        ({"values_per_slot": 13}, "values_per_slot=13: expected 1 to 12"),
        ({"ordered": True}, "ordered=True: expected False"),
        ({"words_per_chunk": 17}, "words_per_chunk=17: expected at least 18, to hold the question"),
        ({"topics": 5, "words_per_chunk": 18}, "are 15 facts, of which 14 surely fit"),
        ({"wording": "french"}, "wording='french': expected one of codes, english"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            english(**wrong)
