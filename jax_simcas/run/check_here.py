"""Our side of a check: a checkpoint through the functions that training and summarising use, with every state kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas.backbones.families import backbone_for
from jax_simcas.backbones.protocol import Backbone
from jax_simcas.data.features import FeatureConfig, check_token_ids, featurize
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import TextTokenizer, count_unknown, frame_of
from jax_simcas.evaluation.report import MANY_UNKNOWN, unknown_line
from jax_simcas.method.align import ALIGNMENTS
from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, forward
from jax_simcas.method.select import ALL
from jax_simcas.method.steps import smoothed_cross_entropy
from jax_simcas.run.build import Model, pipeline_config
from jax_simcas.run.check_reading import Framed, Given, Reading
from jax_simcas.run.check_texts import TARGET_TOKENS, Text
from jax_simcas.run.config import Settings

MULTIPLE = 16  # of which lengths are: few programs to compile
TARGET = 2 * TARGET_TOKENS  # with what may stand around it
BEAMS = 4  # where the checkpoint generates without


def searches(settings: GenerateConfig) -> tuple[GenerateConfig, GenerateConfig]:
    """Without beams, and with as many as the checkpoint has."""
    several = BEAMS if settings.num_beams in (None, 1) else settings.num_beams
    return dataclasses.replace(settings, num_beams=1), dataclasses.replace(settings, num_beams=several)


def limited(settings: Settings, longest: int | None) -> Settings:
    """Settings whose summaries have at most `longest` tokens; None: as they are."""
    if longest is None:
        return settings
    old = settings.generate
    longest = min(longest, old.max_length or longest)
    least = None if old.min_length is None else min(old.min_length, longest)
    return dataclasses.replace(settings, generate=dataclasses.replace(old, max_length=longest, min_length=least))


class Documents(NamedTuple):
    """Texts as documents: chunks as the model's settings have them, without what these put around a text."""

    tokenizer: TextTokenizer
    reading: FeatureConfig
    rows: int  # of the embedding

    @classmethod
    def of(cls, model: Model) -> Documents:
        shape = model.settings.backbone_config
        reading = dataclasses.replace(
            pipeline_config(model.settings),
            input_template="{document}",
            chunking="fixed",
            parts_at="",
            max_target_len=min(TARGET, shape.positions or TARGET),
        )
        return cls(model.tokenizer, reading, shape.vocab_size)

    @property
    def room(self) -> int:
        """Tokens of content that one chunk holds."""
        frame = frame_of(self.tokenizer)
        return self.reading.chunk_length - len(frame.prefix) - len(frame.suffix)

    def given(self, text: Text, align: str | None = None) -> Given:
        """The text in chunks, the last of which is as short as it may be where there is only one.

        Raises:
          UserError: a token that the weights have not.
        """
        found = featurize(Row(text.name, text.document, text.target), self.tokenizer, self.reading)
        check_token_ids(found, self.tokenizer, self.rows, text.name)
        ids, mask = found["input_ids"], found["token_mask"]
        length = self.reading.chunk_length if len(ids) > 1 else _multiple(int(mask.sum()))
        start, *labels = found["target_ids"].tolist()
        return Given(ids[:, :length], mask[:, :length], start, tuple(labels), align)

    def frame(self, given: Given) -> Framed:
        """The tokens of a document of one chunk, and those that stand around it."""
        frame = frame_of(self.tokenizer)
        ends = (len(frame.prefix), len(frame.suffix)), (len(frame.target_prefix), len(frame.target_suffix))
        return Framed(tuple(given.ids[given.mask].tolist()), given.labels, *ends)

    def unknown(self, given: Sequence[Given]) -> Iterator[str]:
        """A warning where many tokens are unknown."""
        counts = [count_unknown(self.tokenizer, document.ids, document.mask) for document in given]
        unknown, total = (sum(column) for column in zip(*counts, strict=True))
        if unknown > MANY_UNKNOWN * total:
            yield f"warning: {unknown_line(unknown / total)}; give texts of the model's kind as --text"


def _multiple(count: int) -> int:
    return -(-count // MULTIPLE) * MULTIPLE


@partial(jax.jit, static_argnums=2)
def _forward(params: Any, example: Example, model: SimCAS) -> tuple:
    out = forward(params, model, example, policy=ALL, with_weights=False)
    return (
        out.encoded.hidden,
        out.logits,
        smoothed_cross_entropy(out.logits, example.target, 0.0),
        out.encoded.compacted,
    )


_generate = jax.jit(generate, static_argnums=(1, 2))


class Here(NamedTuple):
    """A model that is read."""

    params: Any
    backbone: Backbone
    generate: GenerateConfig

    @classmethod
    def of(cls, model: Model) -> Here:
        return cls(jax.device_put(model.params), backbone_for(model.settings.backbone_config), model.settings.generate)

    def read(self, given: Given) -> Reading:
        """Encodes, decodes, and generates without beams and with, in float32."""
        model = SimCAS(self.backbone, align=ALIGNMENTS[given.align or "none"])
        target = [given.start, *given.labels]
        filled = np.full(_multiple(len(target)), self.backbone.tokens.pad, np.int32)
        filled[: len(target)] = target
        ids, mask = jnp.asarray(given.ids), jnp.asarray(given.mask)
        document = Document(ids, mask, mask.any(axis=1))
        example = Example(document, Target(jnp.asarray(filled), jnp.arange(len(filled)) < len(target)))
        with jax.default_matmul_precision("highest"):
            hidden, logits, loss, compacted = _forward(self.params, example, model)
            source = jnp.where(mask, ids, -1).reshape(-1)
            found = [_generate(self.params, model, how, compacted, source) for how in searches(self.generate)]
        sequences = tuple(tuple(np.asarray(made.sequence)[: int(made.length)].tolist()) for made in found)
        states, logits = np.asarray(hidden)[given.mask], np.asarray(logits)[: len(given.labels)]
        return Reading(states, logits, float(loss), sequences)
