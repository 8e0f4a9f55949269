"""Files of T5Gemma and T5Gemma 2: weights and configs come back as transformers wrote them."""

import json

import jax
import pytest
from test_t5gemma import TYPES, arrays, ours, peer

from jax_simcas.backbones.t5gemma import weights as weights_lib
from jax_simcas.backbones.t5gemma.backbone import T5Gemma
from jax_simcas.backbones.t5gemma.config import T5GemmaConfig
from jax_simcas.checkpoints import hub
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def saved(model, folder, dtype):
    """What transformers writes, in that type: (config.json, weights, the bytes of the weights' file)."""
    from safetensors.numpy import load_file

    model.to(dtype).save_pretrained(folder)
    model.to(torch.float32)
    file = folder / "model.safetensors"
    return json.loads((folder / "config.json").read_text()), load_file(file), file.read_bytes()


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_come_back_byte_for_byte(model_type, dtype, tmp_path):
    """With what sees images, which is no parameter here."""
    from safetensors.numpy import save_file

    config, weights, written = saved(peer(model_type), tmp_path, dtype)
    shape = T5GemmaConfig.from_hf(config)
    flat = weights_lib.from_state_dict(weights, shape)
    assert flat.keys() == trees.by_path(jax.eval_shape(lambda: T5Gemma(shape).init(jax.random.key(0)))).keys()
    passengers = weights_lib.passengers(weights)
    assert bool(passengers) == (model_type == "t5gemma2") and len(flat) + len(passengers) == len(weights)
    back = weights_lib.to_state_dict(trees.nest(flat), shape) | passengers
    save_file(back, tmp_path / "back.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "back.safetensors").read_bytes() == written


def test_a_folder_and_a_workdir_keep_what_sees_images(tmp_path):
    """Beside the parameters, which do not hold it, and back in an export."""
    _, weights, written = saved(peer("t5gemma2"), tmp_path, torch.float32)
    loaded = hub.load(tmp_path)
    assert loaded.passengers.keys() == weights_lib.passengers(weights).keys() and loaded.passengers
    kept = tmp_path / "passengers.safetensors"
    hub.save_passengers(kept, loaded.passengers)
    passengers = hub.read_passengers(kept)
    hub.save(tmp_path / "export", loaded.config, loaded.params, passengers=passengers)
    assert (tmp_path / "export/model.safetensors").read_bytes() == written
    hub.save(tmp_path / "flax", loaded.config, loaded.params, "flax", passengers=passengers)
    assert hub.load(tmp_path / "flax").passengers.keys() == passengers.keys()
    hub.save(tmp_path / "flax", loaded.config, loaded.params, "flax")
    assert not hub.load(tmp_path / "flax").passengers
    assert hub.read_passengers(tmp_path / "none") == {}


@pytest.mark.parametrize("model_type", TYPES)
def test_configs_come_back(model_type, tmp_path):
    """From ours, and from transformers' reading of ours."""
    layers = ["full_attention", "full_attention", "sliding_attention"]
    odd = {"layer_types": layers, "attn_logit_softcapping": None, "sliding_window": 9, "attention_bias": True}
    theirs = peer(model_type, encoder=odd, decoder={"final_logit_softcapping": 7.0}, dropout_rate=0.1)
    shape = T5GemmaConfig.from_hf(saved(theirs, tmp_path, torch.float32)[0])
    assert shape.encoder.layer_types == tuple(layers) and shape.encoder.attn_logit_softcapping is None
    assert (shape.decoder.final_logit_softcapping, shape.dropout_rate, shape.family) == (7.0, 0.1, model_type)
    assert T5GemmaConfig.from_hf(json.loads(json.dumps(shape.to_hf()))) == shape
    (tmp_path / "config.json").write_text(json.dumps(shape.to_hf()))
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    ignored = ("architectures", "dtype", "transformers_version", "decoder_start_token_id", "_name_or_path")
    kept = lambda config: {k: v for k, v in config.to_dict().items() if k not in ignored}
    assert kept(again) == kept(theirs.config)


def test_old_names_and_tied_copies():
    """`text_model` in the names of a T5Gemma 2, the copies that a state dict holds, and one that is none."""
    theirs = peer("t5gemma2")
    weights = arrays(theirs)
    assert any(name.startswith("model.encoder.text_model.") for name in weights)
    shape = T5GemmaConfig.from_hf(theirs.config.to_dict())
    assert not any("text_model" in name for name in weights_lib.to_state_dict(ours(theirs)[1], shape))
    weights["lm_head.out_proj.weight"] = weights["lm_head.out_proj.weight"] + 1
    with pytest.raises(UserError, match=r"here: lm_head.out_proj.weight differs .* set tie_word_embeddings to false"):
        weights_lib.from_state_dict(weights, shape, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"encoder": {"hidden_size": "wide"}}, "encoder: hidden_size is 'wide', expected int"),
        ({"decoder": {"head_dim": 7}}, "decoder: head_dim=7: rotary angles need an even width"),
        ({"decoder": {"num_key_value_heads": 3}}, "num_attention_heads=8 is not a multiple of num_key_value_heads=3"),
        ({"encoder": {"rope_parameters": {"rope_type": "yarn"}}}, "rope_type is 'yarn', expected default or linear"),
        ({"encoder": {"layer_types": ["none"], "num_hidden_layers": 1}}, "expected 1 of sliding_attention and full"),
        ({"decoder": ["list"]}, "decoder is \\['list'\\], expected an object"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=f"here: .*{message}"):
        T5GemmaConfig.from_hf({"model_type": "t5gemma", **changes}, "here")
