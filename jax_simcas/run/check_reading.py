"""What is compared when a checkpoint is checked, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_simcas.run.parity_cases import Check

# Relative to the largest state or logit, and to the loss: some times what float32 leaves in deep models.
STATES, LOGITS, LOSS = 5e-5, 5e-5, 2e-5
SEARCHES = ("greedy tokens", "beam tokens")


class Framed(NamedTuple):
    """The tokens of a text, and of a target; and how many of each stand around the content, before it and behind."""

    document: tuple[int, ...]
    target: tuple[int, ...]
    around: tuple[int, int] = (0, 0)
    around_target: tuple[int, int] = (0, 0)
    bare: bool = False  # made by a tokenizer that puts none around

    def content(self) -> Framed:
        """Without what stands around."""
        within = lambda ids, ends: ids[ends[0] : len(ids) - ends[1]]
        return Framed(within(self.document, self.around), within(self.target, self.around_target), bare=True)


class Given(NamedTuple):
    """One document as both sides read it; align: "mean" or "shift" between its chunks, None: one chunk, alone.

    start: what the decoder starts with. labels: what it is to predict.
    """

    ids: Int[np.ndarray, "K S"]
    mask: Bool[np.ndarray, "K S"]
    start: int
    labels: tuple[int, ...]
    align: str | None = None


class Reading(NamedTuple):
    """What a side makes of one document: states of its real tokens, logits of its labels, and their mean loss in nats.

    sequences: generated tokens, the start token included, without beams and with.
    """

    states: Float[np.ndarray, "N D"]
    logits: Float[np.ndarray, "T V"]
    loss: float
    sequences: tuple[tuple[int, ...], ...]


def differing(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many places differ, those that only one has included."""
    return sum(a != b for a, b in zip_longest(ours, theirs))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest value; infinite for another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    size = float(np.max(np.abs(theirs), initial=np.finfo(np.float32).tiny))
    return float(np.max(np.abs(ours.astype(np.float64) - theirs), initial=0.0)) / size


def compare_frames(case: str, ours: Sequence[Framed], theirs: Sequence[Framed]) -> Check:
    """Tokens of the texts and around them; only their content where the other side puts none around."""
    pairs = [(a.content() if b.bare else a, b) for a, b in zip(ours, theirs, strict=True)]
    count = sum(differing(a.document, b.document) + differing(a.target, b.target) for a, b in pairs)
    return Check(case, "tokens of the texts", float(count), 0.0)


def compare_readings(case: str, ours: Sequence[Reading], theirs: Sequence[Reading]) -> Iterator[Check]:
    """The worst of all texts for each quantity."""
    pairs = list(zip(ours, theirs, strict=True))
    yield Check(case, "encoder states", max(relative(a.states, b.states) for a, b in pairs), STATES)
    yield Check(case, "logits", max(relative(a.logits, b.logits) for a, b in pairs), LOGITS)
    losses = max(abs(a.loss - b.loss) / max(abs(b.loss), 1.0) for a, b in pairs)
    yield Check(case, "loss", losses, LOSS)
    for number, name in enumerate(SEARCHES):
        count = sum(differing(a.sequences[number], b.sequences[number]) for a, b in pairs)
        yield Check(case, name, float(count), 0.0)
