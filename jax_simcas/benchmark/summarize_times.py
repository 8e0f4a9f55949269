"""Documents per second alone and in batches: what `jax_simcas.benchmark.summarize_speed` runs."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_simcas.backbones.families import backbone_for, replaced
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.benchmark import stages
from jax_simcas.benchmark.worker import ProcessMemory
from jax_simcas.common.errors import FlagError, UserError
from jax_simcas.common.tables import MIB, markdown_table
from jax_simcas.data.batches import PipelineConfig
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.evaluation.predict import Predictor
from jax_simcas.evaluation.summarizer import Summarizer, Summary
from jax_simcas.method.generate_config import DEFAULTS, GenerateConfig
from jax_simcas.method.model import SimCAS, init_params

SMALL = replaced(stages.MODELS["tiny"], d_model=256, encoder_layers=3, decoder_layers=3, encoder_ffn_dim=1024,
                 decoder_ffn_dim=1024)  # fmt: skip
LONGEST = 8  # documents that memory is measured with

Side = Callable[[list[str]], list[Summary]]


def words_of(count: int) -> list[str]:
    return [f"word-{i}" for i in range(count)]


def shape_of(name: str) -> BackboneConfig:
    return SMALL if name == "small" else stages.shape_of(name)


def summarizer(arguments: Any) -> Summarizer:
    """A model with random weights and a word for every token."""
    shape = shape_of(arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        word_level(words_of(shape.vocab_size - 5), Path(folder) / "tokenizer")
        tokenizer = load_tokenizer(Path(folder) / "tokenizer")
    specials = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    shape = replaced(shape, vocab_size=len(tokenizer), **specials, decoder_start_token_id=tokenizer.eos_token_id)
    model = SimCAS(backbone_for(shape))
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(arguments.seed), model)
    reading = PipelineConfig(arguments.chunk_length, arguments.tokens[1] + 2, 128, embedding_rows=len(tokenizer))
    generate = GenerateConfig(num_beams=arguments.num_beams, max_length=arguments.max_length).filled(DEFAULTS)
    return Summarizer(Predictor(params, model, tokenizer, reading, generate))


def documents(arguments: Any) -> list[str]:
    """Random words, as many as tokens."""
    rng, (low, high) = np.random.default_rng(arguments.seed), arguments.tokens
    words = np.array(words_of(shape_of(arguments.size).vocab_size - 5))
    return [" ".join(rng.choice(words, (rng.integers(low, high + 1),))) for _ in range(arguments.documents)]


def seconds(side: Side, texts: list[str]) -> float:
    started = time.monotonic()
    side(texts)
    return time.monotonic() - started


def added_memory(side: Side, texts: list[str]) -> float:
    """MiB at the peak beyond those before."""
    memory = ProcessMemory()
    rest = memory.start()
    side(texts)
    return (memory.peak() - rest) / MIB


def turns(sides: dict[str, Side], parts: Sequence[list[str]]) -> dict[str, list[float]]:
    """Seconds of each side on each part; the side that begins changes from part to part."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number, part in enumerate(parts):
        for name in sorted(sides, reverse=bool(number % 2)):
            taken[name].append(seconds(sides[name], part))
        print(", ".join(f"{name} {len(part) / taken[name][-1]:.3g} documents/s" for name in sides), file=sys.stderr)
    return taken


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not sys.platform.startswith("linux"):
        raise UserError("the benchmark reads memory from /proc and so needs Linux")
    if arguments.tokens[0] > arguments.tokens[1]:
        raise FlagError(f"--tokens={arguments.tokens[0]},{arguments.tokens[1]}: expected the least first")
    model, texts = summarizer(arguments), documents(arguments)
    sides: dict[str, Side] = {
        "in batches": lambda texts: model.summarize(texts, batch_size=arguments.batch_size),
        "one by one": lambda texts: [model.summarize(text) for text in texts],
    }
    parts = [texts[start : start + arguments.part] for start in range(0, len(texts), arguments.part)]
    first = {name: sum(seconds(side, part) for part in parts) for name, side in sides.items()}  # the same shapes
    taken = turns(sides, parts)
    longest = sorted(texts, key=len)[-LONGEST:]
    rows = [
        {
            "documents": name,
            "documents/s, first pass": f"{len(texts) / first[name]:.3g}",
            "documents/s, compiled": f"{len(texts) / sum(taken[name]):.3g}",
            "MiB added": f"{added_memory(side, longest):.0f}",
        }
        for name, side in sides.items()
    ]
    print(markdown_table(rows, list(rows[0])))
    ratios = [alone / together for alone, together in zip(taken["one by one"], taken["in batches"], strict=True)]
    total = sum(taken["one by one"]) / sum(taken["in batches"])
    print(
        f"in batches {total:.2f} times as fast as one by one, first pass "
        f"{first['one by one'] / first['in batches']:.2f} times; by part median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return 0
