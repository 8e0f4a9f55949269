"""Settings: to JSON and back, from config files, and errors that name the field."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.run import config as lib
from jax_simcas.run.config import DataConfig, LoopConfig, Settings
from jax_simcas.run.config_file import override


def test_defaults_are_the_same_either_way():
    assert lib.from_config(lib.default_config()) == Settings()


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 10**6),
    buckets=st.lists(st.integers(1, 64), max_size=4),
    template=st.sampled_from(["{document}", "{query}\n{document}", "é {document}"]),
    capacity=st.none() | st.integers(2, 5000),
    rate=st.floats(1e-9, 1.0),
)
def test_json_gives_back_what_it_was_given(tmp_path_factory, steps, buckets, template, capacity, rate):
    base = Settings()
    settings = dataclasses.replace(
        base,
        loop=LoopConfig(steps=steps),
        data=DataConfig(chunk_buckets=tuple(buckets), input_template=template),
        simcas=dataclasses.replace(base.simcas, capacity=capacity),
        optimizer=dataclasses.replace(base.optimizer, max_lr=rate),
    )
    path = tmp_path_factory.mktemp("settings") / "config.json"
    path.write_text(lib.to_json(settings), encoding="utf-8")
    assert lib.read_json(path) == settings
    assert lib.differences(settings, lib.read_json(path)) == []


def test_optional_fields_take_a_value_and_none():
    config = lib.default_config()
    config.lock()
    config.simcas.capacity = 100
    assert lib.from_config(config).simcas.capacity == 100
    config.simcas.capacity = None
    assert lib.from_config(config).simcas.capacity is None
    with pytest.raises(TypeError):
        config.simcas.capacity = "many"


@pytest.mark.parametrize("field", ["chunk_start", "chunk_end", "capacity"])
def test_a_flag_takes_none_back(field):
    config = lib.default_config()
    config.simcas[field] = 7
    assert override(config, [(f"simcas.{field}", "None")]).simcas[field] is None


def test_differences_name_fields():
    other = dataclasses.replace(Settings(), loop=LoopConfig(steps=7))
    assert lib.differences(Settings(), other) == ["loop.steps: 1000 -> 7"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"loop": {"stepz": 1}}, "run.loop.stepz: no such field"),
        ({"chunk_length": 64}, "run.chunk_length: no such field; did you mean simcas.chunk_length?"),
        ({"loop": {"steps": 0}}, "run.loop.steps=0: expected at least 1"),
        ({"data": {"source": "xml"}}, "run.data.source='xml': expected one of jsonl, "),
        ({"data": {"input_template": "{query}"}}, "run.data.input_template="),
        ({"simcas": {"align": "median"}}, "run.simcas.align='median'"),
        ({"bart": {"d_model": 7}}, "run.bart.d_model=7 is not a multiple"),
    ],
)
def test_a_bad_field_is_named(mapping, message):
    with pytest.raises(UserError) as error:
        lib.from_mapping(mapping, "run")
    assert message in str(error.value)


def test_files_that_are_not_settings(tmp_path):
    with pytest.raises(UserError, match="not found"):
        lib.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        lib.read_json(tmp_path / "config.json")


def test_steps_that_are_given_count_where_the_config_has_passes():
    config = lib.to_config(Settings())
    config.loop.epochs = 100
    assert override(config, [("loop.steps", "7")]).loop.to_dict().items() >= {"steps": 7, "epochs": 0}.items()
    assert override(config, [("loop.steps", "7"), ("loop.epochs", "2")]).loop.epochs == 2
    assert override(config, [("loop.steps", "None")]).loop.epochs == override(config, []).loop.epochs == 100
