"""Beam search inside jit, with Hugging Face's meaning of every option. One document; `vmap` makes batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.bart.config import BartConfig
from jax_simcas.bart.decoder import SelfCache, cross_cache, decode_step, init_self_cache, stack_decoder

Params = Any
NEVER = -1e9  # the score of what must not win, as in transformers


@dataclass(frozen=True)
class GenerateConfig:
    """Options of `transformers.GenerationMixin.generate`, by the same names; lengths count the start token.

    early_stopping: True ends when `num_beams` summaries are finished; False when none that is better is to be
      expected; "never" when none is possible.
    forced_bos_token_id, forced_eos_token_id: None takes the model's own.
    """

    num_beams: int = 4
    max_length: int = 128
    min_length: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    early_stopping: bool | str = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_beams", 1),
            ("max_length", 2),
            ("min_length", 0),
            ("no_repeat_ngram_size", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} exceeds max_length={self.max_length}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r}: expected True, False or 'never'")


class Generation(NamedTuple):
    """The best summary: ids from the decoder start token on, PAD after `length`."""

    sequence: Int[Array, " T"]
    length: Int[Array, ""]
    score: Float[Array, ""]  # sum of log-probabilities / generated tokens ** length_penalty, nats


def generate(
    params: Params,
    bart: BartConfig,
    config: GenerateConfig,
    selected: Float[Array, "C D"],
    selected_mask: Bool[Array, " C"],
    dtype: Any = jnp.float32,
) -> Generation:
    """Searches for the most probable summary of one document, given its selected states.

    Cross-attention keys and values are computed once; the cache of self-attention is never reordered: a
    table says in which slot each beam's past lies.

    Raises:
      ValueError: a max_length beyond the model's positions.
    """
    if config.max_length > bart.max_position_embeddings:
        raise ValueError(f"max_length={config.max_length} exceeds the model's {bart.max_position_embeddings} positions")
    params = stack_decoder(params)
    cross = cross_cache(params, bart, selected, selected_mask, dtype)

    def log_probs(sequences: Array, length: Array, cache: SelfCache, ancestors: Array) -> tuple[Array, SelfCache]:
        """Of the token after `length`, with what is forbidden at -inf."""
        token = lax.dynamic_index_in_dim(sequences, length - 1, axis=1, keepdims=False)
        logits, cache = decode_step(params, bart, token, length - 1, cache, cross, ancestors, dtype)
        return processed(jax.nn.log_softmax(logits, axis=-1), sequences, length, bart, config), cache

    search = greedy_search if config.num_beams == 1 else beam_search
    cache = init_self_cache(bart, config.num_beams, config.max_length, dtype)
    return search(log_probs, cache, bart, config)


def processed(
    scores: Float[Array, "beams V"],
    sequences: Int[Array, "beams T"],
    length: Int[Array, ""],
    bart: BartConfig,
    config: GenerateConfig,
) -> Float[Array, "beams V"]:
    """The score processors in transformers' order: n-grams, minimum length, forced first and last token."""
    eos = bart.eos_token_id
    if config.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, sequences, length, config.no_repeat_ngram_size)
    if config.min_length:
        banned = (jnp.arange(scores.shape[-1]) == eos) & (length < config.min_length)
        scores = jnp.where(banned, -jnp.inf, scores)

    def force(scores: Array, token: int | None, now: Array) -> Array:
        if token is None:
            return scores
        only = jnp.where(jnp.arange(scores.shape[-1]) == token, 0.0, -jnp.inf)
        return jnp.where(now, only, scores)

    own = lambda given, models: models if given is None else given
    scores = force(scores, own(config.forced_bos_token_id, bart.forced_bos_token_id), length == 1)
    last = length == config.max_length - 1
    return force(scores, own(config.forced_eos_token_id, bart.forced_eos_token_id), last)


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


def greedy_search(log_probs: Any, cache: SelfCache, bart: BartConfig, config: GenerateConfig) -> Generation:
    """The most probable token, until it is EOS."""
    total = config.max_length
    sequence = jnp.full((1, total), bart.pad_token_id, jnp.int32).at[:, 0].set(bart.decoder_start_token_id)
    ancestors = jnp.zeros((1, total), jnp.int32)

    def unfinished(carry: tuple) -> Array:
        _, length, _, done, _ = carry
        return ~done & (length < total)

    def step(carry: tuple) -> tuple:
        sequence, length, score, _, cache = carry
        scores, cache = log_probs(sequence, length, cache, ancestors)
        token = scores[0].argmax().astype(jnp.int32)
        return (
            sequence.at[0, length].set(token),
            length + 1,
            score + scores[0, token],
            token == bart.eos_token_id,
            cache,
        )

    start = (sequence, jnp.array(1), jnp.array(0.0), jnp.array(False), cache)
    sequence, length, score, *_ = lax.while_loop(unfinished, step, start)
    return Generation(sequence[0], length, score / (length - 1) ** config.length_penalty)


class Beams(NamedTuple):
    """What the loop carries: running beams, finished beams, and whether to go on."""

    length: Int[Array, ""]  # of the running beams
    running: Int[Array, "beams T"]
    running_score: Float[Array, " beams"]
    ancestors: Int[Array, "beams T"]
    finished: Int[Array, "beams T"]
    finished_score: Float[Array, " beams"]
    finished_length: Int[Array, " beams"]
    is_finished: Bool[Array, " beams"]
    improvable: Bool[Array, ""]  # may a running beam still beat the worst finished one?
    extendable: Bool[Array, ""]  # is there a candidate that does not end?
    cache: SelfCache


def beam_search(log_probs: Any, cache: SelfCache, bart: BartConfig, config: GenerateConfig) -> Generation:
    """Keeps the `num_beams` best running and the `num_beams` best finished sequences.

    Source: the meaning of transformers 5 `generate`, for one document, with one EOS token.
    """
    beams, total, penalty = config.num_beams, config.max_length, config.length_penalty
    full_stops = config.early_stopping is True

    def unfinished(b: Beams) -> Array:
        return b.improvable & b.extendable & ~(b.is_finished.all() & full_stops)

    def step(b: Beams) -> Beams:
        scores, cache = log_probs(b.running, b.length, b.cache, b.ancestors)
        vocabulary = scores.shape[-1]
        # Twice the beams: even if each has EOS among its best there are enough to go on with.
        score, flat = lax.top_k((scores + b.running_score[:, None]).ravel(), 2 * beams)
        parent, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        candidates = b.running[parent].at[:, b.length].set(token)
        ends = (token == bart.eos_token_id) | (b.length + 1 >= total)
        written = b.ancestors.at[:, b.length - 1].set(jnp.arange(beams))

        running_score, best = lax.top_k(jnp.where(ends, score + NEVER, score), beams)
        running, ancestors = candidates[best], written[parent[best]]

        # Only candidates among the best `num_beams` may finish, and nothing may once the search is settled.
        may_finish = ends & (jnp.arange(2 * beams) < beams)
        settled = ~b.improvable | (b.is_finished.all() & full_stops)
        final = score / jnp.asarray(b.length, jnp.float32) ** penalty
        final = final + NEVER * settled + NEVER * ~may_finish
        finished_score, keep = lax.top_k(jnp.concatenate([b.finished_score, final]), beams)
        merge = lambda old, new: jnp.concatenate([old, new])[keep]
        is_finished = merge(b.is_finished, may_finish)

        length = b.length + 1
        reach = total - 1 if config.early_stopping == "never" and penalty > 0 else length - 1
        possible = running_score[0] / jnp.asarray(reach, jnp.float32) ** penalty
        worst = jnp.where(is_finished, finished_score.min(), NEVER)
        return Beams(
            length,
            running,
            running_score,
            ancestors,
            merge(b.finished, candidates),
            finished_score,
            merge(b.finished_length, jnp.full(2 * beams, length)),
            is_finished,
            b.improvable & (possible > worst).any(),
            ~ends.all(),
            cache,
        )

    empty = jnp.full((beams, total), bart.pad_token_id, jnp.int32).at[:, 0].set(bart.decoder_start_token_id)
    start = Beams(
        length=jnp.array(1),
        running=empty,
        running_score=jnp.where(jnp.arange(beams) == 0, 0.0, NEVER),  # all beams are alike: one may branch
        ancestors=jnp.zeros((beams, total), jnp.int32),
        finished=empty,
        finished_score=jnp.full(beams, NEVER),
        finished_length=jnp.ones(beams, jnp.int32),
        is_finished=jnp.zeros(beams, bool),
        improvable=jnp.array(True),
        extendable=jnp.array(True),
        cache=cache,
    )
    end = lax.while_loop(unfinished, step, start)
    return Generation(end.finished[0], end.finished_length[0], end.finished_score[0])
