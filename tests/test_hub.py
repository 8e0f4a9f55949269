"""Checkpoints in every layout, the same forward pass as transformers' models, and errors that name everything."""

import dataclasses
import json
import pickle
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from helpers import PARITY, parity_model
from safetensors.numpy import load_file, save_file

from jax_simcas import from_pretrained
from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.checkpoints import hub
from jax_simcas.checkpoints.hub import load, save, to_state_dict
from jax_simcas.common.errors import UserError
from jax_simcas.method.chunk_position import Learned
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.model import SimCAS, forward
from jax_simcas.method.select import ALL

torch = pytest.importorskip("torch")


transformers = pytest.importorskip("transformers")


def assert_same(a, b):
    a, b = traverse_util.flatten_dict(a), traverse_util.flatten_dict(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg="/".join(name))


@pytest.fixture
def folder(tmp_path):
    """The parity model in the hub's layout, to be damaged."""
    shutil.copy(PARITY / "config.json", tmp_path)
    shutil.copy(PARITY / "model.safetensors", tmp_path)
    return tmp_path


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("layout", ["hf", "flax", "released"])
def test_every_layout_comes_back_bit_for_bit(layout, tmp_path):
    config, params = parity_model()
    save(tmp_path, config, params, layout, extra={"a": 1})
    again = load(tmp_path)
    assert again.config == config and again.extra == {"a": 1}
    assert_same(again.params, params)


def test_the_trainers_file_and_the_hubs_hold_the_same(tmp_path):
    shutil.copy(PARITY / "config.json", tmp_path)
    shutil.copy(PARITY / "model_generation.bin", tmp_path)
    assert_same(load(tmp_path).params, parity_model()[1])


def test_what_is_saved_loads_strictly_into_the_authors_key_set(tmp_path):
    config, params = parity_model()
    save(tmp_path, config, params, "released")
    ours = torch.load(tmp_path / "model_generation.bin", weights_only=True)
    theirs = torch.load(PARITY / "model_generation.bin", weights_only=True)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def hf_model(kind, **changes):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 60,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 40,
        "max_position_embeddings": 32,
        "init_std": 0.3,
        "dropout": 0.0,
    }
    config, model = {
        "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
        "mbart": (transformers.MBartConfig, transformers.MBartForConditionalGeneration),
    }[kind]
    return model(config(**shape, **changes)).eval()


@pytest.mark.parametrize("file", ["safetensors", "bin", "msgpack"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bart", {}),
        ("bart", {"scale_embedding": True, "activation_function": "gelu_new"}),
        ("mbart", {"scale_embedding": True, "activation_function": "relu"}),
    ],
)
def test_one_chunk_of_which_all_is_kept_is_transformers_own_model(kind, changes, file, tmp_path):
    model = hf_model(kind, **changes)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if file == "bin":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    if file == "msgpack":
        tree = jax.device_get(load(tmp_path).params)
        (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    if file != "safetensors":
        weights.unlink()
    loaded = from_pretrained(tmp_path, jax.random.key(0))
    rng = np.random.default_rng(1)
    source, target = rng.integers(4, 60, (1, 12)), rng.integers(4, 60, 7)
    with torch.no_grad():
        expected = model(torch.tensor(source), decoder_input_ids=torch.tensor(target[None])).logits[0].numpy()
    example = Example(
        Document(jnp.asarray(source, jnp.int32), jnp.ones((1, 12), bool), jnp.ones(1, bool)),
        Target(jnp.asarray(target, jnp.int32), jnp.ones(7, bool)),
    )
    bart = SimCAS(Bart(loaded.config), policy=ALL)
    logits = jax.jit(lambda params: forward(params, bart, example).logits)(loaded.params)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_checkpoint_without_a_selector_gets_a_fresh_one_and_says_so(tmp_path):
    hf_model("bart").save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path, jax.random.key(0))
    assert loaded.params["selector"]["actor"]["dense_1"]["kernel"].shape == (16, 32)
    assert len(loaded.notes) == 1 and "no selector" in loaded.notes[0]


def test_learned_chunk_positions_are_made_or_read(tmp_path, folder):
    fresh = from_pretrained(folder, jax.random.key(0), Learned(max_chunks=5))
    assert "no chunk positions" in fresh.notes[-1]
    save(tmp_path / "again", fresh.config, fresh.params)
    again = from_pretrained(tmp_path / "again", jax.random.key(1), Learned(max_chunks=5))
    assert not again.notes
    assert_same(again.params, fresh.params)


def test_sharded_and_half_precision_weights(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    (folder / "model.safetensors").unlink()
    names, index = sorted(half), {}
    for part in (0, 1):
        file = f"model-{part}.safetensors"
        save_file({name: half[name] for name in names[part::2]}, folder / file)
        index |= dict.fromkeys(names[part::2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    params = load(folder).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(parity_model()[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    index[names[0]] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match="outside its folder"):
        load(folder)


def test_missing_unexpected_and_misshaped_parameters_are_one_error(folder):
    def damage(weights):
        del weights["model.encoder.layers.0.fc1.bias"]
        weights["model.encoder.layers.0.extra.weight"] = np.zeros((2, 2), np.float32)
        weights["model.decoder.layers.1.fc2.bias"] = np.zeros(3, np.float32)

    rewrite(folder, damage)
    with pytest.raises(UserError) as error:
        load(folder)
    message = str(error.value)
    for part in (
        "missing model/encoder/layers/0/fc1/bias",
        "unexpected model/encoder/layers/0/extra/",
        r"model/decoder/layers/1/fc2/bias has shape \[3\]",
    ):
        assert re.search(part, message), message
    assert "\n" not in message


def test_the_error_of_a_whole_model_that_does_not_fit_can_be_read(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_ffn_dim": 2 * config["encoder_ffn_dim"]}))
    rewrite(folder, lambda weights: [weights.pop(name) for name in list(weights) if "decoder.layers" in name])
    with pytest.raises(UserError, match=r"missing model/decoder/layers/0/.*; \d+ more; .* has shape ") as error:
        load(folder)
    assert len(str(error.value)) < 600 + len(str(folder))


def test_a_vocabulary_that_does_not_fit_is_said_first(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 7}))
    with pytest.raises(UserError, match=f"a vocabulary of {config['vocab_size']} tokens where config.json says"):
        load(folder)


def test_part_of_a_selector_is_not_a_selector(folder):
    rewrite(folder, lambda weights: weights.pop("model.encoder.agent.critic.out_proj.bias"))
    with pytest.raises(UserError, match="missing selector/critic/out_proj/bias"):
        load(folder)


def test_weights_that_are_not_finite_are_named(folder):
    def damage(weights):
        weights["model.encoder.layers.0.fc1.bias"][3] = np.inf

    rewrite(folder, damage)
    with pytest.raises(UserError, match=r"not finite: model/encoder/layers/0/fc1/bias"):
        load(folder)


def test_untied_embeddings_are_refused(folder):
    def untie(weights):
        weights["lm_head.weight"] = weights["model.shared.weight"] + 1

    rewrite(folder, untie)
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        load(folder)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_generation.bin"])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_in_it_is_not_run(name, new_format, folder, capsys):
    (folder / "model.safetensors").unlink()
    if new_format:
        torch.save({"model.shared.weight": Malicious()}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="not readable as weights only") as error:
        load(folder)
    assert "Re-running" not in str(error.value)  # torch advises to run the code
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", hub.WEIGHTS)
def test_a_damaged_file_is_named(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x93 this is not a checkpoint")
    with pytest.raises(UserError, match=re.escape(name)):
        load(folder)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: not found"):
        load(tmp_path)
    shutil.copy(PARITY / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"no weights; expected one of model\.safetensors"):
        load(tmp_path)
    with pytest.raises(UserError, match="a file; expected a folder"):
        load(tmp_path / "config.json")
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "prophetnet"}, "model_type is 'prophetnet'"),
        ({"d_model": "wide"}, "d_model is 'wide', expected int"),
        ({"activation_function": "prelu"}, "activation_function='prelu'"),
        ({"encoder_attention_heads": 7}, "not a multiple of encoder_attention_heads=7"),
        ({"pad_token_id": 10**6}, "pad_token_id=1000000 lies outside the vocabulary"),
    ],
)
def test_a_config_that_is_not_barts_is_refused(change, message, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=re.escape(message)):
        load(folder)


def test_the_config_survives_transformers(tmp_path):
    config = BartConfig(d_model=48, forced_bos_token_id=0, forced_eos_token_id=None)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, transformers.BartConfig) and read.d_model == 48
    assert BartConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == config


def test_an_unknown_layout_and_an_unwritable_folder(tmp_path):
    config, params = parity_model()
    with pytest.raises(UserError, match="expected one of hf, flax, released"):
        save(tmp_path, config, params, "onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "file" / "folder", config, params)


def test_state_dict_names_are_unique_and_contiguous():
    weights = to_state_dict(parity_model()[1])
    assert all(value.flags["C_CONTIGUOUS"] for value in weights.values())
    assert "model.encoder.agent.actor.dense_1.weight" in weights and "lm_head.weight" not in weights


# Written files


def test_all_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    config, params = parity_model()
    for layout in hub.LAYOUTS:
        save(tmp_path / layout, config, params, layout, extra={}, copy=[PARITY / "README.md"])
        modes = {path.stat().st_mode for path in (tmp_path / layout).iterdir()}
        assert modes == {(tmp_path / "usual").stat().st_mode}, layout
        assert len(list((tmp_path / layout).iterdir())) == 4


def test_without_torch_the_released_layout_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="the released layout needs torch; install it, or choose hf"):
        save(tmp_path / "new", *parity_model(), "released")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [-1, 0, 10**30])
def test_sizes_that_no_model_has_are_named(value, folder):
    config = json.loads((folder / "config.json").read_text())
    for name in (field.name for field in dataclasses.fields(BartConfig) if field.type == "int"):
        if value == 0 and name.endswith("token_id"):
            continue
        (folder / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(UserError, match=rf"config\.json: .*{name}"):
            load(folder)
