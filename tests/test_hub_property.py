"""Whatever a folder of weights holds: a model, or one line that names the file."""

import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from helpers import PARITY
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.checkpoints import hub
from jax_simcas.checkpoints.hub import load
from jax_simcas.common.errors import UserError

torch = pytest.importorskip("torch")


transformers = pytest.importorskip("transformers")


# Whatever a folder holds: a model, or one line that names the file


json_values = st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=5) | st.lists(st.none())


CONFIG_FIELDS = sorted({*BartConfig().to_hf(), "model_type", "other"})


tensors = st.dictionaries(
    st.sampled_from(
        ["model.shared.weight", "shared.weight", "lm_head.weight", "weight", "", ".", "a", "a.b", "model.a", "a/b"]
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", 3]),
            "shape": st.lists(st.integers(0, 4), max_size=3) | st.just([-1]),
            "data_offsets": st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted) | st.just([0]),
        },
    ),
    max_size=3,
)


def assert_a_model_or_one_line(folder):
    try:
        load(folder)
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)


@given(st.dictionaries(st.sampled_from(CONFIG_FIELDS), json_values, max_size=4))
@settings(deadline=None, max_examples=60)
def test_any_config_gives_a_model_or_one_line(changes):
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((PARITY / "config.json").read_text())
        Path(folder, "config.json").write_text(json.dumps(config | changes))
        shutil.copy(PARITY / "model.safetensors", folder)
        assert_a_model_or_one_line(Path(folder))


@given(tensors | st.binary(max_size=60) | st.none(), st.binary(max_size=64), st.none() | st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=100)
def test_any_safetensors_file_gives_a_model_or_one_line(header, data, length):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PARITY / "config.json", folder)
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = struct.pack("<Q", len(header) if length is None else length)
        Path(folder, "model.safetensors").write_bytes(size + header + data)
        assert_a_model_or_one_line(Path(folder))


@given(st.sampled_from(sorted(hub.WEIGHTS)), st.binary(max_size=80))
@settings(deadline=None, max_examples=60)
def test_any_bytes_give_a_model_or_one_line(name, content):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PARITY / "config.json", folder)
        Path(folder, name).write_bytes(content)
        assert_a_model_or_one_line(Path(folder))


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=3) | json_values)
@settings(deadline=None, max_examples=40)
def test_any_index_gives_a_model_or_one_line(index):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PARITY / "config.json", folder)
        Path(folder, "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        assert_a_model_or_one_line(Path(folder))
