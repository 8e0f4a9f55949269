"""Checkpoints both ways: every layout to every other and back, bit for bit."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
from helpers import PARITY, TINY, largest_file, parity_model, tiny_params

from jax_simcas import convert
from jax_simcas.backbones.ops.stacks import stack_layers
from jax_simcas.checkpoints.hub import LAYOUTS, load, save
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common.errors import UserError
from jax_simcas.data.tokenizer import load_tokenizer, save_tokenizer, word_level
from jax_simcas.run import config as settings
from jax_simcas.run.build import load_model
from jax_simcas.run.convert_model import notes_on_config
from jax_simcas.run.method_config import SimcasConfig

torch = pytest.importorskip("torch")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("path", list(itertools.permutations(LAYOUTS)), ids="-".join)
def test_a_round_trip_through_all_layouts_is_exact(path, tmp_path, capsys):
    source = PARITY
    for number, layout in enumerate((*path, path[0])):
        target = tmp_path / str(number)
        assert convert.main([str(source), str(target), "--to", layout]) == 0
        source = target
    assert "with its selector" in capsys.readouterr().out
    assert load(source).config == parity_model()[0]
    assert_same(load(source).params, jax.tree.map(np.asarray, parity_model()[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "led", "scale_embedding": True},
            "bart.scale_embedding=True has no place in the config.json of a led",
        ),
        ({"max_decoder_position_embeddings": 20}, "bart.max_decoder_position_embeddings=20 has no place"),
        ({"normalize_before": True}, "no mbart with final_layer_norm=False"),
        ({"final_layer_norm": True}, "no bart with final_layer_norm=True"),
        ({"normalize_before": True, "final_layer_norm": True}, ""),
        ({"model_type": "pegasus"}, ""),
    ],
)
def test_settings_that_transformers_cannot_have_are_told(changes, message):
    """A model from scratch may have them."""
    config = dataclasses.replace(TINY, **changes)
    try:
        found = "".join(notes_on_config(config, "runs/a"))
    except UserError as error:
        found = str(error)
    assert message in found and bool(message) == bool(found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_one_line(layout, tmp_path):
    """Each library fails in its own way."""
    config, params = parity_model()
    with largest_file(4_096), pytest.raises(UserError, match=f"{layout}: cannot be written") as caught:
        save(tmp_path / layout, config, params, layout)
    assert "\n" not in str(caught.value) and not (tmp_path / layout / LAYOUTS[layout]).exists()


def test_the_authors_file_comes_back_as_it_was(tmp_path):
    (tmp_path / "theirs").mkdir()
    for name in ("config.json", "model_generation.bin"):
        shutil.copy(PARITY / name, tmp_path / "theirs")
    assert convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours"), "--to=hf"]) == 0
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back"), "--to=released"]) == 0
    before, after = (
        torch.load(folder / "model_generation.bin", weights_only=True) for folder in (PARITY, tmp_path / "back")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_hub_model_loads_strictly_in_transformers(tmp_path):
    from transformers import BartForConditionalGeneration

    params = {name: value for name, value in parity_model()[1].items() if name != "selector"}
    save(tmp_path / "ours", parity_model()[0], params)
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "hf"), "--to=hf"]) == 0
    model, told = BartForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    np.testing.assert_array_equal(model.model.shared.weight.detach(), params["model"]["shared"]["embedding"])


@pytest.mark.parametrize("held_as", [lambda params: params, stack_layers], ids=["apart", "stacked"])
def test_a_workdir_is_exported_with_its_tokenizer_and_settings(tmp_path, held_as):
    words = tuple(f"w{i}" for i in range(TINY.vocab_size - 4))
    tokenizer = tmp_path / "tokenizer"
    word_level(words, tokenizer)
    workdir = tmp_path / "run"
    workdir.mkdir()
    save_tokenizer(load_tokenizer(tokenizer), workdir / "tokenizer")
    bart = dataclasses.replace(TINY, vocab_size=len(load_tokenizer(tokenizer)))
    held = settings.Settings(bart=bart, simcas=SimcasConfig(chunk_length=16))
    (workdir / "config.json").write_text(settings.to_json(held))
    params = tiny_params(bart)
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        checkpointer.save(1, {"params": held_as(params)}, None, {})
    assert convert.main([str(workdir), str(tmp_path / "hf"), "--to=hf", "--step=latest"]) == 0
    model = load_model(str(tmp_path / "hf"))
    assert model.settings.simcas == held.simcas and len(model.tokenizer) == bart.vocab_size and not model.notes
    assert_same(model.params, jax.tree.map(np.asarray, params))


def test_a_target_with_other_weights_and_a_missing_source_are_refused(tmp_path, capsys):
    shutil.copy(PARITY / "model_generation.bin", tmp_path)
    assert convert.main([str(PARITY), str(tmp_path), "--to=hf"]) == 1
    assert "holds model_generation.bin already" in capsys.readouterr().err
    assert convert.main([str(tmp_path / "nothing"), str(tmp_path / "x"), "--to=hf"]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert convert.main([str(PARITY), str(tmp_path), "--to=released"]) == 0  # the same file: written anew
