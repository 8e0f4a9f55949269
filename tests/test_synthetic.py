"""The synthetic task: a function of its seed, answers that the first chunk lacks, evidence that is right."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.data.synthetic import SPLITS, SyntheticConfig, SyntheticSource

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
