"""The options of generation, and the same with nothing left open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common import checks

FORCED = ("forced_bos_token_id", "forced_eos_token_id")
NOTHING = -1  # in place of a forced token


@dataclass(frozen=True)
class GenerateConfig:
    """Options of `transformers.GenerationMixin.generate`, by the same names; lengths count the start token.

    None is what the pretrained checkpoint says, else transformers' default; of a model from scratch, the default here.

    Raises:
      ValueError: a value that has no meaning, by the name of its option.
    """

    num_beams: int | None = None  # beam width; 1 is greedy search. Default: 4
    max_length: int | None = None  # maximum length of a summary in tokens, the start token included. Default: 128
    min_length: int | None = None  # minimum length, counted likewise. Default: 0
    # scores are divided by length ** length_penalty: a value above 0 favours long summaries. Default: 1
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None  # n-grams of this size must not repeat; 0 allows all. Default: 0
    # when a beam search ends: True, with `num_beams` finished summaries; False, when a better one is unlikely; "never",
    # when a better one is impossible. Default: False
    early_stopping: bool | str | None = None
    # the first token of every summary, by id or (in settings) text; -1: any. Default: that of the checkpoint
    forced_bos_token_id: int | str | None = None
    # the last token of a summary of max_length; -1: any. Default: that of the checkpoint
    forced_eos_token_id: int | None = None
    repetition_penalty: float | None = None  # above 1 makes tokens that were generated less probable. Default: 1
    # n-grams of this size in the document must not occur; 0 allows all. Default: 0
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None  # sequences of tokens that must not occur. Default: none
    suppress_tokens: tuple[int, ...] | None = None  # tokens that must not occur. Default: none
    begin_suppress_tokens: tuple[int, ...] | None = None  # tokens that must not come first. Default: none
    # (start, factor): after `start` tokens the end becomes more probable, by factor ** (tokens beyond). Default: none
    exponential_decay_length_penalty: tuple[float, ...] | None = None
    renormalize_logits: bool | None = None  # whether probabilities sum to 1 after all of these. Default: False

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
        ends = tokens.all_ends
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

    @property
    def depends_on_size(self) -> bool:
        """Whether a rule changes scores by their size, so that logits and log-probabilities may choose otherwise."""
        return self.repetition_penalty != 1.0 or self.exponential_decay_length_penalty is not None
