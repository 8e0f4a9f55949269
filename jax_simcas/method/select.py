"""Select: a policy that walks over the chunks and keeps the states worth showing to the decoder."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_simcas.common.sharding import chunk_pieces, constrain

BUDGETED = ("topk", "random", "first", "spaced")  # policies that spend a budget of candidates
POLICIES = ("sample", "greedy", "threshold", "all", *BUDGETED)
Params = Any


class Head(nn.Module):
    """out(tanh(W3 tanh(W1 h + W2 s))): the actor (two logits) or the critic (one value).

    Source: method.md "Select". Orthogonal initialisation with gain sqrt(2), `gain` for the output layer.
    """

    width: int
    outputs: int
    gain: float

    def setup(self) -> None:
        inner = partial(nn.Dense, 2 * self.width, kernel_init=nn.initializers.orthogonal(2.0**0.5))
        self.dense_1, self.dense_2, self.dense_3 = inner(), inner(), inner()
        self.out_proj = nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.gain))

    def candidate_part(self, candidates: Float[Array, "*K N D"]) -> Float[Array, "*K N I"]:
        """W1 h, which does not depend on the state and so need not wait for it."""
        return self.dense_1(candidates)

    def rest(self, candidate_part: Float[Array, "N I"], state: Float[Array, " D"]) -> Float[Array, "N O"]:
        inner = jnp.tanh(candidate_part + self.dense_2(state))
        return self.out_proj(jnp.tanh(self.dense_3(inner)))

    def __call__(self, candidates: Float[Array, "N D"], state: Float[Array, " D"]) -> Float[Array, "N O"]:
        return self.rest(self.candidate_part(candidates), state)


def _actor(params: Params) -> Head:
    return Head(params["actor"]["dense_1"]["kernel"].shape[0], outputs=2, gain=0.01)


def _critic(params: Params) -> Head:
    return Head(params["critic"]["dense_1"]["kernel"].shape[0], outputs=1, gain=1.0)


def init_selector(key: Array, width: int) -> Params:
    """Fresh actor and critic for states of `width` D."""
    actor_key, critic_key = jax.random.split(key)
    inputs = (jnp.zeros((1, width)), jnp.zeros(width))
    return {
        "actor": Head(width, outputs=2, gain=0.01).init(actor_key, *inputs)["params"],
        "critic": Head(width, outputs=1, gain=1.0).init(critic_key, *inputs)["params"],
    }


def action_logits(selector: Params, candidates: Float[Array, "N D"], state: Float[Array, " D"]) -> Float[Array, "N 2"]:
    """The actor's logits of skip (0) and keep (1)."""
    return _actor(selector).apply({"params": selector["actor"]}, candidates.astype(jnp.float32), state)


def state_values(selector: Params, candidates: Float[Array, "N D"], state: Float[Array, " D"]) -> Float[Array, " N"]:
    """The critic's value of every candidate."""
    params = {"params": selector["critic"]}
    return _critic(selector).apply(params, candidates.astype(jnp.float32), state)[:, 0]


class Selection(NamedTuple):
    """What the policy did with one document; N = S - 1 candidates a chunk."""

    action: Bool[Array, "K N"]
    log_prob: Float[Array, "K N"]
    keep_prob: Float[Array, "K N"]
    state: Float[Array, "K D"]  # what the policy had seen before each chunk
    candidate_mask: Bool[Array, "K N"]


def document_state(hidden: Float[Array, "K S D"], chunk_mask: Bool[Array, " K"]) -> Float[Array, " D"]:
    """g: the mean over real chunks of the last layer's BOS states, in float32."""
    total = jnp.where(chunk_mask[:, None], hidden[:, 0].astype(jnp.float32), 0.0).sum(axis=0)
    return total / jnp.maximum(chunk_mask.sum(), 1)


def select(
    selector: Params,
    hidden: Float[Array, "K S D"],
    candidate_mask: Bool[Array, "K N"],
    chunk_mask: Bool[Array, " K"],
    *,
    policy: str,
    key: Array | None = None,
    budget: Int[Array, ""] | int | None = None,
    threshold: float = 0.5,
    empty_chunk: str = "all",
    action: Bool[Array, "K N"] | None = None,
) -> Selection:
    """Walks over the chunks; the state before chunk k is the mean of g and all states selected before it.

    Policies: `sample` draws each action; `greedy` keeps what is likelier kept than not; `threshold` keeps
    what is kept with more than that probability; `all` keeps everything. Four spend a `budget` of candidates:
    `random` keeps that many of the document's, evenly drawn, `first` its first ones, `spaced` evenly spread ones, and
    `topk` the most probable of each chunk, of which chunk k's share is ceil(budget left / chunks left); it spends
    less only when the last chunk is too short for its share.

    Source: method.md "Select". As in the released code a chunk of which nothing was kept, and the only
    chunk of a document, keeps everything, with the log-probabilities of keeping.
    Deviation: policies with a budget don't follow that rule (it would be exceeded), and
    `empty_chunk="none"` switches it off for chunks of which nothing was kept.

    Args:
      hidden: the encoder's states.
      candidate_mask: which of positions 1..S-1 may be kept.
      key: for `sample` and `random`.
      budget: number of candidates, for the policies that spend one; may be traced.
      action: replaces the policy's choice, as drawn, before the keep-everything rule.

    Raises:
      ValueError: unknown policy, or one without the key or the budget it needs.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}")
    if policy in ("sample", "random") and key is None and action is None:
        raise ValueError(f"policy={policy!r} needs a key")
    if policy in BUDGETED and budget is None and action is None:
        raise ValueError(f"policy={policy!r} needs a budget (a number of candidates)")
    if action is not None:
        given = action
    elif policy in ("random", "first", "spaced"):
        assert budget is not None
        given = _rank(_turn(policy, candidate_mask, key).ravel()).reshape(candidate_mask.shape) < budget
    else:
        given = jnp.zeros_like(candidate_mask)
    # All S positions, of which the first is no candidate: cutting it off would lay all states out anew, one row on.
    first_skipped = lambda x, fill: jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((1, 0),), constant_values=fill)
    hidden = constrain(hidden, None, "tokens", None)
    chunk_count = chunk_mask.sum()
    keys = jax.random.split(jax.random.key(0) if key is None else key, hidden.shape[0])
    draws = jax.vmap(lambda key: jax.random.uniform(key, candidate_mask.shape[1:]))(keys)
    actor, params = _actor(selector), {"params": selector["actor"]}
    part = actor.apply(params, hidden.astype(jnp.float32), method="candidate_part")
    obeys_budget = action is None and policy in BUDGETED

    def choose(keep_prob: Array, mask: Array, draws: Array, given: Array, k: Array, spent: Array) -> Array:
        if action is not None or policy in ("random", "first", "spaced"):
            return given
        if policy == "sample":
            return draws < keep_prob
        if policy == "greedy":
            return keep_prob > 0.5
        if policy == "threshold":
            return keep_prob > threshold
        if policy == "topk":
            share = -(-(jnp.asarray(budget) - spent) // jnp.maximum(chunk_count - k, 1))
            return _rank(jnp.where(mask, -keep_prob, 1.0)) < share
        return mask

    def step(carry: tuple, inputs: tuple) -> tuple:
        total, count = carry
        part, states, mask, draws, given, k = inputs
        state = total / count
        log_probs = jax.nn.log_softmax(actor.apply(params, part, state, method="rest"), axis=-1)
        keep_prob = jnp.exp(log_probs[:, 1])
        action = choose(keep_prob, mask, draws, given, k, count.astype(jnp.int32) - 1) & mask
        if not obeys_budget:
            keep_all = chunk_count == 1
            if empty_chunk == "all":
                keep_all |= ~action.any()
            action = jnp.where(keep_all, mask, action)
        log_prob = jnp.where(action, log_probs[:, 1], log_probs[:, 0])
        # A product, not where + sum: no [N, D] temporary.
        total = total + action.astype(jnp.float32) @ states.astype(jnp.float32)
        return (total, count + action.sum()), Selection(action, log_prob, keep_prob, state, mask)

    carry = (document_state(hidden, chunk_mask), jnp.ones(()))
    a_candidate = (first_skipped(candidate_mask, False), first_skipped(draws, 1.0), first_skipped(given, False))
    inputs = (part, hidden, *(constrain(x, None, "tokens") for x in a_candidate), jnp.arange(hidden.shape[0]))
    taken: Selection = lax.scan(step, carry, inputs)[1]
    action, log_prob, keep_prob = (x[:, 1:] for x in taken[:3])
    return Selection(action, log_prob, keep_prob, taken.state, candidate_mask)


def _turn(policy: str, mask: Bool[Array, "K N"], key: Array | None) -> Array:
    """Who is kept first where the states do not matter: the lowest numbers [K, N]."""
    if policy == "random":
        assert key is not None
        return jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
    place = (jnp.cumsum(mask) - 1).astype(jnp.uint32).reshape(mask.shape)
    if policy == "spaced":
        # i / golden ratio modulo 1, times 2^32: numbers below any bound belong to evenly spread i.
        place = place * jnp.uint32(2_654_435_769)
    return jnp.where(mask, place, jnp.uint32(2**32 - 1))


def _rank(x: Shaped[Array, " N"]) -> Int[Array, " N"]:
    """0 for the smallest, ties in order."""
    order = jnp.argsort(x, stable=True)
    return jnp.zeros_like(order).at[order].set(jnp.arange(x.shape[0]))


def most_probable(selection: Selection, limit: int) -> Bool[Array, "K N"]:
    """The selected candidates, or those `limit` of them that have the highest keep-probability."""
    kept = selection.action.ravel()
    if limit < kept.shape[0]:
        _, best = lax.top_k(jnp.where(kept, selection.keep_prob.ravel(), -1.0), limit)
        kept &= jnp.zeros_like(kept).at[best].set(True)
    return kept.reshape(selection.action.shape)


class Compacted(NamedTuple):
    """The selected states of one document in a static number of rows; row 0 is g."""

    states: Float[Array, "C D"]
    mask: Bool[Array, " C"]
    index: Int[Array, " M"]  # type: ignore[assignment]  # of each further row into the K * N candidates; K * N where there is none; M = C - 1
    overflow: Int[Array, ""]  # selected candidates that found no place


def _rows_at(hidden: Float[Array, "K S D"], position: Int[Array, " M"]) -> Float[Array, "M D"]:
    """The rows at those positions of the document, zeros beyond its end.

    Each piece of the mesh axis "chunk" gives the rows that it holds, and their sum goes round: no state leaves its
    device but those that were selected.
    """
    pieces = chunk_pieces(hidden.shape[0])
    parts = constrain(hidden.reshape(pieces, -1, hidden.shape[-1]), "chunks", None, None)
    starts = jnp.arange(pieces) * parts.shape[1]

    def own(rows: Array, start: Array) -> Array:
        return rows.at[jnp.where(position < start, rows.shape[0], position - start)].get(mode="fill", fill_value=0)

    return jax.vmap(own)(parts, starts).sum(axis=0)


def compact(
    hidden: Float[Array, "K S D"],
    chunk_mask: Bool[Array, " K"],
    selection: Selection,
    capacity: int | None = None,
) -> Compacted:
    """Gathers g and the selected states, in document order, into `capacity` C rows with a mask.

    When more than C - 1 candidates are selected, those with the highest keep-probability stay. With
    C >= 1 + K (S - 1), the default, everything fits.

    Raises:
      ValueError: a capacity below 2.
    """
    chunks, chunk_length, _ = hidden.shape
    per_chunk = chunk_length - 1
    everything = chunks * per_chunk
    rows = everything if capacity is None else min(capacity - 1, everything)
    if rows < 1:
        raise ValueError(f"capacity={capacity}: expected at least 2 (the document's state and one candidate)")
    kept = most_probable(selection, rows).ravel()
    (index,) = jnp.nonzero(kept, size=rows, fill_value=everything)
    real = index < everything
    position = jnp.where(real, index // per_chunk * chunk_length + 1 + index % per_chunk, chunks * chunk_length)
    first = document_state(hidden, chunk_mask).astype(hidden.dtype)
    gathered = _rows_at(hidden, position)
    return Compacted(
        jnp.concatenate([first[None], gathered]),
        jnp.concatenate([jnp.ones(1, bool), real]),
        index,
        selection.action.sum() - kept.sum(),
    )
