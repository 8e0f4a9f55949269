"""The mesh: the table from dimensions to axes, and one device against eight for every axis."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, document, model_of, stack
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_simcas.backbones.ops.matmul import product
from jax_simcas.backbones.ops.stacks import stack_layers
from jax_simcas.common.sharding import (
    MeshConfig,
    batch_shardings,
    constrain,
    fitted,
    make_mesh,
    parameter_dimensions,
    partition,
    state_shardings,
)
from jax_simcas.compile_check import cost
from jax_simcas.method.model import encode_and_select, init_params
from jax_simcas.method.ppo import PPOConfig
from jax_simcas.method.select import POLICIES
from jax_simcas.method.steps import batch_loss, init_state, selector_step, transformer_step
from jax_simcas.run.method_config import UpdateConfig

BART = dataclasses.replace(TINY, d_model=32, encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.1)
MODEL = model_of(BART, capacity=40)
CONFIG = UpdateConfig(max_lr=1e-3, warmup=1, accumulate_step=2)
TRANSFORMER, SELECTOR, PPO = CONFIG.transformer(steps=100), CONFIG.selector(), PPOConfig(minibatch_size=4)
BATCH = jax.tree.map(
    np.asarray,
    stack(*(document(seed, chunks=8 - seed % 3, padding_chunks=seed % 3, chunk_length=8) for seed in range(8))),
)
MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, chunk=8),
    MeshConfig(data=1, tensor=2, fsdp=4),
    MeshConfig(data=2, chunk=4),
    MeshConfig(data=1, fsdp=2, chunk=2, tensor=2),
]
named = partial(
    pytest.mark.parametrize, "config", ids=lambda c: ",".join(f"{n}{s}" for n, s in dataclasses.asdict(c).items())
)


def start():
    params = init_params(jax.random.key(0), MODEL)
    return init_state(stack_layers(params), TRANSFORMER, SELECTOR, jax.random.key(1))


def both_updates(state, batch):
    """The state after two steps of the transformer, which are one update of it, and one of the selector."""
    jitted = partial(jax.jit, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None))
    transformer = jitted(partial(transformer_step, model=MODEL, optimizer=TRANSFORMER))
    selector = jitted(partial(selector_step, model=MODEL, optimizer=SELECTOR, ppo=PPO))
    for step in (transformer, transformer, selector):
        state, _ = step(state, batch)
    return state.replace(key=jax.random.key_data(state.key))


@jax.jit
def gradients(params, batch):
    loss = lambda params: batch_loss(params, batch, MODEL, 0.1, policy=POLICIES["sample"], key=jax.random.key(3))[0]
    return jax.value_and_grad(loss)(params)


def on_mesh(config, function, state):
    """`function` of a state and BATCH, which lie on a mesh of eight devices."""
    mesh = make_mesh(fitted(config, 8, 8), jax.devices())
    with jax.set_mesh(mesh):
        state = jax.device_put(state, state_shardings(mesh, state, MODEL.sharding_rules))
        batch = jax.device_put(BATCH, batch_shardings(mesh, BATCH))
        return jax.device_get(function(state, batch))


def close(a, b, rtol=2e-4, atol=2e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol, atol, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def gradients_alone():
    """Those on one device."""
    return jax.device_get(gradients(start().params, BATCH))


@pytest.fixture(scope="module")
def updated_alone():
    """The state after both updates on one device."""
    return jax.device_get(both_updates(start(), BATCH))


@pytest.mark.slow  # the updates, which follow from them, are fast
@named(MESHES)
def test_eight_devices_give_the_gradients_of_one(config, gradients_alone):
    close(on_mesh(config, gradients, start().params), gradients_alone)


@named([MESHES[-1], *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES[:-1])])
def test_eight_devices_give_the_updates_of_one(config, updated_alone):
    close(on_mesh(config, both_updates, start()), updated_alone, 2e-3, 2e-4)


@pytest.mark.slow
def test_shard_map_and_pmap_runners_give_the_gradients_of_one_device():
    """The same functions, laid out by hand: one document per device, gradients averaged."""
    params = start().params
    loss = lambda params, batch: batch_loss(params, batch, MODEL, 0.1, policy=POLICIES["greedy"])[0]
    expected = jax.device_get(jax.jit(jax.value_and_grad(loss))(params, BATCH))
    own = lambda params, batch: jax.lax.pmean(jax.value_and_grad(loss)(params, batch), "data")

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    by_shard_map = jax.shard_map(own, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    close(jax.device_get(jax.jit(by_shard_map)(params, BATCH)), expected)

    one_row_each = jax.tree.map(lambda x: x[:, None], BATCH)
    by_pmap = jax.pmap(own, axis_name="data", in_axes=(None, 0))(params, one_row_each)
    close(jax.device_get(jax.tree.map(lambda x: x[0], by_pmap)), expected)


def test_parameters_lie_in_pieces():
    """A matrix that the axes divide, and its moments; one that they don't divide stays whole."""
    mesh = make_mesh(fitted(MeshConfig(fsdp=4, tensor=2), 8, 8), jax.devices())
    state = jax.eval_shape(start)
    places = state_shardings(mesh, state, MODEL.sharding_rules)
    layer = lambda tree: tree["model"]["encoder"]["layers"]["self_attn"]["q_proj"]["kernel"]
    for tree in (places.params, places.transformer_optimizer.inner_opt_state[0][0].mu):
        assert layer(tree).spec == P(None, ("fsdp", "chunk"), "tensor")
    odd = {"model": {"shared": {"embedding": jax.ShapeDtypeStruct((41, 32), jnp.float32)}}}
    assert state_shardings(mesh, odd, MODEL.sharding_rules)["model"]["shared"]["embedding"].spec == P(
        None, ("fsdp", "chunk")
    )


def test_chunks_that_the_mesh_does_not_divide_are_refused():
    """Left to XLA they give wrong states."""
    mesh = make_mesh(fitted(MeshConfig(data=1, chunk=8), 8, 1), jax.devices())
    example = document(0, chunks=5, chunk_length=16)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="5 chunks on a mesh with chunk=8: pad them to a multiple"):
        jax.eval_shape(lambda params: encode_and_select(params, MODEL, example.document), start().params)


def test_a_product_brings_its_kernel_together_first():
    """And what a mesh axis does not divide stays whole."""
    mesh = make_mesh(fitted(MeshConfig(data=1, chunk=4, tensor=2), 8, 8), jax.devices())
    loss = lambda kernel, x: product(x, kernel, ("width", "heads")).sum()
    with jax.set_mesh(mesh):
        place = lambda x, *spec: jax.ShapeDtypeStruct(x, jnp.float32, sharding=jax.NamedSharding(mesh, P(*spec)))
        kernel = place((32, 64), ("fsdp", "chunk"), "tensor")
        states = jax.ShapeDtypeStruct((16, 8, 32), jnp.bfloat16, sharding=jax.NamedSharding(mesh, P("chunk")))
        compiled = (
            jax.jit(jax.value_and_grad(loss), out_shardings=(None, kernel.sharding)).lower(kernel, states).compile()
        )
        assert jax.eval_shape(lambda x: constrain(x, "heads"), jax.ShapeDtypeStruct((7,), jnp.float32)).shape == (7,)
    found = cost.analyze(compiled.as_text()).collectives
    assert {c.kind for c in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    (gathered,) = [c.bytes for c in found if c.kind == "all-gather"]
    assert gathered in (32 * 32 * 2, 32 * 32 * 4)  # some CPUs widen bfloat16 first


def test_the_table_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="same mesh axis"):
        partition(("documents", "width"))
    with pytest.raises(ValueError, match="'depth': expected None or one of documents"):
        partition(("depth",))
    with pytest.raises(ValueError, match="parameter model/encoder/gate with 2 dimensions"):
        parameter_dimensions("model/encoder/gate", 2, MODEL.sharding_rules)


@pytest.mark.parametrize(
    ("config", "devices", "documents", "sizes"),
    [
        (MeshConfig(), 1, 4, (1, 1, 1, 1)),
        (MeshConfig(), 8, 4, (4, 1, 1, 1)),
        (MeshConfig(data=-1, fsdp=16), 256, 256, (16, 16, 1, 1)),
        (MeshConfig(data=-1, fsdp=16), 8, 8, (1, 8, 1, 1)),
        (MeshConfig(data=1, chunk=16), 4, 1, (1, 1, 4, 1)),
        (MeshConfig(data=1, chunk=-1, tensor=2), 8, 1, (1, 1, 4, 2)),
    ],
)
def test_one_config_fits_any_number_of_devices(config, devices, documents, sizes):
    assert tuple(fitted(config, devices, documents).values()) == sizes


def test_meshes_that_make_no_sense():
    with pytest.raises(ValueError, match="idle; set one axis to -1"):
        fitted(MeshConfig(data=1), 8, 8)
    with pytest.raises(ValueError, match="chunk=0: expected at least 1"):
        MeshConfig(chunk=0)
    with pytest.raises(ValueError, match="only one axis"):
        MeshConfig(data=-1, chunk=-1)
