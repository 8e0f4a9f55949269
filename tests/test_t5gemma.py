"""T5Gemma and T5Gemma 2 (text) equal transformers: states, logits, gradients, tokens; one chunk, and several."""

import dataclasses
import itertools
import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_but

from jax_simcas.backbones.t5gemma import weights as weights_lib
from jax_simcas.backbones.t5gemma.backbone import T5Gemma
from jax_simcas.backbones.t5gemma.config import T5GEMMA2_270M, StackConfig, T5GemmaConfig
from jax_simcas.backbones.t5gemma.layers import decoder_window, encoder_window
from jax_simcas.common import trees
from jax_simcas.common.sharding import divided, make_mesh, parameter_dimensions, put, state_shardings
from jax_simcas.method.align import chunk_mean, chunk_shift
from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document
from jax_simcas.method.generate_config import DEFAULTS, GenerateConfig
from jax_simcas.method.model import SimCAS, encode
from jax_simcas.method.select import Compacted

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TYPES = ("t5gemma", "t5gemma2")
STACK = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION |= {"image_size": 16, "patch_size": 8}
IMAGE = {"eoi_token_index": 57, "boi_token_index": 58, "image_token_index": 59, "mm_tokens_per_image": 4}


def peer(model_type, seed=0, encoder=None, decoder=None, **whole):
    """transformers' model with random weights, sharp enough that attention chooses."""
    encoder, decoder = {**STACK, **(encoder or {})}, {**STACK, **(decoder or {})}
    if model_type == "t5gemma2":
        encoder = {"text_config": encoder, "vision_config": VISION, **IMAGE}
        whole = {"image_token_index": IMAGE["image_token_index"], **whole}
        kind = transformers.T5Gemma2ForConditionalGeneration
        config = transformers.T5Gemma2Config(encoder=encoder, decoder=decoder, **whole)
    else:
        kind = transformers.T5GemmaForConditionalGeneration
        config = transformers.T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=decoder["vocab_size"], **whole)
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Larger embeddings would drown what the layers add, and every token predict itself.
            spread = 0.3 if "norm" in name else 0.4 if "embed" in name else 1.5 * value.shape[-1] ** -0.5
            value.normal_(std=spread)
    return model


def arrays(model):
    """Its weights as the file that it saves would hold them, and more: tied copies."""
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def ours(model):
    """(backbone, parameters) of transformers' model."""
    config = T5GemmaConfig.from_hf(json.loads(model.config.to_json_string(use_diff=False)))
    params = trees.nest(weights_lib.from_state_dict(arrays(model), config))
    return T5Gemma(config), jax.tree.map(jnp.asarray, params)


def texts(seed, chunks, length, pads, vocabulary=STACK["vocab_size"]):
    """Chunks of random tokens; of the last, the tokens before its end are PAD."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, vocabulary, (chunks, length))
    mask = np.ones((chunks, length), bool)
    mask[-1, length - 1 - pads : length - 1] = False
    ids[:, 0], ids[:, -1] = 2, 1
    return np.where(mask, ids, 0), mask


def document(ids, mask):
    return Document(jnp.asarray(ids, jnp.int32), jnp.asarray(mask), jnp.ones(len(ids), bool))


def peer_states(model, ids, mask, align=None):
    """The states of all chunks, whose boundaries `align` exchanges after every layer but the last."""
    encoder = model.get_encoder()
    stack = getattr(encoder, "text_model", encoder)

    def exchange(module, inputs, x):
        mean = {"mean": lambda y, step: y.mean(0, keepdim=True).expand_as(y), "shift": lambda y, step: y.roll(step, 0)}
        first, last = mean[align](x[:, 0], 1), mean[align](x[:, -1], -1)
        return torch.cat([first[:, None], x[:, 1:-1], last[:, None]], dim=1)

    hooks = [layer.register_forward_hook(exchange) for layer in stack.layers[:-1]] if align else []
    states = encoder(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states


def peer_logits(model, states, target):
    """Over all of these states; every target token counts, PAD as well."""
    return model(
        encoder_outputs=transformers.modeling_outputs.BaseModelOutput(states[None]),
        attention_mask=torch.ones(1, len(states), dtype=torch.long),
        decoder_input_ids=torch.tensor(target)[None],
        decoder_attention_mask=torch.ones(1, len(target), dtype=torch.long),
    ).logits[0]


def difference(ours, theirs):
    """The largest, relative to the largest number."""
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-9)


@partial(jax.jit, static_argnames=("model", "with_weights"))
def through(params, model, document, target, probe, with_weights=True):
    """(sum of logits times `probe`, (states, logits, weights)): a loss that reaches every parameter."""
    states, _ = encode(params, model, document)
    mask = document.token_mask.reshape(-1)
    logits, weights = model.backbone.decode(
        params,
        states.reshape(-1, states.shape[-1]),
        mask,
        target,
        jnp.ones(len(target), bool),
        key=None,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        with_weights=with_weights,
    )
    return (logits * probe).sum(), (states, logits, weights)


def compare(theirs, ids, mask, target, align=None, remat="none", with_weights=True):
    """Differences from transformers: {"states", "logits", "gradients", "sum of weights"}."""
    backbone, params = ours(theirs)
    exchange = {"mean": chunk_mean, "shift": chunk_shift, None: None}[align]
    model = SimCAS(backbone, align=exchange, remat=remat)
    probe = np.random.default_rng(5).normal(size=(len(target), backbone.vocab_size)).astype(np.float32)
    run = jax.jit(jax.value_and_grad(through, has_aux=True), static_argnames=("model", "with_weights"))
    (_, (states, logits, weights)), gradients = run(
        backbone.stack(params), model, document(ids, mask), jnp.asarray(target), probe, with_weights=with_weights
    )
    theirs.zero_grad()
    expected = peer_states(theirs, ids, mask, align)
    expected_logits = peer_logits(theirs, expected[torch.tensor(mask)], target)
    (expected_logits * torch.tensor(probe)).sum().backward()
    named = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
    named = weights_lib.from_state_dict({k: v.numpy() for k, v in named.items()}, backbone.config)
    found = trees.by_path(backbone.unstack(gradients))
    assert named.keys() == found.keys()
    # Some are zero but for rounding, as that of a bias of all keys.
    largest = {name: np.abs(value).max() for name, value in named.items()}
    real = torch.tensor(mask)
    return {
        "states": difference(states[jnp.asarray(mask)], expected[real]),
        "logits": difference(logits, expected_logits),
        "gradients": max(
            float(np.abs(found[name] - value).max() / max(largest[name], 1e-2 * max(largest.values())))
            for name, value in named.items()
        ),
        "weights": 0.0 if weights is None else abs(float(weights.sum()) - 1.0),
    }


@pytest.fixture(scope="module")
def peers():
    return {model_type: peer(model_type) for model_type in TYPES}


@pytest.mark.parametrize("model_type", TYPES)
def test_states_logits_and_gradients(peers, model_type):
    """Three chunks of odd length with PADs, boundaries exchanged, windows shorter than a chunk."""
    ids, mask = texts(1, chunks=3, length=13, pads=4)
    found = compare(peers[model_type], ids, mask, np.array([2, *range(4, 15)]), "mean")
    assert max(found.values()) < 3e-5, found


# Generation


@partial(jax.jit, static_argnames=("model", "config"))
def summarise(params, model, config, states, mask):
    compacted = Compacted(states, mask, jnp.arange(len(mask) - 1), jnp.array(0))
    return generate(params, model, config, compacted)


def options_of(seed, beams):
    """Random settings of generation."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(6, 26))
    return GenerateConfig(
        num_beams=beams,
        max_length=length,
        min_length=int(rng.integers(0, length)),
        length_penalty=float(rng.choice([0.5, 1.0, 2.0])),
        no_repeat_ngram_size=int(rng.choice([0, 2, 3])),
        early_stopping=[True, False, "never"][rng.integers(3)],
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
    )


def tokens_of_both(theirs, states, config):
    """(ours, transformers') from these selected states, PAD after the end; a quarter of ours are masked rows."""
    backbone, params = ours(theirs)
    rows = len(states)
    padded = np.concatenate([states, np.full((rows // 4 + 1, states.shape[1]), 7.0, np.float32)])
    mask = jnp.arange(len(padded)) < rows
    found = summarise(params, SimCAS(backbone), config.filled(DEFAULTS), jnp.asarray(padded), mask)
    options = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.generate(
            encoder_outputs=transformers.modeling_outputs.BaseModelOutput(torch.tensor(states)[None]),
            attention_mask=torch.ones(1, rows, dtype=torch.long),
            decoder_input_ids=torch.tensor([[2]]),
            do_sample=False,
            **options,
        )[0].numpy()
    return np.asarray(found.sequence), np.pad(expected, (0, config.max_length - len(expected)))


def with_likely_end(model, seed):
    """End tokens that come now and then."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        table = model.get_output_embeddings().weight
        table[1] = table[rng.integers(3, len(table))] * float(rng.uniform(0.9, 1.1))
    return model


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("beams", slow_but([1, 4], 4))
def test_tokens(peers, model_type, beams):
    """More tokens than a window has."""
    theirs = with_likely_end(peers[model_type], 3)
    states = np.random.default_rng(4).normal(size=(9, STACK["hidden_size"])).astype(np.float32)
    found, expected = tokens_of_both(theirs, states, dataclasses.replace(options_of(beams, beams), max_length=24))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("model_type", TYPES)
def test_stacked_layers_come_apart(peers, model_type):
    backbone, params = ours(peers[model_type])
    back = backbone.unstack(backbone.stack(params))
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


def test_windows_are_those_of_transformers():
    """Over lengths around the window, which a T5Gemma 2 halves."""
    from transformers.masking_utils import sliding_window_bidirectional_overlay, sliding_window_overlay
    from transformers.models.t5gemma2.modeling_t5gemma2 import sliding_window_mask_function

    for model_type, window, length in itertools.product(TYPES, range(1, 10), (1, 4, 5, 9, 12)):
        stack = StackConfig(sliding_window=window)
        config = T5GemmaConfig(stack, stack, model_type=model_type)
        halved = sliding_window_mask_function(window, is_causal=False)
        encoder = halved if config.merged else sliding_window_bidirectional_overlay(window)
        found = encoder_window(config, length, True)
        rows, columns = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
        assert np.array_equal(np.ones((length, length), bool) if found is None else found, encoder(0, 0, rows, columns))
        decoder = decoder_window(config, jnp.asarray((rows - columns).numpy()), True)
        expected = sliding_window_overlay(window)(0, 0, rows, columns) & (rows >= columns)
        assert np.array_equal(decoder, expected)


# On a mesh


def test_heads_of_keys_are_never_cut():
    """One head of keys stays whole on two devices, however wide it is; four heads of queries do not."""
    sizes = {"data": 1, "fsdp": 1, "chunk": 1, "tensor": 2}
    backbone = T5Gemma(T5GEMMA2_270M)
    rules = SimCAS(backbone).sharding_rules
    shapes = trees.by_path(jax.eval_shape(lambda: backbone.stack(backbone.init(jax.random.key(0)))))
    found = {
        name: divided(parameter_dimensions(name, len(leaf.shape), rules), leaf.shape, sizes)
        for name, leaf in shapes.items()
    }
    attention = "model/decoder/layers/self_attn"
    assert found[f"{attention}/k_proj/kernel"] == (None, "width", None)
    assert found[f"{attention}/q_proj/kernel"] == (None, "width", "heads")
    assert found[f"{attention}/o_proj/kernel"] == (None, "heads", "width")


@pytest.mark.parametrize("model_type", slow_but(TYPES, "t5gemma2"))
def test_a_mesh_changes_nothing(peers, model_type):
    """Two chunks, and heads on two devices each."""
    backbone, params = ours(peers[model_type])
    ids, mask = texts(2, chunks=2, length=8, pads=2)
    target, probe = jnp.arange(3, 9), jnp.ones((6, backbone.vocab_size))
    model, gradients = SimCAS(backbone), jax.jit(jax.grad(through, has_aux=True), static_argnames="model")
    alone, _ = gradients(params, model, document(ids, mask), target, probe)
    mesh = make_mesh({"data": 1, "fsdp": 1, "chunk": 2, "tensor": 2}, jax.devices()[:4])
    placed = put(params, state_shardings(mesh, params, model.sharding_rules))
    with jax.set_mesh(mesh):
        together, _ = gradients(placed, model, document(ids, mask), target, probe)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(alone))
    worst = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()) / largest, alone, together)
    assert max(jax.tree.leaves(worst)) < 1e-5


# Training


@pytest.mark.parametrize("model_type", slow_but(TYPES, "t5gemma"))
def test_bfloat16_and_dropout(peers, model_type):
    """bfloat16 stays near float32, with float32 logits; dropout is drawn by the key and switched off without one."""
    backbone, params = ours(peers[model_type])
    config = dataclasses.replace(backbone.config, dropout_rate=0.2, attention_dropout=0.2)
    states = jax.random.normal(jax.random.key(1), (7, backbone.width))

    @partial(jax.jit, static_argnames=("backbone", "dtype", "with_weights"))
    def decode(backbone, key, dtype, with_weights):
        options = {"key": key, "dtype": jnp.dtype(dtype), "remat": "none", "with_weights": with_weights}
        return backbone.decode(params, states, jnp.arange(7) < 6, jnp.arange(9), jnp.arange(9) < 8, **options)

    exact, weights = decode(backbone, None, "float32", True)
    rough, _ = decode(backbone, None, "bfloat16", True)
    assert rough.dtype == jnp.float32
    assert 0 < jnp.abs(rough - exact).mean() < 0.05 * jnp.abs(exact).mean()
    assert jnp.allclose(decode(backbone, None, "float32", False)[0], exact, atol=1e-4)
    assert weights[-1] == 0 and jnp.isclose(weights.sum(), 1)
    dropping = T5Gemma(config)
    first, second = (decode(dropping, jax.random.key(seed), "float32", True)[0] for seed in (0, 1))
    assert jnp.abs(first - second).max() > 0.1 and jnp.isfinite(first).all()
    assert jnp.array_equal(decode(dropping, None, "float32", True)[0], exact)
    layer = jax.tree.map(lambda x: x[0], dropping.encoder_layers(params))
    chunk = jnp.ones(5, bool)
    run = lambda key: dropping.encoder_layer(layer, states[:5], chunk, jnp.float32, key)
    assert jnp.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 0.1


# Random settings


def random_peer(model_type, seed):
    """Sizes, heads, windows, kinds of layers, caps, angles and ties at random; what a T5Gemma 2 must share is alike."""
    rng = np.random.default_rng(seed)
    pick = lambda *choices: choices[rng.integers(len(choices))]
    yes = lambda: bool(rng.integers(2))

    def stack(width):
        heads, depth = pick(2, 4), int(rng.integers(1, 4))
        out = {
            "hidden_size": width,
            "intermediate_size": pick(24, 40),
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": pick(1, 2, heads),
            "head_dim": pick(6, 8, 14),
            "query_pre_attn_scalar": pick(5, 12, 64),
            "sliding_window": pick(2, 3, 4, 7, 8, 64),  # with 1, transformers' own cache breaks
            "layer_types": pick(None, [pick("sliding_attention", "full_attention") for _ in range(depth)]),
            "attention_bias": yes(),
            "hidden_activation": pick("gelu_pytorch_tanh", "gelu_pytorch_tanh", "gelu", "silu"),
            "rms_norm_eps": pick(1e-6, 1e-4),
            "attn_logit_softcapping": pick(None, 0.7, 50.0),
            "final_logit_softcapping": pick(None, 10.0, 30.0),  # far below the logits, tanh is 1 and tokens tie
        }
        full, local = ({"rope_type": "default", "rope_theta": pick(30.0, 1e4, 1e6)} for _ in range(2))
        if yes():
            full |= {"rope_type": "linear", "factor": pick(2.0, 8.0)}
        if model_type == "t5gemma2":
            return out | {"rope_parameters": {"full_attention": full, "sliding_attention": local}}
        return out | {"rope_parameters": full}

    width = pick(16, 24)
    other = width if model_type == "t5gemma2" else pick(16, 32)
    tied = {} if yes() else {"tie_word_embeddings": False}
    return peer(model_type, seed, stack(width), stack(other), **tied)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("group", range(5))
def test_random_settings(model_type, group):
    """Eight settings a test: states, logits, gradients and weights; greedy and beam tokens."""
    for seed in range(8 * group, 8 * group + 8):
        rng = np.random.default_rng(1000 + seed)
        theirs = random_peer(model_type, seed)
        align = ["mean", "shift", None][seed % 3]
        chunks, length = int(rng.integers(2, 4)) if align else 1, int(rng.integers(5, 16))
        ids, mask = texts(seed, chunks, length, int(rng.integers(0, length - 3)))
        target = rng.integers(0, STACK["vocab_size"], int(rng.integers(2, 14)))
        remat = ["none", "dots", "sums", "layer"][seed % 4]
        found = compare(theirs, ids, mask, np.array([2, *target]), align, remat, with_weights=seed % 5 > 0)
        assert found["states"] < 2e-5 and max(found.values()) < 1e-4, (seed, found)
        with_likely_end(theirs, seed)
        width = getattr(theirs.config.decoder, "cross_attention_hidden_size", theirs.config.decoder.hidden_size)
        states = rng.normal(size=(int(rng.integers(1, 12)), width)).astype(np.float32)
        for beams in (1, 4):
            tokens, expected = tokens_of_both(theirs, states, options_of(seed, beams))
            assert tokens.tolist() == expected.tolist(), (seed, beams)
