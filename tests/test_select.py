"""Selection: every policy, the keep-everything rule, the state, and compaction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_simcas.method import select as select_lib
from jax_simcas.method.select import POLICIES, Policy, compact, init_selector, select

K, S, D = 4, 6, 8
N = S - 1
HIDDEN = jax.random.normal(jax.random.key(1), (K, S, D))
ALL = jnp.ones((K, N), bool)
CHUNKS = jnp.ones(K, bool)
SELECTOR = init_selector(jax.random.key(0), D)
SELECTOR["actor"]["out_proj"]["kernel"] *= 200  # fresh actors are near one half everywhere
KEY = jax.random.key(7)


def run(policy, mask=ALL, chunks=CHUNKS, selector=SELECTOR, **options):
    return select(
        selector, HIDDEN, mask, chunks, policy=POLICIES[policy], key=KEY, budget=options.pop("budget", 7), **options
    )


def always(keep):
    """A selector that keeps, or skips, whatever it sees."""
    selector = jax.tree.map(jnp.zeros_like, SELECTOR)
    bias = jnp.array([-30.0, 30.0]) if keep else jnp.array([30.0, -30.0])
    selector["actor"]["out_proj"]["bias"] = bias
    return selector


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_outside_the_mask_is_kept_and_the_state_is_the_mean_of_what_was(policy):
    mask = ALL.at[3, 2:].set(False)
    out = jax.jit(lambda: run(policy, mask))()
    assert not (out.action & ~mask).any()
    seen = [HIDDEN[:, 0].mean(axis=0)]
    for k in range(K):
        np.testing.assert_allclose(out.state[k], np.mean(seen, axis=0), rtol=1e-5, atol=1e-6)
        seen += list(np.asarray(HIDDEN[k, 1:])[np.asarray(out.action[k])])
    expected = np.where(out.action, np.log(out.keep_prob), np.log1p(-out.keep_prob))
    np.testing.assert_allclose(out.log_prob, expected, rtol=1e-4, atol=1e-5)


def test_all_keeps_everything():
    assert run("all").action.all()


@pytest.mark.parametrize("policy", ["random", "first", "spaced", "topk"])
@pytest.mark.parametrize("budget", [0, 1, 7, K * N, 99])
def test_exactly_the_budget_is_kept(policy, budget):
    mask = ALL.at[0, :3].set(False)
    assert int(run(policy, mask, budget=jnp.array(budget)).action.sum()) == min(budget, int(mask.sum()))


@pytest.mark.parametrize("chunks", [5, 6])  # blocks of one and of two
@pytest.mark.parametrize("policy", POLICIES)
def test_a_document_of_several_blocks_is_read_as_one(monkeypatch, policy, chunks):
    hidden = jax.random.normal(jax.random.key(2), (chunks, S, D))
    mask = jnp.ones((chunks, N), bool).at[2, 3:].set(False)
    whole, blocks = (
        jax.jit(lambda: select(SELECTOR, hidden, mask, mask.any(axis=1), policy=POLICIES[policy], key=KEY, budget=9))
        for _ in range(2)
    )
    expected = whole()
    monkeypatch.setattr(select_lib, "BLOCK", 2)
    got = blocks()
    np.testing.assert_array_equal(got.action, expected.action)
    for a, b in zip(got[1:4], expected[1:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_width_of_the_policy():
    def temporaries(chunks):
        shapes = ((chunks, 16, D), jnp.float32), ((chunks, 15), bool), ((chunks,), bool)
        run = jax.jit(lambda *document: select(SELECTOR, *document, policy=POLICIES["greedy"]))
        compiled = run.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    many = 16 * select_lib.BLOCK
    per_token = (temporaries(8 * many) - temporaries(many)) / (7 * many * 16)
    assert per_token < 4 * D  # W1 h alone would take 8 bytes a number


def test_first_are_first():
    mask = ALL.at[0, :3].set(False)
    kept = np.flatnonzero(run("first", mask, budget=4).action)
    assert kept.tolist() == np.flatnonzero(mask)[:4].tolist()


def test_spaced_are_evenly_spread():
    hidden, mask = jnp.zeros((50, 21, D)), jnp.ones((50, 20), bool).at[3].set(False)
    for budget in (49, 196, 700):
        out = select(SELECTOR, hidden, mask, mask.any(axis=1), policy=POLICIES["spaced"], budget=budget)
        places = np.flatnonzero(np.asarray(out.action)[np.asarray(mask)])  # among the candidates
        gaps = np.diff([-1, *places, 980])
        assert len(places) == budget and gaps.max() <= 2.7 * 980 / budget  # random ones: 4.5 to 7 times the mean


@pytest.mark.parametrize(("budget", "shares"), [(1, [1, 0, 0, 0]), (4, [1, 1, 1, 1]), (7, [2, 2, 2, 1])])
def test_topk_keeps_an_equal_share_of_each_chunk(budget, shares):
    out = run("topk", budget=budget)
    assert out.action.sum(axis=1).tolist() == shares
    for k in range(K):
        kept = np.asarray(out.action[k])
        assert out.keep_prob[k][kept].min(initial=1) >= out.keep_prob[k][~kept].max(initial=0)


def test_greedy_is_threshold_one_half():
    np.testing.assert_array_equal(run("greedy").action, run("threshold", threshold=0.5).action)
    assert run("threshold", threshold=0.9).action.sum() < run("threshold", threshold=0.1).action.sum()


def test_sampling_follows_the_probabilities():
    draw = jax.vmap(
        lambda key: select(SELECTOR, HIDDEN, ALL, CHUNKS, policy=POLICIES["sample"], key=key, fill_empty=False)
    )
    out = jax.jit(draw)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(out.action[:, 0].mean(axis=0), out.keep_prob[0, 0], atol=0.04)


def test_a_chunk_that_keeps_nothing_keeps_everything():
    out = run("greedy", selector=always(False))
    assert out.action.all() and (out.log_prob < -30).all()
    assert not run("greedy", selector=always(False), fill_empty=False).action.any()


def test_an_only_chunk_keeps_everything():
    out = run("sample", mask=ALL & (jnp.arange(K) == 0)[:, None], chunks=jnp.arange(K) == 0)
    assert out.action[0].all() and not out.action[1:].any()


def test_given_actions_follow_the_rule_too():
    given = jnp.zeros((K, N), bool).at[0, 1].set(True)
    out = run("greedy", action=given)
    np.testing.assert_array_equal(out.action[0], given[0])
    assert out.action[1:].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": POLICIES["sample"]}, "needs a key"),
        ({"policy": POLICIES["topk"]}, "needs a budget"),
        ({"policy": Policy(lambda view: view.tokens > 3, reads_tokens=True)}, "needs the tokens"),
    ],
)
def test_what_is_missing_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        select(SELECTOR, HIDDEN, ALL, CHUNKS, **options)


def test_a_policy_of_ones_own_sees_the_tokens():
    tokens = jnp.arange(K * S).reshape(K, S)
    even = Policy(lambda view: view.tokens % 2 == 0, reads_tokens=True)
    out = select(SELECTOR, HIDDEN, ALL, CHUNKS, policy=even, tokens=tokens)
    np.testing.assert_array_equal(out.action, tokens[:, 1:] % 2 == 0)


@pytest.mark.parametrize("capacity", [None, 1 + K * N, 10_000])
def test_enough_capacity_loses_nothing(capacity):
    selection = run("sample")
    out = compact(HIDDEN, CHUNKS, selection, capacity)
    expected = np.asarray(HIDDEN[:, 1:])[np.asarray(selection.action)]
    rows = int(selection.action.sum())
    np.testing.assert_array_equal(out.states[1 : rows + 1], expected)
    assert out.states.shape == (1 + K * N, D)
    np.testing.assert_allclose(out.states[0], HIDDEN[:, 0].mean(axis=0), rtol=1e-6)
    assert int(out.mask.sum()) == rows + 1 and out.overflow == 0


def test_overflow_keeps_the_most_probable_in_document_order():
    selection = run("all")
    out = compact(HIDDEN, CHUNKS, selection, 6)
    best = np.sort(np.argsort(-np.asarray(selection.keep_prob).ravel())[:5])
    np.testing.assert_array_equal(out.index, best)
    np.testing.assert_array_equal(out.states[1:], np.asarray(HIDDEN[:, 1:]).reshape(-1, D)[best])
    assert out.overflow == K * N - 5 and out.mask.all()


def test_overflow_never_admits_what_was_not_selected():
    selection = run("sample")
    out = compact(HIDDEN, CHUNKS, selection, int(selection.action.sum()) - 1)
    chosen = np.flatnonzero(selection.action)
    assert set(np.asarray(out.index)) < set(chosen) and out.overflow == 2


def test_capacity_too_small():
    with pytest.raises(ValueError, match="capacity=1"):
        compact(HIDDEN, CHUNKS, run("all"), 1)


def test_initialisation_is_orthogonal_with_the_published_gains():
    fresh = init_selector(jax.random.key(3), D)
    for side, gain in (("actor", 0.01), ("critic", 1.0)):
        for name, scale in (("dense_1", 2**0.5), ("dense_3", 2**0.5), ("out_proj", gain)):
            singular = np.linalg.svd(np.asarray(fresh[side][name]["kernel"]), compute_uv=False)
            np.testing.assert_allclose(singular, scale, rtol=1e-4)
            assert not fresh[side][name]["bias"].any()
