"""transformers' logits processors: what the search may write next, given what it wrote."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.method.generate_config import Rules


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
