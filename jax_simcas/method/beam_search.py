"""Beam search inside jit; every option means what it means in transformers. One document; `vmap` makes batches."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common import checks
from jax_simcas.method.model import SimCAS
from jax_simcas.method.select import Compacted

Params = Any
NEG_INF = -1e9  # score of invalid hypotheses, as in transformers
FORCED = ("forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True)
class GenerateConfig:
    """Options of `transformers.GenerationMixin.generate`, by the same names; lengths count the start token.

    Raises:
      ValueError: a value that has no meaning, by the name of its option.
    """

    num_beams: int = 4  # hypotheses that are followed side by side
    max_length: int = 128  # tokens of a summary, the start token included
    min_length: int = 0  # tokens, likewise
    length_penalty: float = 1.0  # scores are divided by tokens ** length_penalty: above 0 prefers long summaries
    no_repeat_ngram_size: int = 0  # no sequence of so many tokens comes twice; 0: it may
    # True ends when `num_beams` summaries are finished; False when a better one is unlikely; "never" when a better one
    # is impossible
    early_stopping: bool | str = False
    forced_bos_token_id: int | None = None  # what must come first; None: that of the backbone
    forced_eos_token_id: int | None = None  # what must come at max_length; None: that of the backbone

    def __post_init__(self) -> None:
        least = {"num_beams": 1, "max_length": 2, "min_length": 0, "no_repeat_ngram_size": 0}
        least |= {name: 0 for name in FORCED if getattr(self, name) is not None}
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: expected a whole number of at least {bound}")
            checks.at_least(self, bound, name)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} exceeds max_length={self.max_length}")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty={self.length_penalty!r}: expected a finite number")
        # Not `in (True, False, ...)`: 0 and 1 would pass, and mean neither further down.
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(f"early_stopping={self.early_stopping!r}: expected True, False or 'never'")


class Generation(NamedTuple):
    """The best summary: ids from the decoder start token on, PAD after `length`."""

    sequence: Int[Array, "*B T"]
    length: Int[Array, "*B"]
    score: Float[Array, "*B"]  # sum of log-probabilities / generated tokens ** length_penalty, nats


def generate(params: Params, model: SimCAS, config: GenerateConfig, compacted: Compacted) -> Generation:
    """Searches for the most probable summary of one document, given its selected states.

    Cross-attention keys and values are computed once. The self-attention cache is never reordered: a table of
    ancestors tells which slot holds each step of a beam's history. Under `vmap` documents step together until all are
    done.

    Raises:
      ValueError: a max_length beyond the positions of the backbone, a forced token outside its vocabulary.
    """
    backbone, dtype = model.backbone, jnp.dtype(model.dtype)
    if backbone.positions is not None and config.max_length > backbone.positions:
        raise ValueError(f"max_length={config.max_length} exceeds the model's {backbone.positions} positions")
    own: Any = {"forced_bos_token_id": backbone.tokens.forced_bos, "forced_eos_token_id": backbone.tokens.forced_eos}
    config = dataclasses.replace(config, **{name: own[name] for name in FORCED if getattr(config, name) is None})
    for name in FORCED:
        if (token := getattr(config, name)) is not None and token >= backbone.vocab_size:
            raise ValueError(f"{name}={token} lies outside the vocabulary of {backbone.vocab_size} tokens")

    def unbatched(params: Params, selected: Array, selected_mask: Array) -> Generation:
        batch = search(params, backbone, config, selected[None], selected_mask[None], dtype)
        return jax.tree.map(lambda x: x[0], batch)

    def batched_rule(size: int, batched: list, params: Params, selected: Array, selected_mask: Array) -> tuple:
        if any(jax.tree.leaves(batched[0])):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
            out = jax.vmap(unbatched, in_axes=axes)(params, selected, selected_mask)
        else:
            spread = lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape))
            states, masks = spread(selected, batched[1]), spread(selected_mask, batched[2])
            out = search(params, backbone, config, states, masks, dtype)
        return out, jax.tree.map(lambda _: True, out)

    # Plain `vmap` would give every document its own step counter and, to keep what is finished, copy the whole cache
    # at each step: at 256 tokens, 4 documents, 1.6 times the time on a CPU.
    one = custom_vmap(unbatched)
    one.def_vmap(batched_rule)
    return one(params, compacted.states, compacted.mask)


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
    config: GenerateConfig,
    selected: Float[Array, "B C D"],
    selected_mask: Bool[Array, "B C"],
    dtype: Any,
) -> Generation:
    """`generate` for several documents: one loop, one step counter; a finished document's state stays."""
    total = config.max_length
    start, advance, result = GREEDY_SEARCH if config.num_beams == 1 else BEAM_SEARCH
    cross = jax.vmap(lambda s, m: backbone.cross_cache(params, s, m, dtype))(selected, selected_mask)
    weights = backbone.for_generation(params, dtype)
    copies = lambda x: jnp.broadcast_to(x, (selected.shape[0], *x.shape))

    def step(carry: tuple) -> tuple:
        length, state, cache = carry

        def one(state: Any, cache: Any, cross: Any) -> tuple:
            token = lax.dynamic_index_in_dim(state.running, length - 1, axis=1, keepdims=False)
            logits, cache = backbone.decode_step(weights, token, length - 1, cache, cross, state.ancestors, dtype)
            scores = apply_logits_processors(
                jax.nn.log_softmax(logits, axis=-1), state.running, length, backbone, config
            )
            new = advance(state, scores, length, backbone, config)
            return jax.tree.map(lambda n, o: jnp.where(state.unfinished, n, o), new, state), cache

        state, cache = jax.vmap(one)(state, cache, cross)
        return length + 1, state, cache

    unfinished = lambda carry: (carry[0] < total) & carry[1].unfinished.any()
    empty = start(backbone, config), backbone.init_cache(config.num_beams, total)
    states, caches = jax.tree.map(copies, empty)
    _, states, _ = lax.while_loop(unfinished, step, (jnp.array(1), states, caches))
    return jax.vmap(lambda state: result(state, config))(states)


def empty_sequences(backbone: Backbone, config: GenerateConfig) -> Int[Array, "beams T"]:
    """The decoder start token, then PAD."""
    shape = (config.num_beams, config.max_length)
    return jnp.full(shape, backbone.tokens.pad, jnp.int32).at[:, 0].set(backbone.tokens.decoder_start)


def length_powers(config: GenerateConfig) -> Float[Array, " T"]:
    """n ** length_penalty for n = 1, 2, ... generated tokens (rounded once, as in transformers)."""
    return jnp.asarray(np.arange(1, config.max_length + 1) ** float(config.length_penalty), jnp.float32)


def apply_logits_processors(
    scores: Float[Array, "beams V"],
    sequences: Int[Array, "beams T"],
    length: Int[Array, ""],
    backbone: Backbone,
    config: GenerateConfig,
) -> Float[Array, "beams V"]:
    """transformers' logits processors, in its order: n-grams, minimum length, forced first and last token."""
    token = jnp.arange(scores.shape[-1])
    if config.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, sequences, length, config.no_repeat_ngram_size)
    if config.min_length:
        scores = jnp.where((token == backbone.tokens.eos) & (length < config.min_length), -jnp.inf, scores)
    for forced, now in (
        (config.forced_bos_token_id, length == 1),
        (config.forced_eos_token_id, length == config.max_length - 1),
    ):
        if forced is not None:
            scores = jnp.where(now, jnp.where(token == forced, 0.0, -jnp.inf), scores)
    return scores


def ban_repeated_ngrams(
    scores: Float[Array, "beams V"], sequences: Int[Array, "beams T"], length: Int[Array, ""], size: int
) -> Float[Array, "beams V"]:
    """-inf for every token that would complete an n-gram of `size` that its beam already holds."""
    beams, total = sequences.shape
    if size > total:
        return scores
    windows = total - size + 1
    matches = jnp.broadcast_to(jnp.arange(windows) + size <= length, (beams, windows))
    for offset in range(size - 1):
        # The last size - 1 tokens; where there are fewer no window is complete either.
        recent = lax.dynamic_slice_in_dim(sequences, length - size + 1 + offset, 1, axis=1)
        matches &= sequences[:, offset : offset + windows] == recent
    token = jnp.where(matches, sequences[:, size - 1 :], scores.shape[-1])
    return scores.at[jnp.arange(beams)[:, None], token].set(-jnp.inf, mode="drop")


def greedy_start(backbone: Backbone, config: GenerateConfig) -> Greedy:
    return Greedy(empty_sequences(backbone, config), jnp.array(0.0), jnp.array(1), jnp.array(True))


def greedy_step(
    g: Greedy, scores: Float[Array, "1 V"], length: Int[Array, ""], backbone: Backbone, config: GenerateConfig
) -> Greedy:
    """The most probable token, until it is EOS."""
    token = scores[0].argmax().astype(jnp.int32)
    return Greedy(
        g.running.at[0, length].set(token), g.score + scores[0, token], length + 1, token != backbone.tokens.eos
    )


def greedy_result(g: Greedy, config: GenerateConfig) -> Generation:
    return Generation(g.running[0], g.length, g.score / length_powers(config)[g.length - 2])


def beam_start(backbone: Backbone, config: GenerateConfig) -> Beams:
    beams, empty = config.num_beams, empty_sequences(backbone, config)
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
    b: Beams, scores: Float[Array, "beams V"], length: Int[Array, ""], backbone: Backbone, config: GenerateConfig
) -> Beams:
    """Keeps the `num_beams` best running and the `num_beams` best finished sequences.

    Source: the meaning of transformers 5 `generate`, for one document, with one EOS token.
    """
    beams, total = b.running.shape
    powers = length_powers(config)
    # Twice the beams: enough running ones remain even if each has EOS among its best. First within each beam: the same
    # order (ties go to the lower beam, then the lower token) without concatenating the vocabularies.
    each = min(2 * beams, scores.shape[-1])
    score, token = lax.top_k(scores + b.running_score[:, None], each)
    score, flat = lax.top_k(score.ravel(), 2 * beams)
    parent, token = flat // each, token.ravel()[flat]
    candidates = b.running[parent].at[:, length].set(token)
    ends = (token == backbone.tokens.eos) | (length + 1 >= total)
    written = b.ancestors.at[:, length - 1].set(jnp.arange(beams))
    running_score, best = lax.top_k(jnp.where(ends, score + NEG_INF, score), beams)

    may_finish = ends & (jnp.arange(2 * beams) < beams)  # only candidates among the best `num_beams`
    final = score / powers[length - 1] + NEG_INF * ~may_finish
    finished_score, keep = lax.top_k(jnp.concatenate([b.finished_score, final]), beams)
    merged = lambda old, new: jnp.concatenate([old, new])[keep]
    is_finished = merged(b.is_finished, may_finish)

    # Can a running beam still beat the worst finished one? Its score is divided by its present length or, with "never",
    # by the length that favours it most.
    reach = total - 1 if config.early_stopping == "never" and config.length_penalty > 0 else length
    worst = jnp.where(is_finished, finished_score.min(), NEG_INF)
    unfinished = (running_score[0] / powers[reach - 1] > worst).any()
    if config.early_stopping is True:
        unfinished &= ~is_finished.all()
    return Beams(
        running=candidates[best],
        running_score=running_score,
        ancestors=written[parent[best]],
        finished=merged(b.finished, candidates),
        finished_score=finished_score,
        finished_length=merged(b.finished_length, jnp.full(2 * beams, length + 1)),
        is_finished=is_finished,
        unfinished=unfinished,
    )


def beam_result(b: Beams, config: GenerateConfig) -> Generation:
    return Generation(b.finished[0], b.finished_length[0], b.finished_score[0])


GREEDY_SEARCH = (greedy_start, greedy_step, greedy_result)
BEAM_SEARCH = (beam_start, beam_step, beam_result)
