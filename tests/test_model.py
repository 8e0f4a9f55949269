"""Invariances of the whole model: alone equals in a batch, padding changes nothing, order of chunks."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, document, stack, tiny_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_simcas.backbones.bart import encoder
from jax_simcas.method import steps
from jax_simcas.method.model import (
    SimcasConfig,
    candidates,
    check_fits,
    chunk_positions,
    encode,
    encode_and_select,
    init_params,
)

ALIGN = ["mean", "shift", "none"]
SIMCAS = SimcasConfig(chunk_length=8)


def inputs(doc):
    return doc["input_ids"], doc["token_mask"], doc["chunk_mask"]


@partial(jax.jit, static_argnames=("simcas", "policy"))
def run(params, doc, simcas, policy=None):
    return steps.forward(params, TINY, simcas, doc, policy=policy)


def forward(doc, simcas=SIMCAS):
    return run(tiny_params(), doc, simcas)


@partial(jax.jit, static_argnames="simcas")
def encoded(params, simcas, *rows):
    return encode(params, TINY, simcas, *rows)


def padded(doc, chunks=2, target=3):
    grow = lambda x, n, fill: jnp.concatenate([x, jnp.full((n, *x.shape[1:]), fill, x.dtype)])
    return {
        "input_ids": grow(doc["input_ids"], chunks, 1),
        "token_mask": grow(doc["token_mask"], chunks, False),
        "chunk_mask": grow(doc["chunk_mask"], chunks, False),
        "target_ids": grow(doc["target_ids"], target, 1),
        "target_mask": grow(doc["target_mask"], target, False),
    }


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("align", ALIGN)
def test_padding_chunks_and_targets_change_nothing(align, mask_padding):
    simcas = SIMCAS.replace(align=align, mask_padding=mask_padding)
    doc = document(0)
    alone, more = forward(doc, simcas), forward(padded(doc), simcas)
    chunks, steps = doc["input_ids"].shape[0], doc["target_ids"].shape[0]
    np.testing.assert_allclose(more.encoded.hidden[:chunks], alone.encoded.hidden, atol=1e-5)
    np.testing.assert_array_equal(more.encoded.selection.action[:chunks], alone.encoded.selection.action)
    assert not more.encoded.selection.action[chunks:].any()
    np.testing.assert_allclose(more.logits[:steps], alone.logits, atol=1e-5)
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
    simcas = SIMCAS.replace(policy="all")
    docs = [document(i, chunks=c, padding_chunks=3 - c) for i, c in enumerate((1, 2, 3))]
    loss = lambda params, batch: steps.batch_loss(params, batch, TINY, simcas, 0.1)[0]
    gradient = jax.jit(jax.value_and_grad(loss))
    value, grad = gradient(tiny_params(), stack(*docs))
    alone = [gradient(tiny_params(), stack(doc)) for doc in docs]
    np.testing.assert_allclose(value, np.mean([v for v, _ in alone]), rtol=1e-5)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *[g for _, g in alone])
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("at_once", "remat", "train"), [(8, "none", True), (16, "layer", False)])
def test_chunks_in_turn_give_what_they_give_together(monkeypatch, at_once, remat, train):
    """Three chunks of 8 tokens: one by one, or two and then the third."""
    bart, simcas = replace(TINY, dropout=0.3, attention_dropout=0.2), SIMCAS.replace(policy="all", remat=remat)
    batch = stack(*(document(i, chunks=3) for i in range(2)))
    options = {"bart": bart, "simcas": simcas, "label_smoothing": 0.1, "key": jax.random.key(5), "train": train}
    gradient = lambda: jax.jit(jax.value_and_grad(lambda p: steps.batch_loss(p, batch, **options)[0]))(tiny_params())
    together = gradient()
    monkeypatch.setattr(encoder, "TOKENS_AT_ONCE", at_once)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), gradient(), together)


def test_a_permutation_of_chunks_permutes_the_states_under_mean():
    doc = document(3, chunks=4, tail=0)
    order = jnp.array([2, 0, 3, 1])
    straight, _ = encoded(tiny_params(), SIMCAS, *inputs(doc))
    shuffled, _ = encoded(tiny_params(), SIMCAS, *(x[order] for x in inputs(doc)))
    np.testing.assert_allclose(shuffled, straight[order], atol=1e-5)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_chunk_positions_break_that_symmetry(kind):
    simcas = SIMCAS.replace(chunk_position=kind, max_chunks=4)
    params = init_params(jax.random.key(0), TINY, simcas)
    doc = document(3, chunks=4, tail=0)
    order = jnp.array([2, 0, 3, 1])
    straight, _ = encoded(params, simcas, *inputs(doc))
    shuffled, _ = encoded(params, simcas, *(x[order] for x in inputs(doc)))
    assert np.abs(shuffled - straight[order]).max() > 1e-2


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_chunk_positions_are_as_large_as_fresh_embeddings(kind):
    simcas = SIMCAS.replace(chunk_position=kind, max_chunks=400)
    params = init_params(jax.random.key(0), TINY, simcas)
    added = chunk_positions(params, TINY, simcas, 400)
    assert added.shape == (400, TINY.d_model)
    np.testing.assert_allclose(np.sqrt(np.mean(added**2)), TINY.init_std, rtol=0.05)


def test_more_chunks_than_learned_positions():
    simcas = SIMCAS.replace(chunk_position="learned", max_chunks=2)
    with pytest.raises(ValueError, match="3 chunks exceed max_chunks=2"):
        encode(init_params(jax.random.key(0), TINY, simcas), TINY, simcas, *inputs(document(0)))


def test_alignment_carries_information_between_chunks():
    doc = document(0, tail=0)
    changed = doc | {"input_ids": doc["input_ids"].at[0, 3].add(1)}
    for align, crosses in (("mean", True), ("shift", True), ("none", False)):
        simcas = SIMCAS.replace(align=align)
        before, _ = encoded(tiny_params(), simcas, *inputs(doc))
        after, _ = encoded(tiny_params(), simcas, *inputs(changed))
        assert (np.abs(after[1:] - before[1:]).max() > 1e-4) == crosses


def test_the_token_under_pad_is_never_looked_at():
    doc = document(1, tail=3)
    other = doc | {"input_ids": jnp.where(doc["token_mask"], doc["input_ids"], 7)}
    np.testing.assert_array_equal(forward(doc).logits, forward(other).logits)
    simcas = SIMCAS.replace(mask_padding=False)
    assert np.abs(forward(doc, simcas).logits - forward(other, simcas).logits).max() > 1e-4


def test_candidates_follow_mask_padding():
    doc = document(1, tail=3)
    assert int(candidates(SIMCAS, doc["token_mask"], doc["chunk_mask"]).sum()) == 3 * 7 - 3
    unmasked = SIMCAS.replace(mask_padding=False)
    assert candidates(unmasked, doc["token_mask"], doc["chunk_mask"]).all()


@pytest.mark.parametrize("policy", ["greedy", "all"])
def test_enough_capacity_equals_no_capacity(policy):
    doc = document(4, chunks=4)
    exact = forward(doc, SIMCAS.replace(policy=policy))
    roomy = forward(doc, SIMCAS.replace(policy=policy, capacity=1 + 4 * 7))
    np.testing.assert_array_equal(exact.logits, roomy.logits)
    tight = forward(doc, SIMCAS.replace(policy="all", capacity=5))
    assert tight.cross_attention.shape == (5,) and int(tight.encoded.compacted.overflow) == 4 * 7 - 2 - 4


def test_attention_sums_to_one_over_real_rows():
    out = forward(padded(document(2)))
    np.testing.assert_allclose(out.cross_attention.sum(), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(out.cross_attention[~np.asarray(out.encoded.compacted.mask)], 0.0)


def test_bfloat16_stays_close_to_float32():
    doc = document(2)
    exact = forward(doc, SIMCAS.replace(policy="all"))
    rough = forward(doc, SIMCAS.replace(policy="all", dtype="bfloat16"))
    assert rough.encoded.hidden.dtype == jnp.bfloat16 and rough.logits.dtype == jnp.float32
    scale = np.abs(exact.logits).max()
    assert 0 < np.abs(rough.logits - exact.logits).max() < 0.05 * scale


@pytest.mark.parametrize("remat", ["layer", "sums", "dots"])
def test_remat_changes_no_gradient(remat):
    batch = stack(document(0), document(1))
    loss = lambda simcas: jax.jit(jax.grad(lambda p: steps.batch_loss(p, batch, TINY, simcas, 0.1)[0]))(tiny_params())
    for a, b in zip(jax.tree.leaves(loss(SIMCAS)), jax.tree.leaves(loss(SIMCAS.replace(remat=remat))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("align", ALIGN)
def test_chunks_sharded_over_devices(align):
    simcas = SIMCAS.replace(align=align)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "chunk"))
    batch = stack(*(document(i, chunks=8, tail=0) for i in range(2)))
    spread = lambda x, axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    sharded = {k: spread(v, ("data", "chunk") if v.shape[1] == 8 else ("data",)) for k, v in batch.items()}
    loss = lambda params, batch: steps.batch_loss(params, batch, TINY, simcas, 0.1)[0]
    value, grad = jax.jit(jax.value_and_grad(loss))(tiny_params(), batch)
    got, got_grad = jax.jit(jax.value_and_grad(loss))(spread(tiny_params(), ()), sharded)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(got_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_random_policy_takes_a_traced_budget():
    doc = document(5)
    run = jax.jit(
        lambda n: encode_and_select(
            tiny_params(), TINY, SIMCAS, *inputs(doc), policy="random", select_key=jax.random.key(0), budget=n
        ).selection.action.sum()
    )
    assert [int(run(jnp.array(n))) for n in (0, 3, 11)] == [0, 3, 11]
    assert run._cache_size() == 1


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


def test_lengths_beyond_the_position_table_are_refused():
    with pytest.raises(ValueError, match="chunk_length=64 exceeds the model's 32 positions"):
        check_fits(TINY, SimcasConfig(chunk_length=64))
