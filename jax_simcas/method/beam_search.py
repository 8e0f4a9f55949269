"""Beam search inside jit; every option means what it means in transformers. One document; `vmap` makes batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common.trees import Params
from jax_simcas.method.generate_config import GenerateConfig, Rules
from jax_simcas.method.logits_processors import apply_logits_processors, is_any
from jax_simcas.method.model import SimCAS
from jax_simcas.method.select import Compacted

NEG_INF = -1e9  # score of invalid hypotheses, as in transformers


class Generation(NamedTuple):
    """The best summary: ids from the decoder start token on, PAD after `length`."""

    sequence: Int[Array, "*B T"]
    length: Int[Array, "*B"]
    score: Float[Array, "*B"]  # sum of log-probabilities / generated tokens ** length_penalty, nats


@jax.named_scope("generate")
def generate(
    params: Params,
    model: SimCAS,
    config: GenerateConfig,
    compacted: Compacted,
    source: Int[Array, " N"] | None = None,
) -> Generation:
    """Searches for the most probable summary of one document, given its selected states.

    Cross-attention keys and values are computed once. The self-attention cache is never reordered: a table of
    ancestors tells which slot holds each step of a beam's history. Under `vmap` documents step together until all are
    done.

    Args:
      source: tokens of the document, -1 where there is none; for `encoder_no_repeat_ngram_size`.

    Raises:
      ValueError: what `GenerateConfig.rules` refuses; an option that needs `source`, which is not given.
    """
    backbone, dtype = model.backbone, jnp.dtype(model.dtype)
    rules = config.rules(backbone)
    if not rules.encoder_no_repeat_ngram_size:
        source = jnp.zeros(0, jnp.int32)
    elif source is None:
        raise ValueError("encoder_no_repeat_ngram_size needs the tokens of the document")

    def unbatched(params: Params, *document: Array) -> Generation:
        batch = search(params, backbone, rules, *(x[None] for x in document), dtype=dtype)
        return jax.tree.map(lambda x: x[0], batch)

    def batched_rule(size: int, batched: list, params: Params, *document: Array) -> tuple:
        if any(jax.tree.leaves(batched[0])):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
            out = jax.vmap(unbatched, in_axes=axes)(params, *document)
        else:
            spread = lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape))
            out = search(params, backbone, rules, *map(spread, document, batched[1:]), dtype=dtype)
        return out, jax.tree.map(lambda _: True, out)

    # Plain `vmap` would give every document its own step counter and, to keep what is finished, copy the whole cache
    # at each step: at 256 tokens, 4 documents, 1.6 times the time on a CPU.
    one = custom_vmap(unbatched)
    one.def_vmap(batched_rule)
    return one(params, compacted.states, compacted.mask, source)


class Greedy(NamedTuple):
    """The state of one document without beams."""

    running: Int[Array, "1 T"]
    score: Float[Array, ""]
    length: Int[Array, ""]
    unfinished: Bool[Array, ""]
    ancestors: None = None


class Beams(NamedTuple):
    """The state of one document: running beams and finished hypotheses."""

    running: Int[Array, "beams T"]
    running_score: Float[Array, " beams"]
    ancestors: Int[Array, "beams T"]
    finished: Int[Array, "beams T"]
    finished_score: Float[Array, " beams"]
    finished_length: Int[Array, " beams"]
    is_finished: Bool[Array, " beams"]
    unfinished: Bool[Array, ""]


def search(
    params: Params,
    backbone: Backbone,
    rules: Rules,
    selected: Float[Array, "B C D"],
    selected_mask: Bool[Array, "B C"],
    source: Int[Array, "B N"],
    *,
    dtype: Any,
) -> Generation:
    """`generate` for several documents: one loop, one step counter; a finished document's state stays."""
    total = rules.max_length
    start, advance, result = GREEDY_SEARCH if rules.num_beams == 1 else BEAM_SEARCH
    cross = jax.vmap(lambda s, m: backbone.cross_cache(params, s, m, dtype))(selected, selected_mask)
    weights = backbone.for_generation(params, dtype)
    copies = lambda x: jnp.broadcast_to(x, (selected.shape[0], *x.shape))

    def step(carry: tuple) -> tuple:
        length, state, cache = carry

        def one(state: Any, cache: Any, cross: Any, source: Array) -> tuple:
            token = lax.dynamic_index_in_dim(state.running, length - 1, axis=1, keepdims=False)
            logits, cache = backbone.decode_step(weights, token, length - 1, cache, cross, state.ancestors, dtype)
            allow = lambda scores: apply_logits_processors(scores, state.running, length, source, rules)
            scores = allow(jax.nn.log_softmax(logits, axis=-1))
            # Without beams transformers penalises logits; with them, log-probabilities. Where no rule depends on the
            # size of a score, both choose alike.
            choice = allow(logits) if rules.num_beams == 1 and rules.depends_on_size else scores
            new = advance(state, scores, choice, length, rules)
            return jax.tree.map(lambda n, o: jnp.where(state.unfinished, n, o), new, state), cache

        state, cache = jax.vmap(one)(state, cache, cross, source)
        return length + 1, state, cache

    unfinished = lambda carry: (carry[0] < total) & carry[1].unfinished.any()
    empty = start(empty_sequences(backbone, rules)), backbone.init_cache(rules.num_beams, total)
    states, caches = jax.tree.map(copies, empty)
    _, states, _ = lax.while_loop(unfinished, step, (jnp.array(1), states, caches))
    return jax.vmap(lambda state: result(state, rules))(states)


def empty_sequences(backbone: Backbone, rules: Rules) -> Int[Array, "beams T"]:
    """The decoder start token, then PAD."""
    shape = (rules.num_beams, rules.max_length)
    return jnp.full(shape, backbone.tokens.pad, jnp.int32).at[:, 0].set(backbone.tokens.decoder_start)


def length_powers(rules: Rules) -> Float[Array, " T"]:
    """n ** length_penalty for n = 1, 2, ... generated tokens (rounded once, as in transformers)."""
    return jnp.asarray(np.arange(1, rules.max_length + 1) ** float(rules.length_penalty), jnp.float32)


def greedy_start(empty: Int[Array, "1 T"]) -> Greedy:
    return Greedy(empty, jnp.array(0.0), jnp.array(1), jnp.array(True))


def greedy_step(
    g: Greedy, scores: Float[Array, "1 V"], choice: Float[Array, "1 V"], length: Int[Array, ""], rules: Rules
) -> Greedy:
    """The token of the highest `choice`, until it ends the summary."""
    token = choice[0].argmax().astype(jnp.int32)
    running = g.running.at[0, length].set(token)
    return Greedy(running, g.score + scores[0, token], length + 1, ~is_any(token, rules.ends))


def greedy_result(g: Greedy, rules: Rules) -> Generation:
    return Generation(g.running[0], g.length, g.score / length_powers(rules)[g.length - 2])


def beam_start(empty: Int[Array, "beams T"]) -> Beams:
    beams = empty.shape[0]
    return Beams(
        running=empty,
        running_score=jnp.where(
            jnp.arange(beams) == 0, 0.0, NEG_INF
        ),  # all beams are equal at first: only one may branch
        ancestors=jnp.zeros_like(empty),
        finished=empty,
        finished_score=jnp.full(beams, NEG_INF),
        finished_length=jnp.ones(beams, jnp.int32),
        is_finished=jnp.zeros(beams, bool),
        unfinished=jnp.array(True),
    )


def beam_step(
    b: Beams, scores: Float[Array, "beams V"], choice: Float[Array, "beams V"], length: Int[Array, ""], rules: Rules
) -> Beams:
    """Keeps the `num_beams` best running and the `num_beams` best finished sequences.

    Source: the meaning of transformers 5 `generate`, for one document.
    """
    beams, total = b.running.shape
    powers = length_powers(rules)
    # Twice the beams, or more where several tokens end a summary: enough running ones remain even if each has these
    # among its best. First within each beam: the same order (ties go to the lower beam, then the lower token) without
    # concatenating the vocabularies.
    kept = max(2, 1 + len(rules.ends)) * beams
    each = min(kept, scores.shape[-1])
    score, token = lax.top_k(choice + b.running_score[:, None], each)
    score, flat = lax.top_k(score.ravel(), kept)
    parent, token = flat // each, token.ravel()[flat]
    candidates = b.running[parent].at[:, length].set(token)
    ends = is_any(token, rules.ends) | (length + 1 >= total)
    written = b.ancestors.at[:, length - 1].set(jnp.arange(beams))
    running_score, best = lax.top_k(jnp.where(ends, score + NEG_INF, score), beams)

    may_finish = ends & (jnp.arange(kept) < beams)  # only candidates among the best `num_beams`
    final = score / powers[length - 1] + NEG_INF * ~may_finish
    finished_score, keep = lax.top_k(jnp.concatenate([b.finished_score, final]), beams)
    merged = lambda old, new: jnp.concatenate([old, new])[keep]
    is_finished = merged(b.is_finished, may_finish)

    # Can a running beam still beat the worst finished one? Its score is divided by its present length or, with "never",
    # by the length that favours it most.
    reach = total - 1 if rules.early_stopping == "never" and rules.length_penalty > 0 else length
    worst = jnp.where(is_finished, finished_score.min(), NEG_INF)
    unfinished = (running_score[0] / powers[reach - 1] > worst).any()
    if rules.early_stopping is True:
        unfinished &= ~is_finished.all()
    return Beams(
        running=candidates[best],
        running_score=running_score,
        ancestors=written[parent[best]],
        finished=merged(b.finished, candidates),
        finished_score=finished_score,
        finished_length=merged(b.finished_length, jnp.full(kept, length + 1)),
        is_finished=is_finished,
        unfinished=unfinished,
    )


def beam_result(b: Beams, rules: Rules) -> Generation:
    return Generation(b.finished[0], b.finished_length[0], b.finished_score[0])


GREEDY_SEARCH = (greedy_start, greedy_step, greedy_result)
BEAM_SEARCH = (beam_start, beam_step, beam_result)
