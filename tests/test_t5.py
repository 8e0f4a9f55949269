"""T5, mT5 and UMT5 are those of transformers: states, logits, gradients, tokens; and what SimCAS adds."""

import copy
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import TINY_T5 as TINY
from helpers import several_devices, slow_but

from jax_simcas.backbones.ops.attention import attention
from jax_simcas.backbones.t5 import layers
from jax_simcas.backbones.t5.backbone import SHARDING_RULES, T5
from jax_simcas.backbones.t5.config import MODEL_TYPES, T5Config
from jax_simcas.backbones.t5.encoder import encoder_layer
from jax_simcas.backbones.t5.weights import to_state_dict
from jax_simcas.checkpoints import hub
from jax_simcas.common import trees
from jax_simcas.common.sharding import MeshConfig, make_mesh, parameter_dimensions, state_shardings
from jax_simcas.common.sharding import fitted as fitted_mesh
from jax_simcas.method.align import ALIGNMENTS
from jax_simcas.method.chunk_position import Learned
from jax_simcas.method.document import Example, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, encode, init_params
from jax_simcas.method.steps import init_state, transformer_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")

from t5_oracle import (  # noqa: E402
    document_of,
    forward,
    our_tokens,
    relative,
    same_model,
    tokens,
    torch_generated,
    torch_logits,
    torch_model,
    torch_states,
)

PROJECTIONS = ("relu", "gated-gelu", "gated-silu", "gelu", "gelu_new", "gated-relu", "tanh", "gated-gelu_new", "silu")


@pytest.fixture(autouse=True)
def _cache(cache):
    """Compiled programs are kept."""


def of(backbone, params):
    """The gradients or parameters under transformers' names."""
    return to_state_dict(backbone.unstack(params), backbone.config)


def drawn_sizes(rng):
    buckets = int(rng.choice([4, 5, 8, 16, 32]))
    return {
        "vocab_size": int(rng.integers(20, 70)),
        "d_model": int(rng.integers(4, 40)),
        "d_kv": int(rng.integers(1, 17)),
        "d_ff": int(rng.integers(3, 50)),
        "num_layers": int(rng.integers(1, 5)),
        "num_decoder_layers": int(rng.integers(1, 4)),
        "num_heads": int(rng.integers(1, 6)),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": int(rng.integers(buckets // 2 + 1, 80)),
        "layer_norm_epsilon": float(rng.choice([1e-6, 1e-3])),
        "feed_forward_proj": str(rng.choice(PROJECTIONS)),
        "tie_word_embeddings": bool(rng.integers(2)),
    }


def drawn_options(rng):
    longest = int(rng.integers(3, 16))
    return {
        "num_beams": int(rng.choice([1, 4])),
        "max_length": longest,
        "min_length": int(rng.integers(0, longest)),
        "no_repeat_ngram_size": int(rng.choice([0, 2, 3])),
        "length_penalty": float(rng.choice([0.0, 0.6, 1.0, 2.0])),
        "repetition_penalty": float(rng.choice([1.0, 1.3])),
        "early_stopping": [True, False, "never"][rng.integers(3)],
        "forced_bos_token_id": [None, 5][rng.integers(2)],
        "forced_eos_token_id": [None, 1][rng.integers(2)],
    }


def assert_equal(kind, seed):
    """A random model on a random document: states, logits, weights, all gradients; greedy and beam search."""
    rng = np.random.default_rng([seed, MODEL_TYPES.index(kind)])
    sizes, align = drawn_sizes(rng), ("none", "mean", "shift")[seed % 3]
    model = torch_model(kind, seed, own_head=bool(rng.integers(2)), **sizes)
    backbone, params = same_model(model)
    chunks, length, targets = (int(rng.integers(low, high)) for low, high in ((1, 4), (3, 40), (1, 12)))
    ids, target = (tokens(seed, shape, vocabulary=sizes["vocab_size"]) for shape in ((chunks, length), targets))
    mask = rng.random((chunks, length)) < 0.8
    mask[:, [0, -1]] = True

    def of_transformers(model):
        states = torch_states(model, ids, mask, align)
        logits = torch_logits(model, states.reshape(-1, states.shape[-1]), mask.ravel(), target)
        (logits * torch.tensor(cotangent).to(logits.dtype)).sum().backward()
        gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
        return states.detach(), logits.detach(), gradients

    cotangent = rng.standard_normal((targets, sizes["vocab_size"]), np.float32)
    _, _, exact = of_transformers(copy.deepcopy(model).double())
    states, logits, theirs = of_transformers(model)

    def loss(params):
        out = forward(params, backbone, ALIGNMENTS[align], document_of(ids, mask), jnp.asarray(target))
        return (out[1] * cotangent).sum(), out

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(backbone.stack(params))
    assert relative(np.asarray(ours[0])[mask], states.numpy()[mask]) < 2e-5
    assert relative(ours[1], logits) < 2e-5
    np.testing.assert_allclose(ours[2].sum(), 1.0, rtol=1e-5)
    gradients = of(backbone, gradients)
    assert gradients.keys() == exact.keys()
    largest = max(np.abs(gradient).max() for gradient in exact.values())
    for name, gradient in exact.items():
        # Some of these models magnify rounding a thousandfold: as near to float64 as transformers' float32 is.
        error, of_theirs = (np.abs(found[name] - gradient).max() for found in (gradients, theirs))
        near = 1e-5 * np.abs(gradient).max() + 1e-6 * largest
        assert error <= max(near, 4 * of_theirs), (kind, seed, name, error, of_theirs)

    options = drawn_options(rng)
    flat = states.numpy().reshape(-1, backbone.width)
    for beams in {1, options["num_beams"]}:
        options["num_beams"] = beams
        wanted = torch_generated(model, torch.tensor(flat), mask.ravel(), options)
        found = our_tokens(params, backbone, flat, mask.ravel(), GenerateConfig(**options))
        assert found.tolist() == wanted.tolist(), (kind, seed, options)


@pytest.mark.parametrize(("kind", "seed"), slow_but([("t5", 1), ("mt5", 2), ("umt5", 3)], ("umt5", 3)))
def test_equals_transformers_in_a_few_random_settings(kind, seed):
    assert_equal(kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_equals_transformers_in_many_random_settings(kind, block):
    for seed in range(100 + 10 * block, 110 + 10 * block):
        assert_equal(kind, seed)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("classes", "farthest"), [(32, 128), (4, 3), (5, 70), (33, 1000), (64, 100)])
def test_classes_of_distances_are_those_of_transformers(classes, farthest, both_ways):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-3000, 3001)
    config = T5Config(relative_attention_num_buckets=classes, relative_attention_max_distance=farthest)
    expected = T5Attention._relative_position_bucket(torch.tensor(distances), both_ways, classes, farthest)
    np.testing.assert_array_equal(layers.buckets(distances, both_ways, config), expected)


# What the method asks of a backbone


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_stacked_layers_are_the_same_model(kind):
    backbone = T5(dataclasses.replace(TINY, model_type=kind))
    params = init_params(jax.random.key(0), SimCAS(backbone, chunk_position=Learned(4)))
    stacked = backbone.stack(params)
    again = backbone.unstack(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(backbone.stack(stacked)) == jax.tree.structure(stacked)
    document = document_of(tokens(0, (2, 9), vocabulary=40), np.ones((2, 9), bool))
    run = jax.jit(lambda params: encode(params, SimCAS(backbone), document)[0])
    np.testing.assert_array_equal(run(params), run(stacked))


def test_every_parameter_has_a_rule_on_a_mesh():
    for config in (TINY, dataclasses.replace(TINY, model_type="umt5", feed_forward_proj="relu")):
        backbone = T5(config)
        shapes = jax.eval_shape(backbone.init, jax.random.key(0))
        for tree in (shapes, jax.eval_shape(backbone.stack, shapes)):
            for path, leaf in trees.by_path(tree).items():
                dimensions = parameter_dimensions(path, leaf.ndim, SHARDING_RULES)
                assert path.endswith("weight") or any(dimensions), path


def example(seed, documents, chunks=4, length=12, targets=6):
    ids = jnp.asarray(tokens(seed, (documents, chunks, length), vocabulary=TINY.vocab_size))
    target = jnp.asarray(tokens(seed + 1, (documents, targets), vocabulary=TINY.vocab_size))
    document = document_of(ids[0], np.ones((chunks, length), bool))
    document = jax.tree.map(lambda x: jnp.broadcast_to(x, (documents, *x.shape)), document)._replace(input_ids=ids)
    return Example(document, Target(target, jnp.ones_like(target, bool)))


def trained(model, batch, steps=2, shardings=None):
    """Parameters after a few steps."""
    rates = optax.adam(1e-2), optax.adam(1e-3)
    state = init_state(model.backbone.stack(init_params(jax.random.key(0), model)), *rates, jax.random.key(1))
    if shardings is not None:
        state = jax.device_put(state, shardings(state))
    step = jax.jit(partial(transformer_step, model=model, optimizer=rates[0], label_smoothing=0.1))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    return losses, jax.device_get(model.backbone.unstack(state.params))


@pytest.mark.slow
def test_training_on_a_mesh_is_training_without():
    sizes = fitted_mesh(MeshConfig(data=1, fsdp=2, chunk=2, tensor=2), 8, 2)
    mesh = make_mesh(sizes, list(several_devices(8)))
    model, batch = SimCAS(T5(TINY)), example(0, documents=2)
    alone = trained(model, batch)
    with jax.set_mesh(mesh):
        spread = trained(model, batch, shardings=lambda state: state_shardings(mesh, state, model.sharding_rules))
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-5)


def test_what_the_backward_pass_saves_changes_no_gradient():
    batch = jax.tree.map(lambda x: x[0], example(3, documents=1))
    backbone = T5(TINY)
    params = backbone.stack(backbone.init(jax.random.key(2)))

    def gradients(remat):
        def loss(params):
            states, _ = encode(params, SimCAS(backbone, remat=remat), batch.document)
            flat = states.reshape(-1, backbone.width)
            options = {"key": None, "dtype": jnp.float32, "remat": remat, "with_weights": False}
            logits, _ = backbone.decode(params, flat, jnp.ones(len(flat), bool), *batch.target, **options)
            return jax.nn.logsumexp(logits, axis=-1).sum()

        return jax.jit(jax.grad(loss))(params)

    expected = gradients("none")
    for remat in ("dots", "sums"):
        for a, b in zip(jax.tree.leaves(gradients(remat)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()) + 1e-9)


def test_bfloat16_is_near_float32_and_between_layers_states_are_float32():
    model = torch_model("t5", 5, own_head=True, feed_forward_proj="gated-gelu", num_layers=6)
    backbone, params = same_model(model)
    ids, mask, target = tokens(0, (2, 30)), np.ones((2, 30), bool), jnp.asarray(tokens(1, 7))
    run = lambda dtype: jax.jit(lambda params: encode(params, SimCAS(backbone, dtype=dtype), document_of(ids, mask)))(
        params
    )
    (wide, _), (narrow, between) = run("float32"), run("bfloat16")
    assert narrow.dtype == jnp.bfloat16 and between.dtype == jnp.float32
    assert relative(narrow.astype(jnp.float32), wide) < 0.02
    every = (jnp.ones(60, bool), target, jnp.ones(7, bool))
    logits = [backbone.decode(params, x.reshape(60, -1), *every, dtype=x.dtype)[0] for x in (wide, narrow)]
    assert logits[1].dtype == jnp.float32 and relative(logits[1], logits[0]) < 0.03


def test_chunk_positions_are_added_to_all_tokens():
    backbone, params = T5(TINY), T5(TINY).init(jax.random.key(0))
    ids, added = jnp.asarray(tokens(0, 5, vocabulary=40)), jnp.arange(16.0)
    plain = backbone.embed(params, ids, None, jnp.float32, None)
    np.testing.assert_allclose(backbone.embed(params, ids, added, jnp.float32, None), plain + added, rtol=1e-6)


def decoded(config, key, seed=0, attend=attention, with_weights=False):
    backbone = T5(config, attend)
    params, states = backbone.init(jax.random.key(seed)), jax.random.normal(jax.random.key(seed + 1), (9, 16))
    target = jnp.asarray(tokens(seed, 6, vocabulary=40))
    return backbone.decode(
        params, states, jnp.arange(9) < 8, target, jnp.ones(6, bool), key=key, with_weights=with_weights
    )


@pytest.mark.parametrize("rates", [{"dropout_rate": 0.3}, {"attention_dropout": 0.3}])
def test_dropout_draws_by_key(rates):
    config = dataclasses.replace(TINY, **rates)
    assert T5(config).has_dropout and not T5(TINY).has_dropout
    plain, keys = decoded(TINY, None)[0], jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(decoded(config, None)[0], plain)
    np.testing.assert_array_equal(decoded(config, keys[0])[0], decoded(config, keys[0])[0])
    assert relative(decoded(config, keys[0])[0], decoded(config, keys[1])[0]) > 1e-3
    _, weights = decoded(config, keys[0], with_weights=True)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)


def test_dropout_hits_what_transformers_drops():
    """With nearly everything dropped, what stays is what no mask touches."""
    block = T5(TINY).init(jax.random.key(0))["encoder"]["block"]["0"]
    table = block["layer"]["0"]["SelfAttention"]["relative_attention_bias"]["embedding"]
    x, mask = jax.random.normal(jax.random.key(1), (7, 16)), jnp.ones(7, bool)
    config = dataclasses.replace(TINY, dropout_rate=0.5)
    keys = jax.random.split(jax.random.key(2), 300)
    run = jax.vmap(lambda key: encoder_layer(block, table, x, mask, config, jnp.float32, key))
    change = np.asarray(run(keys) - x)
    # Both sublayers drop a value with probability 1/2 each, and it changes by neither with 1/4.
    np.testing.assert_allclose((change == 0).mean(), 0.25, atol=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_another_attention_reads_the_selected_states(rate):
    """It divides by sqrt(d_kv), as all do: T5's scores are not divided."""
    calls = []

    def own(query, key, value, mask, within_chunk):
        calls.append(query.shape)
        return attention(query, key, value, mask, within_chunk)

    config = dataclasses.replace(TINY, dropout_rate=rate)
    key = jax.random.key(3) if rate else None
    assert relative(decoded(config, key, attend=own)[0], decoded(config, key)[0]) < 1e-5
    assert calls


@pytest.mark.parametrize("name", ["num_layers", "num_decoder_layers", "num_heads", "d_model", "d_kv", "d_ff"])
def test_what_changes_the_shapes_of_weights_is_named_as_fixed_by_them(name):
    config = T5Config(num_layers=2, num_decoder_layers=2, num_heads=2, d_model=8, d_kv=4, d_ff=8, vocab_size=20)
    other = dataclasses.replace(config, **{name: 2 * getattr(config, name)})
    assert hub.expected_shapes(config) != hub.expected_shapes(other) and name in T5Config.sizes
