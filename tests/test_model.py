"""Invariances of the whole model: alone equals in a batch, padding changes nothing, order of chunks."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, document, model_of, several_devices, slow_but, stack, tiny_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.ops import stacks
from jax_simcas.common.errors import UserError
from jax_simcas.method import model as model_lib
from jax_simcas.method import steps
from jax_simcas.method.align import ALIGNMENTS
from jax_simcas.method.chunk_position import Learned
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.model import candidates, encode, encode_and_select, encoder_of, init_params
from jax_simcas.method.select import ALL, POLICIES
from jax_simcas.run.method_config import SimcasConfig

every_alignment = pytest.mark.parametrize("align", ALIGNMENTS.values(), ids=ALIGNMENTS)
mostly_the_mean = pytest.mark.parametrize("align", slow_but(ALIGNMENTS.values(), ALIGNMENTS["mean"]))
MODEL = model_of()


@partial(jax.jit, static_argnames="model")
def run(params, example, model):
    return model_lib.forward(params, model, example)


def forward(example, model=MODEL):
    return run(tiny_params(), example, model)


@partial(jax.jit, static_argnames="model")
def encoded(params, model, document):
    return encode(params, model, document)


def in_order(document, order):
    return jax.tree.map(lambda x: x[order], document)


def padded(doc, chunks=2, target=3):
    grow = lambda x, n, fill: jnp.concatenate([x, jnp.full((n, *x.shape[1:]), fill, x.dtype)])
    ids, token_mask, chunk_mask = doc.document
    return Example(
        Document(grow(ids, chunks, 1), grow(token_mask, chunks, False), grow(chunk_mask, chunks, False)),
        Target(grow(doc.target.ids, target, 1), grow(doc.target.mask, target, False)),
    )


@pytest.mark.parametrize("mask_padding", slow_but([True, False], True))
@every_alignment
def test_padding_chunks_and_targets_change_nothing(align, mask_padding):
    model = MODEL.replace(align=align, mask_padding=mask_padding)
    doc = document(0)
    alone, more = forward(doc, model), forward(padded(doc), model)
    chunks, tokens = doc.document.input_ids.shape[0], doc.target.ids.shape[0]
    np.testing.assert_allclose(more.encoded.hidden[:chunks], alone.encoded.hidden, atol=1e-5)
    np.testing.assert_array_equal(more.encoded.selection.action[:chunks], alone.encoded.selection.action)
    assert not more.encoded.selection.action[chunks:].any()
    np.testing.assert_allclose(more.logits[:tokens], alone.logits, atol=1e-5)
    rows = alone.cross_attention.shape[0]
    np.testing.assert_allclose(more.cross_attention[:rows], alone.cross_attention, atol=1e-6)


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_document_in_a_batch_gives_what_it_gives_alone(chunks):
    docs = [document(i, chunks=chunks, padding_chunks=4 - chunks) for i in range(2)]
    docs.append(document(9, chunks=4, tail=0))
    batch = jax.vmap(forward)(stack(*docs))
    for i, doc in enumerate(docs):
        alone = forward(doc)
        np.testing.assert_array_equal(batch.encoded.selection.action[i], alone.encoded.selection.action)
        np.testing.assert_allclose(batch.logits[i], alone.logits, atol=1e-5)


def test_loss_and_gradient_of_a_batch_are_the_means_of_its_documents():
    model = MODEL.replace(policy=ALL)
    docs = [document(i, chunks=c, padding_chunks=3 - c) for i, c in enumerate((1, 2, 3))]
    loss = lambda params, batch: steps.batch_loss(params, batch, model, 0.1)[0]
    gradient = jax.jit(jax.value_and_grad(loss))
    value, grad = gradient(tiny_params(), stack(*docs))
    alone = [gradient(tiny_params(), stack(doc)) for doc in docs]
    np.testing.assert_allclose(value, np.mean([v for v, _ in alone]), rtol=1e-5)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *[g for _, g in alone])
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("at_once", "remat", "train"), [(8, "none", True), pytest.param(16, "layer", False, marks=pytest.mark.slow)]
)
def test_chunks_in_turn_give_what_they_give_together(monkeypatch, at_once, remat, train):
    """Three chunks of 8 tokens: one by one, or two and then the third."""
    bart = replace(TINY, dropout=0.3, attention_dropout=0.2)
    batch = stack(*(document(i, chunks=3) for i in range(2)))
    options = {
        "model": model_of(bart, policy="all", remat=remat),
        "label_smoothing": 0.1,
        "key": jax.random.key(5),
        "train": train,
    }
    gradient = lambda: jax.jit(jax.value_and_grad(lambda p: steps.batch_loss(p, batch, **options)[0]))(tiny_params())
    together = gradient()
    monkeypatch.setattr(stacks, "TOKENS_AT_ONCE", at_once)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), gradient(), together)


def test_a_permutation_of_chunks_permutes_the_states_under_mean():
    doc = document(3, chunks=4, tail=0)
    order = jnp.array([2, 0, 3, 1])
    straight, _ = encoded(tiny_params(), MODEL, doc.document)
    shuffled, _ = encoded(tiny_params(), MODEL, in_order(doc.document, order))
    np.testing.assert_allclose(shuffled, straight[order], atol=1e-5)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_chunk_positions_break_that_symmetry(kind):
    model = model_of(chunk_position=kind, max_chunks=4)
    params = init_params(jax.random.key(0), model)
    doc = document(3, chunks=4, tail=0)
    order = jnp.array([2, 0, 3, 1])
    straight, _ = encoded(params, model, doc.document)
    shuffled, _ = encoded(params, model, in_order(doc.document, order))
    assert np.abs(shuffled - straight[order]).max() > 1e-2


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_chunk_positions_are_as_large_as_fresh_embeddings(kind):
    model = model_of(chunk_position=kind, max_chunks=400)
    params = init_params(jax.random.key(0), model)
    added = model.chunk_position(encoder_of(params, model.backbone), model.backbone, 400)
    assert added.shape == (400, TINY.d_model)
    np.testing.assert_allclose(np.sqrt(np.mean(added**2)), TINY.init_std, rtol=0.05)


def test_more_chunks_than_learned_positions():
    model = MODEL.replace(chunk_position=Learned(max_chunks=2))
    with pytest.raises(UserError, match="max_chunks=2: a document has 3 chunks"):
        encode(init_params(jax.random.key(0), model), model, document(0).document)


def test_alignment_carries_information_between_chunks():
    doc = document(0, tail=0)
    changed = doc.document._replace(input_ids=doc.document.input_ids.at[0, 3].add(1))
    for align, crosses in (("mean", True), ("shift", True), ("none", False)):
        model = model_of(align=align)
        before, _ = encoded(tiny_params(), model, doc.document)
        after, _ = encoded(tiny_params(), model, changed)
        assert (np.abs(after[1:] - before[1:]).max() > 1e-4) == crosses


def test_the_token_under_pad_is_never_looked_at():
    doc = document(1, tail=3)
    ids = jnp.where(doc.document.token_mask, doc.document.input_ids, 7)
    other = doc._replace(document=doc.document._replace(input_ids=ids))
    np.testing.assert_array_equal(forward(doc).logits, forward(other).logits)
    model = MODEL.replace(mask_padding=False)
    assert np.abs(forward(doc, model).logits - forward(other, model).logits).max() > 1e-4


def test_candidates_follow_mask_padding():
    doc = document(1, tail=3).document
    assert int(candidates(MODEL, doc).sum()) == 3 * 7 - 3
    assert candidates(MODEL.replace(mask_padding=False), doc).all()


def test_pad_behind_an_only_chunk_is_masked_either_way():
    """The released code does not pad a document of one chunk."""
    doc = document(1, chunks=1).document
    padded = doc._replace(token_mask=doc.token_mask.at[0, 5:].set(False))
    assert int(candidates(MODEL.replace(mask_padding=False), padded).sum()) == 4
    for model in (MODEL, MODEL.replace(mask_padding=False)):
        long, _ = encoded(tiny_params(), model, padded)
        short, _ = encoded(tiny_params(), model, Document(*(x[:, :5] for x in padded[:2]), padded.chunk_mask))
        np.testing.assert_allclose(long[:, :5], short, atol=1e-5)


@pytest.mark.parametrize("policy", ["greedy", "all"])
def test_enough_capacity_equals_no_capacity(policy):
    doc = document(4, chunks=4)
    exact = forward(doc, MODEL.replace(policy=POLICIES[policy]))
    roomy = forward(doc, MODEL.replace(policy=POLICIES[policy], capacity=1 + 4 * 7))
    np.testing.assert_array_equal(exact.logits, roomy.logits)
    tight = forward(doc, MODEL.replace(policy=ALL, capacity=5))
    assert tight.cross_attention.shape == (5,) and int(tight.encoded.compacted.overflow) == 4 * 7 - 2 - 4


def test_attention_sums_to_one_over_real_rows():
    out = forward(padded(document(2)))
    np.testing.assert_allclose(out.cross_attention.sum(), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(out.cross_attention[~np.asarray(out.encoded.compacted.mask)], 0.0)


def test_bfloat16_stays_close_to_float32():
    doc = document(2)
    exact = forward(doc, MODEL.replace(policy=ALL))
    rough = forward(doc, MODEL.replace(policy=ALL, dtype="bfloat16"))
    assert rough.encoded.hidden.dtype == jnp.bfloat16 and rough.logits.dtype == jnp.float32
    scale = np.abs(exact.logits).max()
    assert 0 < np.abs(rough.logits - exact.logits).max() < 0.05 * scale


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["layer", "sums", "dots"])
def test_remat_changes_no_gradient(remat):
    batch = stack(document(0), document(1))
    loss = lambda model: jax.jit(jax.grad(lambda p: steps.batch_loss(p, batch, model, 0.1)[0]))(tiny_params())
    for a, b in zip(jax.tree.leaves(loss(MODEL)), jax.tree.leaves(loss(MODEL.replace(remat=remat))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("remat", slow_but(["none", "layer"], "none"))
def test_layers_without_a_loop_are_the_same_model(remat):
    """With dropout, since each layer has its own key."""
    params, doc = stacks.stack_layers(tiny_params()), document(0).document
    model = MODEL.replace(backbone=Bart(replace(TINY, dropout=0.3)), remat=remat)
    key, axis = jax.random.key(3), jnp.arange(TINY.d_model)

    def run(params, model):
        states, layer_inputs = encode(params, model, doc, key)
        return (states * jnp.cos(axis)).sum(), layer_inputs

    both = [jax.jit(jax.grad(partial(run, model=m), has_aux=True))(params) for m in (model, model.replace(unroll=True))]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *both)


@pytest.mark.parametrize("remat", ["layer", "sums", "dots"])
def test_the_backward_pass_keeps_no_second_copy_of_the_weights(monkeypatch, remat):
    monkeypatch.setattr(stacks, "TOKENS_AT_ONCE", 8)  # on a CPU each chunk in turn, in a branch
    params = stacks.stack_layers(tiny_params())
    doc, model = document(0, chunks=4).document, MODEL.replace(remat=remat)
    _, backward = jax.vjp(lambda params: encode(params, model, doc)[0], params)
    weights = jax.tree.leaves(encoder_of(params, model.backbone)["layers"])
    kernels = {x.unsafe_buffer_pointer(): x.shape for x in weights if x.ndim == 3}
    kept = [x for x in jax.tree.leaves(backward) if x.shape in kernels.values()]
    assert kept and not [x.shape for x in kept if x.unsafe_buffer_pointer() not in kernels]


@pytest.mark.slow
@mostly_the_mean
def test_chunks_sharded_over_devices(align):
    model = MODEL.replace(align=align)
    mesh = Mesh(several_devices(8).reshape(2, 4), ("data", "chunk"))
    batch = stack(*(document(i, chunks=8, tail=0) for i in range(2)))
    spread = lambda x, axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    sharded = jax.tree.map(lambda x: spread(x, ("data", "chunk") if x.shape[1] == 8 else ("data",)), batch)
    loss = lambda params, batch: steps.batch_loss(params, batch, model, 0.1)[0]
    value, grad = jax.jit(jax.value_and_grad(loss))(tiny_params(), batch)
    got, got_grad = jax.jit(jax.value_and_grad(loss))(spread(tiny_params(), ()), sharded)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(got_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_random_policy_takes_a_traced_budget():
    doc = document(5).document
    run = jax.jit(
        lambda n: encode_and_select(
            tiny_params(), MODEL, doc, policy=POLICIES["random"], select_key=jax.random.key(0), budget=n
        ).selection.action.sum()
    )
    assert [int(run(jnp.array(n))) for n in (0, 3, 11)] == [0, 3, 11]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("align", "x"),
        ("policy", "x"),
        ("chunk_length", 2),
        ("capacity", 1),
        ("threshold", 2.0),
        ("dtype", "float16"),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        SimcasConfig(**{field: value})


@pytest.mark.parametrize("capacity", [None, 5])
def test_without_a_selector_the_actor_has_no_say_in_what_is_read(capacity):
    """Everything is read or, beyond the capacity, evenly spread states, whatever the actor prefers."""
    model, example = MODEL.replace(capacity=capacity).without_selector(), document(0)
    found = []
    for seed in (0, 1):
        params = {**tiny_params(), "selector": jax.tree.map(lambda x: 9 * x, tiny_params(seed=seed)["selector"])}
        found.append(encode_and_select(params, model, example.document, policy=model.train_policy).compacted)
    first, second = (np.asarray(compacted.index)[np.asarray(compacted.mask[1:])] for compacted in found)
    np.testing.assert_array_equal(first, second)
    candidate_count = int(candidates(model, example.document).sum())
    assert len(first) == (candidate_count if capacity is None else 4) and found[0].overflow == 0
    assert capacity is None or np.diff(first).min() > 1
