"""Beam search inside jit; every option means what it means in transformers. One document; `vmap` makes batches."""

from __future__ import annotations

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
NOTHING = -1  # in place of a forced token


@dataclass(frozen=True)
class GenerateConfig:
    """Options of `transformers.GenerationMixin.generate`, by the same names; lengths count the start token.

    None is what the pretrained checkpoint says, else transformers' default; from scratch, the value named last.

    Raises:
      ValueError: a value that has no meaning, by the name of its option.
    """

    num_beams: int | None = None  # hypotheses that are followed side by side; 4
    max_length: int | None = None  # tokens of a summary, the start token included; 128
    min_length: int | None = None  # tokens, likewise; 0
    length_penalty: float | None = None  # scores are divided by tokens ** length_penalty: above 0 prefers long ones; 1
    no_repeat_ngram_size: int | None = None  # no sequence of so many tokens comes twice; 0: it may; 0
    # True ends when `num_beams` summaries are finished; False when a better one is unlikely; "never" when a better one
    # is impossible; False
    early_stopping: bool | str | None = None
    forced_bos_token_id: int | str | None = None  # what must come first, by id or (in settings) text; -1: anything may
    forced_eos_token_id: int | None = None  # what must come at max_length; -1: anything may
    repetition_penalty: float | None = None  # above 1 makes tokens that came before less probable; 1
    encoder_no_repeat_ngram_size: int | None = None  # no sequence of so many tokens of the document comes; 0: it may; 0
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None  # sequences of tokens that never come; none
    suppress_tokens: tuple[int, ...] | None = None  # tokens that never come; none
    begin_suppress_tokens: tuple[int, ...] | None = None  # tokens that never come first; none
    # (start, factor): after `start` tokens an end becomes more probable, by factor ** (tokens beyond it); none
    exponential_decay_length_penalty: tuple[float, ...] | None = None
    renormalize_logits: bool | None = None  # probabilities sum to 1 after all these rules; False

    def __post_init__(self) -> None:
        self._check_counts()
        for name, above in (("length_penalty", -math.inf), ("repetition_penalty", 0.0)):
            number = getattr(self, name)
            if number is not None and not (is_number(number) and number > above):
                raise ValueError(f"{name}={number!r}: expected a finite number{' above 0' if above == 0 else ''}")
        # Not `in (True, False, ...)`: 0 and 1 would pass, and mean neither further down.
        if not isinstance(self.early_stopping, bool | None) and self.early_stopping != "never":
            raise ValueError(f"early_stopping={self.early_stopping!r}: expected True, False or 'never'")
        self._check_sequences()

    def _check_counts(self) -> None:
        least = {"num_beams": 1, "max_length": 2, "min_length": 0, "no_repeat_ngram_size": 0}
        least |= {"encoder_no_repeat_ngram_size": 0, **dict.fromkeys(FORCED, NOTHING)}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is None or (name == "forced_bos_token_id" and isinstance(value, str) and value):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: expected a whole number of at least {bound}")
            checks.at_least(self, bound, name)
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} exceeds max_length={self.max_length}")

    def _check_sequences(self) -> None:
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            if getattr(self, name) is not None and not are_tokens(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected ids of tokens")
        words = self.bad_words_ids
        if words is not None and not (isinstance(words, tuple) and words and all(map(are_tokens, words))):
            raise ValueError(f"bad_words_ids={words!r}: expected sequences of ids of tokens")
        decay = self.exponential_decay_length_penalty
        if decay is not None and not (are_tokens(decay[:1]) and len(decay) == 2 and is_number(decay[1])):
            raise ValueError(f"exponential_decay_length_penalty={decay!r}: expected (start, factor)")

    def filled(self, other: GenerateConfig) -> GenerateConfig:
        """What is left open here as `other` has it."""
        mine, theirs = vars(self), vars(other)
        return GenerateConfig(**{name: theirs[name] if mine[name] is None else mine[name] for name in mine})

    def rules(self, backbone: Backbone) -> Rules:
        """Nothing left open.

        Raises:
          ValueError: a max_length beyond the positions of the backbone, a token outside its vocabulary.
        """
        tokens = backbone.tokens
        own = GenerateConfig(forced_bos_token_id=tokens.forced_bos, forced_eos_token_id=tokens.forced_eos)
        values = dict(vars(self.filled(own).filled(DEFAULTS)))
        for name in FORCED:
            if isinstance(values[name], str):
                raise ValueError(f"{name}={values[name]!r}: expected the id of a token")
            if values[name] == NOTHING:
                values[name] = None
        ends = tokens.ends or (tokens.eos,)
        # Source: transformers' NoBadWordsLogitsProcessor, which never forbids the end.
        bad = values["bad_words_ids"] or ()
        values["bad_words_ids"] = tuple(words for words in bad if words not in {(end,) for end in ends})
        rules = Rules(**values, ends=ends)
        if backbone.positions is not None and rules.max_length > backbone.positions:
            raise ValueError(f"max_length={rules.max_length} exceeds the model's {backbone.positions} positions")
        for name, token in tokens_of(self):
            if token >= backbone.vocab_size:
                raise ValueError(f"{name}={token} lies outside the vocabulary of {backbone.vocab_size} tokens")
        return rules


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_tokens(ids: Any) -> bool:
    """Whether these are at least one whole number of at least 0; some may be written as floats."""
    return isinstance(ids, tuple) and ids != () and all(is_number(i) and i >= 0 and i == int(i) for i in ids)


DEFAULTS = GenerateConfig(
    num_beams=4,
    max_length=128,
    min_length=0,
    length_penalty=1.0,
    no_repeat_ngram_size=0,
    early_stopping=False,
    repetition_penalty=1.0,
    encoder_no_repeat_ngram_size=0,
    renormalize_logits=False,
)


def tokens_of(config: GenerateConfig) -> list[tuple[str, int]]:
    """Every token that the options name and that the vocabulary must have; suppressing others does no harm."""
    found = [(name, getattr(config, name)) for name in FORCED if isinstance(getattr(config, name), int)]
    return found + [("bad_words_ids", token) for words in config.bad_words_ids or () for token in words]


class Rules(NamedTuple):
    """`GenerateConfig` with every option decided, and the tokens that end a summary."""

    num_beams: int
    max_length: int
    min_length: int
    length_penalty: float
    no_repeat_ngram_size: int
    early_stopping: bool | str
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    repetition_penalty: float
    encoder_no_repeat_ngram_size: int
    bad_words_ids: tuple[tuple[int, ...], ...]
    suppress_tokens: tuple[int, ...] | None
    begin_suppress_tokens: tuple[int, ...] | None
    exponential_decay_length_penalty: tuple[float, ...] | None
    renormalize_logits: bool
    ends: tuple[int, ...]


class Generation(NamedTuple):
    """The best summary: ids from the decoder start token on, PAD after `length`."""

    sequence: Int[Array, "*B T"]
    length: Int[Array, "*B"]
    score: Float[Array, "*B"]  # sum of log-probabilities / generated tokens ** length_penalty, nats


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
            # Without beams transformers penalises logits; with them, log-probabilities.
            choice = allow(logits) if rules.num_beams == 1 and rules.repetition_penalty != 1.0 else scores
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


def is_any(token: Int[Array, "*shape"], of: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """Whether each token is one of these."""
    return jnp.isin(token, jnp.asarray(of, jnp.int32))


def apply_logits_processors(
    scores: Float[Array, "beams V"],
    sequences: Int[Array, "beams T"],
    length: Int[Array, ""],
    source: Int[Array, " N"],
    rules: Rules,
) -> Float[Array, "beams V"]:
    """transformers' logits processors, in its order."""
    token = jnp.arange(scores.shape[-1])
    ban = lambda which, scores: jnp.where(which, -jnp.inf, scores)
    if rules.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, sequences, length, rules.repetition_penalty)
    if rules.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, sequences, length, rules.no_repeat_ngram_size)
    if rules.encoder_no_repeat_ngram_size:
        scores = ban_source_ngrams(scores, sequences, length, source, rules.encoder_no_repeat_ngram_size)
    for words in rules.bad_words_ids:
        scores = ban((token == words[-1]) & ends_in(sequences, length, words[:-1])[:, None], scores)
    if rules.min_length:
        scores = ban(is_any(token, rules.ends) & (length < rules.min_length), scores)
    for forced, now in (
        (rules.forced_bos_token_id, length == 1),
        (rules.forced_eos_token_id, length == rules.max_length - 1),
    ):
        if forced is not None:
            scores = jnp.where(now, jnp.where(token == forced, 0.0, -jnp.inf), scores)
    if rules.exponential_decay_length_penalty:
        first, factor = rules.exponential_decay_length_penalty
        beyond = jnp.maximum(length - 1 - int(first), 0)
        growth = jnp.abs(scores) * (jnp.float32(factor) ** beyond - 1)
        scores = scores + jnp.where(is_any(token, rules.ends) & jnp.isfinite(scores), growth, 0.0)
    if rules.suppress_tokens:
        scores = ban(is_any(token, rules.suppress_tokens), scores)
    if rules.begin_suppress_tokens:
        begin = 1 if rules.forced_bos_token_id is None else 2
        scores = ban(is_any(token, rules.begin_suppress_tokens) & (length == begin), scores)
    return jax.nn.log_softmax(scores, axis=-1) if rules.renormalize_logits else scores


def penalize_repetition(
    scores: Float[Array, "beams V"], sequences: Int[Array, "beams T"], length: Int[Array, ""], penalty: float
) -> Float[Array, "beams V"]:
    """Scores of tokens that a beam already holds: divided by `penalty` above 0, multiplied by it below."""
    beams, total = sequences.shape
    held = jnp.where(jnp.arange(total) < length, sequences, scores.shape[-1])
    came = jnp.zeros(scores.shape, bool).at[jnp.arange(beams)[:, None], held].set(True, mode="drop")
    return jnp.where(came, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def ends_in(sequences: Int[Array, "beams T"], length: Int[Array, ""], words: tuple[int, ...]) -> Bool[Array, " beams"]:
    """Whether the first `length` tokens of each beam end in these."""
    if len(words) > sequences.shape[1]:
        return jnp.zeros(sequences.shape[0], bool)
    last = lax.dynamic_slice_in_dim(sequences, jnp.maximum(length - len(words), 0), len(words), axis=1)
    return (last == jnp.asarray(words, sequences.dtype)).all(axis=1) & (length >= len(words))


def ban_source_ngrams(
    scores: Float[Array, "beams V"],
    sequences: Int[Array, "beams T"],
    length: Int[Array, ""],
    source: Int[Array, " N"],
    size: int,
) -> Float[Array, "beams V"]:
    """-inf for every token that would complete an n-gram of `size` that the document holds."""
    beams = sequences.shape[0]
    if size > source.shape[0] or size > sequences.shape[1]:
        return scores
    windows = source.shape[0] - size + 1
    matches = jnp.broadcast_to(length >= size - 1, (beams, windows))
    for offset in range(size - 1):
        place = jnp.maximum(length - size + 1 + offset, 0)
        recent = lax.dynamic_slice_in_dim(sequences, place, 1, axis=1)
        matches &= source[offset : offset + windows] == recent
    last = source[size - 1 :]
    token = jnp.where(matches & (last >= 0), last, scores.shape[-1])
    return scores.at[jnp.arange(beams)[:, None], token].set(-jnp.inf, mode="drop")


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
