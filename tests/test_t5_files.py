"""Configs and weights of T5, mT5 and UMT5, as transformers reads and writes them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import TINY_T5 as TINY

from jax_simcas.backbones.t5.backbone import T5
from jax_simcas.backbones.t5.config import MODEL_TYPES, T5Config
from jax_simcas.backbones.t5.weights import fitted, from_state_dict
from jax_simcas.checkpoints import hub
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError
from jax_simcas.method.chunk_position import Learned
from jax_simcas.method.model import SimCAS, init_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")

from t5_oracle import (  # noqa: E402
    same_model,
    state_dict,
    tokens,
    torch_model,
)


@pytest.fixture(autouse=True)
def _cache(cache):
    """Compiled programs are kept."""


@pytest.mark.parametrize(("kind", "own_head"), [("t5", False), ("t5", True), ("mt5", True), ("umt5", False)])
def test_a_checkpoint_of_transformers_goes_in_and_out_byte_by_byte(kind, own_head, tmp_path):
    torch_model(kind, own_head=own_head, feed_forward_proj="gated-gelu").save_pretrained(tmp_path / "theirs")
    loaded = hub.load(tmp_path / "theirs")
    assert loaded.config.tie_word_embeddings is not own_head and loaded.config.family == kind
    hub.save(tmp_path / "ours", loaded.config, loaded.params)
    name = "model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    ids = torch.tensor(tokens(0, (1, 5)))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        same = [model(input_ids=ids, decoder_input_ids=ids).logits for model in (again, theirs)]
    assert torch.equal(*same)
    assert hub.read_config(tmp_path / "ours") == loaded.config
    hub.save(tmp_path / "flax", loaded.config, loaded.params, layout="flax")
    restored = trees.by_path(hub.load(tmp_path / "flax").params)
    for path, value in trees.by_path(loaded.params).items():
        np.testing.assert_array_equal(restored[path], value)


def test_selector_and_chunk_positions_are_kept_beside_the_weights(tmp_path):
    params = init_params(jax.random.key(0), SimCAS(T5(TINY), chunk_position=Learned(5)))
    hub.save(tmp_path, TINY, params)
    names = safetensors.load_file(tmp_path / "model.safetensors").keys()
    assert "encoder.chunk_positions.weight" in names and any(n.startswith("model.encoder.agent.") for n in names)
    loaded = trees.by_path(hub.load(tmp_path).params)
    expected = trees.by_path(params)
    assert loaded.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value)


def test_copies_and_dead_weights_of_old_files_are_left_out():
    model = torch_model("t5")
    backbone, params = same_model(model)
    weights, shared = state_dict(model), "shared.weight"
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} < weights.keys()
    dead = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 3), np.float32)}
    without = {name: value for name, value in weights.items() if name != shared}
    prefixed = {f"transformer.{name}": value for name, value in weights.items()}
    for given in (weights | dead, without, prefixed):
        flat = from_state_dict(given, backbone.config)
        assert flat.keys() == trees.by_path(params).keys()
        np.testing.assert_array_equal(flat["shared/embedding"], weights[shared])
    other = weights | {"encoder.embed_tokens.weight": weights[shared] + 1}
    with pytest.raises(UserError, match=r"file: encoder\.embed_tokens\.weight differs from shared\.weight"):
        from_state_dict(other, backbone.config, "file")


@pytest.mark.parametrize("kind", MODEL_TYPES)
@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("scale", [{}, {"scale_decoder_outputs": True}, {"scale_decoder_outputs": False}])
def test_logits_are_scaled_where_transformers_scales_them(kind, said, scale):
    raw = {"model_type": kind} | said | scale
    theirs = transformers.AutoConfig.for_model(**raw)
    config = T5Config.from_hf(raw)
    assert config.scales_logits is (kind != "mt5" and theirs.scale_decoder_outputs)
    assert (config.gated, config.activation) == (theirs.is_gated_act, theirs.dense_act_fn)
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    for name in (*sizes, "relative_attention_num_buckets", "feed_forward_proj", "layer_norm_epsilon", "eos_token_id"):
        assert getattr(config, name) == getattr(theirs, name), name
    for own in (config, dataclasses.replace(config, tie_word_embeddings=not config.tie_word_embeddings)):
        written = json.loads(json.dumps(own.to_hf()))
        assert T5Config.from_hf(written) == own
        again = transformers.AutoConfig.for_model(**written)
        assert kind == "mt5" or again.scale_decoder_outputs == theirs.scale_decoder_outputs
        assert (again.is_gated_act, again.dense_act_fn) == (theirs.is_gated_act, theirs.dense_act_fn)


@pytest.mark.parametrize("kind", MODEL_TYPES)
@pytest.mark.parametrize("projection", [{}, {"feed_forward_proj": "gated-gelu"}, {"feed_forward_proj": "silu"}])
@pytest.mark.parametrize(
    "said",
    [
        *({"dense_act_fn": name} for name in ("gelu", "gelu_new", "relu")),
        *({"is_gated_act": gated} for gated in (True, False)),
        {"dense_act_fn": "silu", "is_gated_act": True},
        {"dense_act_fn": "gelu", "is_gated_act": True},
    ],
)
def test_what_transformers_makes_of_the_projection_counts_where_it_is_said(kind, projection, said):
    raw = {"model_type": kind} | projection | said
    theirs, config = transformers.AutoConfig.for_model(**raw), T5Config.from_hf(raw)
    same = {"gelu_python": "gelu"}
    assert (config.gated, same.get(config.activation, config.activation)) == (theirs.is_gated_act, theirs.dense_act_fn)
    again = transformers.AutoConfig.for_model(**config.to_hf())
    assert (again.is_gated_act, again.dense_act_fn) == (config.gated, config.activation)
    assert T5Config.from_hf(config.to_hf()) == config


def test_a_head_of_its_own_is_told_by_the_weights_alone():
    """transformers 5 writes that heads are tied whether they are or not."""
    for own_head in (False, True):
        for said in (False, True):
            model = torch_model("t5", own_head=own_head, tie_word_embeddings=said)
            config = T5Config.from_hf(model.config.to_dict())
            assert config.scales_logits is said
            found = fitted(config, from_state_dict(state_dict(model), config))
            assert found.tie_word_embeddings is not own_head


def test_the_decoder_starts_as_transformers_has_it():
    assert T5Config.from_hf({}).decoder_start_token_id == 0  # PAD, where nothing is said
    assert T5Config.from_hf({"pad_token_id": 3}).decoder_start_token_id == 3
    code = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}  # CodeT5's
    config = T5Config.from_hf(code)
    assert (config.tokens.bos, config.tokens.eos, config.tokens.decoder_start) == (1, 2, 0)
    assert T5Config.from_hf({}).tokens.bos == 1  # EOS, as there is no begin
    assert config.forced_eos_token_id is None
    assert T5Config.from_hf({}, generation={"decoder_start_token_id": 7}).decoder_start_token_id == 7


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_field_that_is_null_is_as_one_that_is_missing(model_type):
    whole = dataclasses.replace(TINY, model_type=model_type, relative_attention_max_distance=128).to_hf()
    for name in set(whole) - {"model_type", "pad_token_id"}:  # null pads with EOS, as in transformers
        without = {key: value for key, value in whole.items() if key != name}
        assert T5Config.from_hf(without | {name: None}) == T5Config.from_hf(without), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-nonsense"}, "feed_forward_proj='gated-nonsense': expected an activation"),
        ({"feed_forward_proj": "gated-gelu-new"}, "feed_forward_proj='gated-gelu-new'"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets=3: expected at least 4"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance=16: expected more than 16"),
        ({"d_kv": 0}, "d_kv=0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"decoder_start_token_id": 99999}, "decoder_start_token_id=99999 lies outside the vocabulary"),
        ({"d_model": "wide"}, "d_model is 'wide', expected int"),
        ({"is_gated_act": "yes"}, "is_gated_act='yes'"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
    with pytest.raises(UserError, match=r"^config\.json: ") as caught:
        T5Config.from_hf(changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
