"""BART's relatives compute what transformers computes: states, logits, gradients, generated tokens, files."""

import dataclasses
import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_but
from safetensors.numpy import load_file, save_file

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.bart.dialects import DIALECTS
from jax_simcas.backbones.bart.weights import from_state_dict
from jax_simcas.backbones.families import FAMILIES
from jax_simcas.backbones.hf_config import GENERATED
from jax_simcas.backbones.ops.layers import ACTIVATIONS
from jax_simcas.checkpoints.hub import from_pretrained, load, save
from jax_simcas.common import trees
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import parameter_dimensions
from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, forward, init_params
from jax_simcas.method.select import ALL

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODEL_TYPES = tuple(DIALECTS)
NEAR = 2e-5  # of the largest value
SIZES, DRAWS = 4, 10  # random sizes, tokens and settings of generation of a dialect; weights and documents of each


def config_of(model_type, rng, **changes):
    """transformers' config of random sizes and special tokens."""
    heads = [int(n) for n in rng.choice([1, 2, 3, 4, 6], 2)]
    vocabulary = int(rng.integers(30, 60))
    pad, bos, eos, start = (int(t) for t in rng.permutation(30)[:4])  # transformers' M2M100 has a row of PAD's number
    config = {
        "vocab_size": vocabulary,
        "d_model": 12 * int(rng.integers(1, 4)),
        "encoder_layers": int(rng.integers(1, 4)),
        "decoder_layers": int(rng.integers(1, 3)),
        "encoder_attention_heads": heads[0],
        "decoder_attention_heads": heads[1],
        "encoder_ffn_dim": int(rng.integers(8, 40)),
        "decoder_ffn_dim": int(rng.integers(8, 40)),
        "max_position_embeddings": int(rng.integers(40, 70)),
        "activation_function": str(rng.choice(["gelu", "gelu_new", "relu", "swish", "silu", "quick_gelu", "tanh"])),
        "scale_embedding": bool(rng.integers(2)),
        "init_std": 0.3,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "decoder_start_token_id": [start, pad, eos][rng.integers(3)],
        "forced_eos_token_id": [None, eos][rng.integers(2)],
    }
    if model_type == "led":
        del config["scale_embedding"], config["max_position_embeddings"]
        config |= {
            "max_encoder_position_embeddings": 140,
            "max_decoder_position_embeddings": int(rng.integers(40, 60)),
            "attention_window": [int(window) for window in rng.choice([32, 64], config["encoder_layers"])],
        }
    if model_type == "marian" and rng.integers(2):
        config |= {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": vocabulary + int(rng.integers(9))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoConfig.for_model(model_type, **(config | changes))


def peer(config, rng):
    """transformers' model with random weights, none of which is 0 or 1."""
    torch.manual_seed(int(rng.integers(1 << 30)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.2 * torch.randn(value.shape)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias += 0.5 * torch.randn(model.final_logits_bias.shape)
            model.final_logits_bias[0, config.eos_token_id] += float(rng.choice([0.0, 2.0]))
    return model


def example_of(config, rng, shape):
    """A document of (chunks, tokens) whose last chunk has PAD before its last token, and a target of as many tokens."""
    chunks, length, target = shape
    words = min(config.vocab_size, getattr(config, "decoder_vocab_size", None) or config.vocab_size)
    others = [t for t in range(words) if t != config.pad_token_id]
    ids, mask = rng.choice(others, (chunks, length)), np.ones((chunks, length), bool)
    tail = int(rng.integers(0, length - 3))
    mask[-1, length - 1 - tail : -1] = False
    ids = np.where(mask, ids, config.pad_token_id)
    targets = np.array([config.decoder_start_token_id, *rng.choice(others, target - 1)])
    return Example(
        Document(jnp.asarray(ids, jnp.int32), jnp.asarray(mask), jnp.ones(chunks, bool)),
        Target(jnp.asarray(targets, jnp.int32), jnp.ones(len(targets), bool)),
    )


def options_of(rng):
    """Random settings of generation, without and with four beams."""
    longest = int(rng.integers(4, 20))
    options = {
        "max_length": longest,
        "min_length": int(rng.integers(0, longest)),
        "length_penalty": float(rng.choice([0.0, 0.6, 1.0, 2.0])),
        "no_repeat_ngram_size": int(rng.choice([0, 2, 3])),
        "early_stopping": [True, False, "never"][rng.integers(3)],
        "repetition_penalty": float(rng.choice([1.0, 1.0, 1.4])),
        "forced_bos_token_id": [None, 5][rng.integers(2)],
    }
    return tuple(GenerateConfig(num_beams=beams, **options) for beams in (1, 4))


def score(log_probabilities, weights):
    return (log_probabilities * weights).sum()


@partial(jax.jit, static_argnames=("model", "options"))
def ours(params, model, example, weights, options):
    """Encoder states [K, S, D], logits [T, V], gradients of a score of all logits, generated tokens."""

    def scored(params):
        out = forward(params, model, example, policy=ALL, with_weights=False)
        return score(jax.nn.log_softmax(out.logits), weights), (out.encoded, out.logits)

    gradients, (encoded, logits) = jax.grad(scored, has_aux=True)(params)
    tokens = [generate(params, model, one, encoded.compacted).sequence for one in options]
    return encoded.hidden, logits, gradients, tokens


def of_peer(model, example, weights, options):
    """The same by transformers: alone for one chunk, else aligned by hooks on the layers of its encoder."""
    ids, mask = (torch.tensor(np.array(x)).long() for x in example.document[:2])
    target, length = torch.tensor(np.array(example.target.ids))[None].long(), ids.shape[1]

    def align(layer, inputs, output):
        states = output[0] if isinstance(output, tuple) else output
        aligned = states.clone()
        for place in (0, length - 1):
            aligned[:, place] = states[:, place].mean(0)
        return (aligned, *output[1:]) if isinstance(output, tuple) else aligned

    encoder = model.get_encoder()
    hooks = [layer.register_forward_hook(align) for layer in list(encoder.layers)[:-1]] if len(ids) > 1 else []
    try:
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if len(ids) == 1:
        inputs = {"input_ids": ids, "attention_mask": mask}
    else:
        selected = torch.cat([states[:, 0].mean(0)[None], states[:, 1:][mask[:, 1:].bool()]])[None]
        inputs = {"encoder_outputs": transformers.modeling_outputs.BaseModelOutput(selected)}
        inputs["attention_mask"] = torch.ones(selected.shape[:2]).long()
    logits = model(**inputs, decoder_input_ids=target).logits[0]
    score(logits.log_softmax(-1), torch.tensor(weights)).backward()
    with torch.no_grad():
        sequences = [model.generate(**inputs, do_sample=False, **given(one))[0] for one in options]
    return states.detach().numpy(), logits.detach().numpy(), sequences


def given(options):
    """What is not left to the checkpoint."""
    return {name: value for name, value in dataclasses.asdict(options).items() if value is not None}


def gradients_of(model, config):
    """By the paths of our tree."""
    values = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    values |= {name: torch.zeros_like(value) for name, value in model.named_buffers() if "final_logits_bias" in name}
    return from_state_dict({name: value.numpy() for name, value in values.items()}, config)


def assert_near(ours, theirs, what, near=NEAR, least=1.0):
    largest = max(np.abs(theirs).max(), least)
    worst = np.abs(np.asarray(ours) - theirs).max()
    assert worst <= near * largest, f"{what}: off by {worst}, of {largest}"


def assert_same_computation(config, folder, rng, shape, options):
    model, example = peer(config, rng), example_of(config, rng, shape)
    shared = getattr(config, "share_encoder_decoder_embeddings", True)
    weights = (shape[-1], config.vocab_size if shared else config.decoder_vocab_size)
    weights = rng.standard_normal(weights, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        states, logits, sequences = of_peer(model, example, weights, options)
    loaded = from_pretrained(folder, jax.random.key(0))
    simcas = SimCAS(Bart(loaded.config))
    params = jax.tree.map(jnp.asarray, loaded.params)
    our_states, our_logits, gradients, tokens = ours(params, simcas, example, weights, options)
    mask = np.array(example.document.token_mask)
    assert_near(np.array(our_states)[mask], states[:, : mask.shape[1]][mask], "states")
    assert_near(our_logits, logits, "logits")
    found, expected = trees.by_path(gradients), gradients_of(model, loaded.config)
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        frozen = name.endswith("embed_positions/embedding") and loaded.config.dialect.positions.waves is not None
        if frozen or name.endswith(("k_proj/bias", "_global/kernel", "_global/bias", "final_logits_bias")):
            assert not np.any(found[name]), f"{name} learns"
        else:
            assert_near(found[name], value, f"gradient of {name}", near=2e-4, least=largest / 4)
    for one, ids, theirs in zip(options, tokens, sequences, strict=True):
        padded = np.full(ids.shape, config.pad_token_id)
        padded[: len(theirs)] = theirs
        np.testing.assert_array_equal(ids, padded, err_msg=str(one))


def random_shape(rng, chunks):
    """(chunks, tokens, target tokens)"""
    return chunks, int(rng.integers(5, 16)), int(rng.integers(3, 12))


A_FEW = [("pegasus", 1), ("marian", 1), ("blenderbot", 1), ("led", 1), ("m2m_100", 3)]


@pytest.mark.parametrize(("model_type", "chunks"), slow_but(A_FEW, ("led", 1), ("m2m_100", 3)))
def test_computes_what_transformers_computes(model_type, chunks, tmp_path):
    rng = np.random.default_rng(chunks)
    config = config_of(model_type, rng)
    assert_same_computation(config, tmp_path, rng, random_shape(rng, chunks), options_of(rng)[1:])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", range(SIZES))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_computes_what_transformers_computes_in_random_settings(model_type, sizes, tmp_path):
    rng = np.random.default_rng(1000 + sizes)
    config, options = config_of(model_type, rng), (options_of(rng)[0], options_of(rng)[1])
    shape = random_shape(rng, chunks=1 + 2 * (sizes % 2))
    for draw in range(DRAWS):
        assert_same_computation(config, tmp_path / str(draw), rng, shape, options)


def saved(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_files_come_back_as_transformers_wrote_them(model_type, tmp_path):
    rng = np.random.default_rng(2)
    model = peer(config_of(model_type, rng), rng)
    saved(model, tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    save(tmp_path / "ours", loaded.config, loaded.params)
    save(tmp_path / "flax", loaded.config, loaded.params, "flax")
    theirs, ours = (tmp_path / name / "model.safetensors" for name in ("theirs", "ours"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert load(tmp_path / "ours").config == load(tmp_path / "flax").config == loaded.config
    assert BartConfig.from_hf(loaded.config.to_hf()) == loaded.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()) and type(again) is type(model)
    read = again.config.to_dict()
    unlike = {name: value for name, value in model.config.to_dict().items() if read.get(name) != value}
    assert not unlike.keys() & {*loaded.config.to_hf()} - {"dtype", "architectures"}, unlike


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_bare_model_and_a_fresh_one_have_the_same_parameters(model_type, tmp_path):
    rng = np.random.default_rng(3)
    config = config_of(model_type, rng)
    whole = load(saved(peer(config, rng), tmp_path / "whole"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = transformers.AutoModel.from_config(config)
    names = load_file(saved(bare, tmp_path / "bare") / "model.safetensors")
    assert not any(name.startswith(("model.", "led.")) for name in names)
    shapes = {name: value.shape for name, value in trees.by_path(whole.params).items()}
    assert {name: value.shape for name, value in trees.by_path(load(tmp_path / "bare").params).items()} == shapes
    fresh = trees.by_path(jax.eval_shape(Bart(whole.config).init, jax.random.key(0)))
    assert {name: value.shape for name, value in fresh.items()} == shapes


def test_positions_that_do_not_learn_are_those_of_transformers(tmp_path):
    for model_type, saves in (("pegasus", True), ("marian", False), ("m2m_100", False)):
        rng = np.random.default_rng(4)
        model = peer(config_of(model_type, rng), rng)
        table = model.get_encoder().embed_positions
        expected = (table.weights if model_type == "m2m_100" else table.weight).numpy()
        folder = saved(model, tmp_path / model_type)
        file = folder / "model.safetensors"
        weights = load_file(file)
        assert any("embed_positions" in name for name in weights) == saves
        if saves:  # older files have none; others have tables of their own, which are kept
            without = {name: value for name, value in weights.items() if "embed_positions" not in name}
            save_file(without, file, metadata={"format": "pt"})
        loaded = load(folder)
        made = loaded.params["model"]["encoder"]["embed_positions"]["embedding"]
        rows = min(len(made), len(expected))
        np.testing.assert_allclose(made[:rows], expected[:rows], atol=2e-5)
        if model_type != "m2m_100":
            np.testing.assert_array_equal(made, expected)
            own = "model.encoder.embed_positions.weight"
            save_file(weights | {own: expected + 1}, file, metadata={"format": "pt"})
            again = load(folder)
            save(tmp_path / "again", again.config, again.params)
            np.testing.assert_array_equal(load_file(tmp_path / "again/model.safetensors")[own], expected + 1)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("pegasus", {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "decoder_start_token_id": 0}),
        ("marian", {"vocab_size": 58101, "decoder_start_token_id": 58100}),
        ("m2m_100", {"activation_function": "relu", "scale_embedding": True, "forced_eos_token_id": None}),
        (
            "led",
            {"scale_embedding": False, "max_position_embeddings": 16384, "positions": 1024, "chunk_positions": 256},
        ),
        ("bart", {"d_model": 1024, "encoder_layers": 12}),
        ("mbart", {"d_model": 1024, "decoder_layers": 12}),
        ("plbart", {"d_model": 768, "encoder_layers": 6}),
        ("mvp", {"vocab_size": 50267, "forced_eos_token_id": None}),
        ("blenderbot", {"encoder_layers": 2, "decoder_layers": 24, "decoder_start_token_id": 1}),
        ("blenderbot-small", {"d_model": 512, "positions": 512}),
    ],
)
def test_a_config_that_does_not_say_means_transformers_defaults(model_type, expected):
    own = {} if model_type == "bart" else {"normalize_before": True, "final_layer_norm": False}  # not transformers'
    config = BartConfig.from_hf({"model_type": model_type, **own})
    assert {name: getattr(config, name) for name in expected} == expected
    theirs = transformers.AutoConfig.for_model(model_type)
    known = config.to_hf().keys() & theirs.to_dict().keys() - {"architectures", "attention_window", *GENERATED}
    assert {name: config.to_hf()[name] for name in known} == {name: getattr(theirs, name) for name in known}


@pytest.mark.parametrize("said", [(), ("decoder_start_token_id",), ("forced_eos_token_id",), ("eos_token_id",)])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_generation_takes_nothing_that_a_config_does_not_say(model_type, said, tmp_path):
    raw = {"model_type": model_type, "bos_token_id": 5} | dict.fromkeys(said, 7)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.GenerationConfig.from_pretrained(
        tmp_path, config_file_name="config.json", _from_model_config=True
    )
    tokens = BartConfig.from_hf(raw).tokens
    start = theirs.bos_token_id if theirs.decoder_start_token_id is None else theirs.decoder_start_token_id
    assert (tokens.decoder_start, tokens.forced_bos, tokens.forced_eos) == (start, None, theirs.forced_eos_token_id)
    assert tokens.all_ends == ((-1,) if theirs.eos_token_id is None else (theirs.eos_token_id,))  # -1: nothing ends it


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_list_of_one_token_is_that_token(family):
    raw = {"decoder_start_token_id": [4], "forced_bos_token_id": [5], "forced_eos_token_id": [6], "eos_token_id": [7]}
    read = FAMILIES[family].config.from_hf
    assert read(raw).tokens == read({name: token for name, (token,) in raw.items()}).tokens
    assert read({}, generation=raw).tokens[3:6] == (4, 5, 6)
    assert read({"forced_eos_token_id": [6, 7]}).tokens.forced_eos is None  # a warning tells of it
    with pytest.raises(UserError, match=r"^a/generation_config.json: decoder_start_token_id is \[4, 5\], expected int"):
        read({}, "a/config.json", {"decoder_start_token_id": [4, 5]})


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mvp", {"use_prompt": True}, "use_prompt is True: prompts are not read"),
        ("led", {"attention_window": [64]}, r"attention_window=\(64,\): expected 2 even numbers"),
        ("led", {"attention_window": 63}, "expected 2 even numbers"),
        ("led", {"attention_window": "64"}, "attention_window is '64', expected int"),
        ("marian", {"decoder_vocab_size": 3, "share_encoder_decoder_embeddings": False}, "vocabulary of 3 tokens"),
        ("pegasus", {"activation_function": "prelu"}, "activation_function='prelu': expected one of"),
    ],
)
def test_what_cannot_be_read_is_one_line(model_type, changes, message):
    with pytest.raises(UserError, match=message) as error:
        BartConfig.from_hf({"model_type": model_type, "encoder_layers": 2} | changes)
    assert "\n" not in str(error.value)


def test_activations_are_those_of_transformers():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    for name, function in ACTIVATIONS.items():
        expected = transformers.activations.ACT2FN[name](torch.tensor(x))
        np.testing.assert_allclose(function(jnp.asarray(x)), expected, atol=2e-6, err_msg=name)
    assert transformers.activations.ACT2CLS.keys() - ACTIVATIONS.keys() == {"prelu", "xielu", "sqrtsoftplus"}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_parameter_can_be_sharded_and_states_have_the_compute_type(model_type):
    rng = np.random.default_rng(5)
    model = config_of(model_type, rng)
    config = BartConfig.from_hf(json.loads(model.to_json_string(use_diff=False)))
    simcas = SimCAS(Bart(config), dtype="bfloat16")
    params = jax.eval_shape(partial(init_params, model=simcas), jax.random.key(0))
    for path, leaf in trees.by_path(params).items():
        assert len(parameter_dimensions(path, leaf.ndim, simcas.sharding_rules)) == leaf.ndim
    example = example_of(model, rng, (2, 8, 5))
    out = jax.eval_shape(partial(forward, model=simcas, policy=ALL), params, example=example)
    assert out.encoded.hidden.dtype == jnp.bfloat16 and out.logits.dtype == jnp.float32
