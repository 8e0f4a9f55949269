"""Rows and tokens per second of the input pipeline: what `jax_simcas.benchmark.input` runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jax_simcas.benchmark.worker import resident
from jax_simcas.common import files, progress, tables
from jax_simcas.common.errors import FlagError, UserError
from jax_simcas.common.tables import MIB
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import FeatureCache, PipelineConfig, make_iterator
from jax_simcas.data.rows import Fields, RowSource
from jax_simcas.data.text_files import JsonlSource
from jax_simcas.data.tokenizer import TextTokenizer

SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "ze", "qua", "stra", "ment", "ing", "al")
WORDS, SENTENCES, WORDS_PER_SENTENCE = 30_000, 20_000, 20
TOKENS_PER_WORD = 1.07  # with the tokenizer and the text below
VOCABULARY = 8_192
SAMPLE = 500  # documents that the tokenizer is trained on
SETTLED = 0.02  # share of the rows after which memory should not grow


def write_documents(path: Path, rows: int, tokens: tuple[int, int]) -> None:
    """Rows of about tokens[0] to tokens[1] tokens, with summaries of about 200."""
    rng = np.random.default_rng(0)
    words = np.asarray(["".join(rng.choice(SYLLABLES, (rng.integers(1, 5),))) for _ in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    drawn = rng.choice(words, (SENTENCES, WORDS_PER_SENTENCE), p=frequency / frequency.sum())
    sentences = [" ".join(sentence).capitalize() + "." for sentence in drawn]

    def text(count: int) -> str:
        return " ".join(sentences[int(i)] for i in rng.integers(SENTENCES, size=(count,)))

    low, high = (max(int(n / TOKENS_PER_WORD / WORDS_PER_SENTENCE), 1) for n in tokens)
    bar = progress.Progress(rows, unit="rows written")
    with files.writing(path), files.replacing(path) as temporary, temporary.open("w") as file, bar:
        for i in range(rows):
            row = {"id": str(i), "document": text(int(rng.integers(low, high + 1))), "summary": text(7)}
            file.write(json.dumps(row) + "\n")
            bar.update()


def memory() -> float:
    """Resident MiB of this process and its workers."""
    workers = [str(child.pid) for child in multiprocessing.active_children()]
    return sum(resident("VmRSS", process) for process in ("self", *workers)) / MIB


def read(
    source: RowSource, tokenizer: TextTokenizer, config: PipelineConfig, rows: int, cache: FeatureCache | None
) -> dict[str, Any]:
    """Figures for the first `rows` rows of a training epoch, in whole batches."""
    batches = make_iterator(source, tokenizer, config, training=True, cache=cache)
    next(batches)  # workers have started
    tokens, positions, most, settled, count = 0, 0, 0.0, 0.0, max(rows // config.batch_size, 1)
    started = time.monotonic()
    with progress.Progress(count, unit="batches") as bar:
        for number, batch in enumerate(itertools.islice(batches, count), 1):
            tokens += int(batch["token_mask"].sum())
            positions += batch["token_mask"].size
            if number % max(count // 500, 1) == 0:
                most = max(most, memory())
            if number <= SETTLED * count + 1:
                settled = most = memory()
            bar.update()
    seconds = time.monotonic() - started
    if hasattr(batches, "close"):
        batches.close()
    return {
        "input": "tokenising" if cache is None else "cache, sorted" if config.bucket_batches else "cache",
        "workers": config.workers,
        "rows": count * config.batch_size,
        "tokens": tokens,
        "seconds": f"{seconds:.1f}",
        "rows/s": f"{count * config.batch_size / seconds:.0f}",
        "tokens/s": round(tokens / seconds),
        "padding %": f"{100 - 100 * tokens / positions:.0f}",
        "MiB": f"{settled:.0f}",
        "MiB added": f"{most - settled:.1f}",
    }


def open_documents(folder: Path, rows: int, tokens: tuple[int, int]) -> tuple[JsonlSource, Any]:
    """The documents and their tokenizer, made unless the folder has them."""
    path = folder / f"{rows}-{tokens[0]}-{tokens[1]}.jsonl"
    if not path.exists():
        write_documents(path, rows, tokens)
    started = time.monotonic()
    source = JsonlSource(path, Fields(), folder)
    seconds = time.monotonic() - started
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {len(source)} rows, opened in {seconds:.1f} s")
    sample = (source[i].document for i in range(min(SAMPLE, len(source))))
    train = partial(tokenizer_lib.byte_level_bpe, sample, VOCABULARY)
    return source, tokenizer_lib.load_or_make(folder / "tokenizer", train)


def open_cache(
    source: JsonlSource, tokenizer: TextTokenizer, config: PipelineConfig, folder: Path
) -> cache_lib.TokenCache:
    """The token cache, built unless the folder has it."""
    cache = cache_lib.find(source, tokenizer, config, folder)
    if cache is not None:
        return cache
    started = time.monotonic()
    with progress.Progress(len(source), unit="rows tokenised") as bar:
        cache = cache_lib.token_cache(source, tokenizer, config, folder, bar.update)
    seconds = time.monotonic() - started
    speed = f"{len(source) / seconds:.0f} rows/s by {config.workers} workers"
    print(f"cache: {cache.size / 1e9:.2f} GB, built in {seconds:.1f} s, {speed}")
    return cache


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not sys.platform.startswith("linux"):
        raise UserError("the benchmark reads memory from /proc and so needs Linux")
    tokens, workers = arguments.tokens, sorted(set(arguments.workers))
    if tokens[0] > tokens[1]:
        raise FlagError(f"--tokens={tokens[0]},{tokens[1]}: expected the least first")
    folder = files.make_folder(Path(arguments.folder), "--folder")
    source, tokenizer = open_documents(folder, arguments.rows, tokens)
    config = PipelineConfig(arguments.chunk_length, arguments.max_input_len, 256, batch_size=arguments.batch_size)
    configs = [dataclasses.replace(config, workers=count) for count in workers]
    sample = min(arguments.sample, len(source))
    rows = [read(source, tokenizer, each, sample, None) for each in configs]
    cache = open_cache(source, tokenizer, configs[-1], folder / "tokens")
    if arguments.bucket_batches:
        configs.append(dataclasses.replace(config, bucket_batches=arguments.bucket_batches))
    rows += [read(source, tokenizer, each, arguments.read or len(source), cache) for each in configs]
    if arguments.consumed:
        rows = [row | {"times the training": f"{row['tokens/s'] / arguments.consumed:.0f}"} for row in rows]
    print(tables.markdown_table(rows, list(rows[0])))
    return 0
