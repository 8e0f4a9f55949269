"""Select: a policy that scans over the chunks and keeps the states worth showing to the decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_simcas.common.sharding import ShardingRule, chunk_pieces, constrain
from jax_simcas.common.trees import Params

BLOCK = 32  # chunks whose W1 h is in memory together: at 16,384 tokens, all
SHARDING_RULES: tuple[ShardingRule, ...] = (
    (r"(actor|critic)/\w+/kernel", (None, None)),  # small, and needed whole at every chunk
    (r"(actor|critic)/\w+/bias", (None,)),
)


class Head(nn.Module):
    """out(tanh(W3 tanh(W1 h + W2 s))): the actor (two logits) or the critic (one value).

    Source: docs/method.md, "Select". Orthogonal initialisation with gain sqrt(2), `gain` for the output layer.
    """

    width: int
    outputs: int
    gain: float

    def setup(self) -> None:
        inner = partial(nn.Dense, 2 * self.width, kernel_init=nn.initializers.orthogonal(2.0**0.5))
        self.dense_1, self.dense_2, self.dense_3 = inner(), inner(), inner()
        self.out_proj = nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.gain))

    def candidate_part(self, candidates: Float[Array, "*K N D"]) -> Float[Array, "*K N I"]:
        """W1 h, which does not depend on the state and so stays out of the scan."""
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
    """What the policy did with one document; N = S - 1 candidates per chunk.

    overflow: candidates that a capacity has dropped from `action` since; None where none was applied.
    """

    action: Bool[Array, "K N"]
    log_prob: Float[Array, "K N"]
    keep_prob: Float[Array, "K N"]
    state: Float[Array, "K D"]  # the mean of g and all states selected before each chunk
    candidate_mask: Bool[Array, "K N"]
    overflow: Int[Array, ""] | None = None


def document_state(hidden: Float[Array, "K S D"], chunk_mask: Bool[Array, " K"]) -> Float[Array, " D"]:
    """g: the mean over real chunks of the last layer's BOS states, in float32."""
    total = jnp.where(chunk_mask[:, None], hidden[:, 0].astype(jnp.float32), 0.0).sum(axis=0)
    return total / jnp.maximum(chunk_mask.sum(), 1)


def _rank(x: Shaped[Array, " N"]) -> Int[Array, " N"]:
    """0 for the smallest; ties in order."""
    order = jnp.argsort(x, stable=True)
    return jnp.zeros_like(order).at[order].set(jnp.arange(x.shape[0]))


class ChunkView(NamedTuple):
    """What a policy sees when it decides on the candidates of one chunk: all S positions, with BOS masked out."""

    keep_prob: Float[Array, " S"]
    mask: Bool[Array, " S"]
    noise: Float[Array, " S"]  # uniform in [0, 1)
    planned: Bool[Array, " S"]  # what `Policy.plan` chose
    budget_left: Int[Array, ""] | int | None  # candidates; None without a budget
    chunks_left: Int[Array, ""]  # this one included
    threshold: float
    tokens: Int[Array, " S"] | None  # ids of the chunk's tokens, for policies that read them


class Policy(NamedTuple):
    """A selection policy as pure functions: `plan` sees the whole document once, `choose` each chunk in turn.

    choose: (view of a chunk) -> keep [S].
    plan: (candidate mask [K, N], key) -> priority [K, N]; the `budget` candidates of lowest priority are planned.
    draws: it needs a key.
    budgeted: it needs a budget of candidates, and is exempt from the keep-everything rule, which would exceed it.
    reads_tokens: `ChunkView.tokens` is given.
    """

    choose: Callable[[ChunkView], Bool[Array, " S"]]
    plan: Callable[[Bool[Array, "K N"], Array | None], Shaped[Array, "K N"]] | None = None
    draws: bool = False
    budgeted: bool = False
    reads_tokens: bool = False

    def check(self, key: object, budget: object, tokens: object) -> None:
        """Raises ValueError if what it needs is None."""
        needs = (
            (self.draws, key, "a key"),
            (self.budgeted, budget, "a budget (a number of candidates)"),
            (self.reads_tokens, tokens, "the tokens of the document"),
        )
        for needed, given, what in needs:
            if needed and given is None:
                raise ValueError(f"this policy needs {what}")


def keep_all(view: ChunkView) -> Bool[Array, " S"]:
    return view.mask


def keep_drawn(view: ChunkView) -> Bool[Array, " S"]:
    return view.noise < view.keep_prob


def keep_likely(view: ChunkView) -> Bool[Array, " S"]:
    return view.keep_prob > 0.5


def keep_above_threshold(view: ChunkView) -> Bool[Array, " S"]:
    return view.keep_prob > view.threshold


def keep_share(view: ChunkView) -> Bool[Array, " S"]:
    """The most probable ceil(budget left / chunks left) candidates."""
    share = -(-jnp.asarray(view.budget_left) // jnp.maximum(view.chunks_left, 1))
    return _rank(jnp.where(view.mask, -view.keep_prob, 1.0)) < share


def keep_planned(view: ChunkView) -> Bool[Array, " S"]:
    return view.planned


def random_priority(mask: Bool[Array, "K N"], key: Array | None) -> Shaped[Array, "K N"]:
    assert key is not None
    return jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)


def document_order(mask: Bool[Array, "K N"], key: Array | None = None) -> Shaped[Array, "K N"]:
    place = (jnp.cumsum(mask) - 1).astype(jnp.uint32).reshape(mask.shape)
    return jnp.where(mask, place, jnp.uint32(2**32 - 1))


def spread_order(mask: Bool[Array, "K N"], key: Array | None = None) -> Shaped[Array, "K N"]:
    """Candidate i gets i / golden ratio modulo 1, times 2^32: those below any bound are evenly spread."""
    place = (jnp.cumsum(mask) - 1).astype(jnp.uint32).reshape(mask.shape)
    return jnp.where(mask, place * jnp.uint32(2_654_435_769), jnp.uint32(2**32 - 1))


SAMPLE = Policy(keep_drawn, draws=True)
GREEDY = Policy(keep_likely)
ALL = Policy(keep_all)
# By the name that a config gives. Three keep a fixed plan of `budget` candidates; "topk" keeps the most probable of
# each chunk, and spends less than the budget only when the last chunk is too short for its share.
POLICIES: dict[str, Policy] = {
    "sample": SAMPLE,
    "greedy": GREEDY,
    "threshold": Policy(keep_above_threshold),
    "all": ALL,
    "topk": Policy(keep_share, budgeted=True),
    "random": Policy(keep_planned, random_priority, draws=True, budgeted=True),
    "first": Policy(keep_planned, document_order, budgeted=True),
    "spaced": Policy(keep_planned, spread_order, budgeted=True),
}


@jax.named_scope("select")
def select(
    selector: Params,
    hidden: Float[Array, "K S D"],
    candidate_mask: Bool[Array, "K N"],
    chunk_mask: Bool[Array, " K"],
    *,
    policy: Policy,
    key: Array | None = None,
    budget: Int[Array, ""] | int | None = None,
    threshold: float = 0.5,
    fill_empty: bool = True,
    tokens: Int[Array, "K S"] | None = None,
    action: Bool[Array, "K N"] | None = None,
) -> Selection:
    """Scans over the chunks; the state before chunk k is the mean of g and all states selected before it.

    Source: docs/method.md, "Select". As in the released code, a chunk of which nothing was kept, and the only chunk of
    a document, keep everything, with the log-probabilities of keeping.
    Deviation: policies with a budget do not follow that rule, and `fill_empty=False` switches it off for chunks of
    which nothing was kept.

    Args:
      hidden: the encoder's states.
      candidate_mask: which of positions 1..S-1 may be kept.
      key: for policies that draw.
      budget: number of candidates, for the policies that spend one; may be traced.
      tokens: for policies that read them.
      action: replaces the choice of the policy, before the keep-everything rule.

    Raises:
      ValueError: a policy without the key, the budget or the tokens that it needs.
    """
    if action is not None:
        policy = Policy(keep_planned)
    policy.check(key, budget, tokens)
    planned = jnp.zeros_like(candidate_mask) if action is None else action
    if policy.plan is not None:
        assert budget is not None
        priority = policy.plan(candidate_mask, key)
        planned = _rank(priority.ravel()).reshape(candidate_mask.shape) < budget
    scanned = _scan_chunks(
        selector,
        hidden,
        candidate_mask,
        planned,
        chunk_mask,
        policy,
        jax.random.key(0) if key is None else key,
        budget if policy.budgeted else None,
        tokens if policy.reads_tokens else None,
        threshold,
        fill_empty,
    )
    drop_first = lambda x: x[:, 1:]
    return scanned._replace(
        action=drop_first(scanned.action),
        log_prob=drop_first(scanned.log_prob),
        keep_prob=drop_first(scanned.keep_prob),
        candidate_mask=candidate_mask,
    )


def _scan_chunks(
    selector: Params,
    hidden: Float[Array, "K S D"],
    candidate_mask: Bool[Array, "K N"],
    planned: Bool[Array, "K N"],
    chunk_mask: Bool[Array, " K"],
    policy: Policy,
    key: Array,
    budget: Int[Array, ""] | int | None,
    tokens: Int[Array, "K S"] | None,
    threshold: float,
    fill_empty: bool,
) -> Selection:
    """`select` over all S positions; slicing off BOS would force a relayout of the states, so its mask is False."""
    hidden = constrain(hidden, None, "tokens", None)
    chunk_count = chunk_mask.sum()
    keys = jax.random.split(key, hidden.shape[0])
    noise = jax.vmap(lambda key: jax.random.uniform(key, candidate_mask.shape[1:]))(keys)
    actor, params = _actor(selector), {"params": selector["actor"]}

    def step(carry: tuple, inputs: tuple) -> tuple:
        total, count = carry
        candidate_part, states, mask, noise, planned, ids, k = inputs
        state = total / count
        log_probs = jax.nn.log_softmax(actor.apply(params, candidate_part, state, method="rest"), axis=-1)
        keep_prob = jnp.exp(log_probs[:, 1])
        budget_left = None if budget is None else jnp.asarray(budget) - (count.astype(jnp.int32) - 1)
        view = ChunkView(keep_prob, mask, noise, planned, budget_left, chunk_count - k, threshold, ids)
        action = policy.choose(view) & mask
        if not policy.budgeted:
            everything = chunk_count == 1
            if fill_empty:
                everything |= ~action.any()
            action = jnp.where(everything, mask, action)
        log_prob = jnp.where(action, log_probs[:, 1], log_probs[:, 0])
        # A product, not where + sum: no [S, D] temporary.
        total = total + action.astype(jnp.float32) @ states.astype(jnp.float32)
        return (total, count + action.sum()), Selection(action, log_prob, keep_prob, state, mask)

    def block(carry: tuple, inputs: tuple) -> tuple:
        candidate_part = actor.apply(params, inputs[0].astype(jnp.float32), method="candidate_part")
        return lax.scan(step, carry, (candidate_part, *inputs))

    carry = (document_state(hidden, chunk_mask), jnp.ones(()))
    per_candidate = ((candidate_mask, False), (noise, 1.0), (planned, False))
    with_bos = [jnp.pad(x, ((0, 0), (1, 0)), constant_values=fill) for x, fill in per_candidate]
    spread = (constrain(x, None, "tokens") for x in with_bos)
    inputs = (hidden, *spread, tokens, jnp.arange(hidden.shape[0]))
    scanned: Selection = _scan_blocks(block, carry, inputs)[1]
    return scanned


def _scan_blocks(block: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """`block` on BLOCK chunks after the other, or on as many as divide their number; like `lax.scan` otherwise."""
    chunks = jax.tree.leaves(inputs)[0].shape[0]
    size = max(size for size in range(1, min(chunks, BLOCK) + 1) if chunks % size == 0)
    if size == chunks:
        return block(carry, inputs)
    carry, out = lax.scan(block, carry, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), inputs))
    return carry, jax.tree.map(lambda x: x.reshape(chunks, *x.shape[2:]), out)


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
    index: Int[Array, " M"]  # type: ignore[assignment]  # rows 1.. as indices into the K * N candidates, K * N where empty; M = C - 1
    overflow: Int[Array, ""]  # selected candidates beyond the capacity


def _rows_at(hidden: Float[Array, "K S D"], position: Int[Array, " M"]) -> Float[Array, "M D"]:
    """The rows at those positions of the document, zeros beyond its end.

    Each piece of the mesh axis "chunk" contributes the rows that it holds, and the pieces are summed: only selected
    states leave their device.
    """
    pieces = chunk_pieces(hidden.shape[0])
    parts = constrain(hidden.reshape(pieces, -1, hidden.shape[-1]), "chunks", None, None)
    starts = jnp.arange(pieces) * parts.shape[1]

    def own(rows: Array, start: Array) -> Array:
        return rows.at[jnp.where(position < start, rows.shape[0], position - start)].get(mode="fill", fill_value=0)

    return jax.vmap(own)(parts, starts).sum(axis=0)


@jax.named_scope("compact")
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
        raise ValueError(f"capacity={capacity}: expected at least 2 (the document state and one candidate)")
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
