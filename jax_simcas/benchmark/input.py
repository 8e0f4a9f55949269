"""How fast the input side alone makes training batches, without and with the cache of tokens, and in how much memory.

Writes a JSONL file of random English-like documents and trains a tokenizer on it, unless they are in the folder from
before; reads a part of an epoch by tokenising; makes the cache, and reads a whole epoch from it. Real text, with more
different words, takes longer to tokenise. "sorted": with data.bucket_batches, so that less is padding. "MiB added": by
how much the memory of all processes grew at most over the rows, after the first 2 % of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jax_simcas.benchmark.worker import resident
from jax_simcas.common import cli, files, progress, tables
from jax_simcas.common.errors import UserError
from jax_simcas.data import cache as cache_lib
from jax_simcas.data import tokenizer as tokenizer_lib
from jax_simcas.data.batches import PipelineConfig, make_iterator
from jax_simcas.data.rows import Fields, JsonlSource

EXAMPLES = """\
  python -m jax_simcas.benchmark.input --folder DIR --consumed 870       # 100,000 documents of 4,000 to 16,000 tokens
  python -m jax_simcas.benchmark.input --folder DIR --rows 2000 --workers 0,2,4
"""
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "ze", "qua", "stra", "ment", "ing", "al")
WORDS, SENTENCES, WORDS_OF_SENTENCE = 30_000, 20_000, 20
TOKENS_A_WORD = 1.07  # of the tokenizer below on the text below
VOCABULARY = 8_192
SAMPLE = 500  # documents that the tokenizer is trained on
SETTLED = 0.02  # of the rows; from there on memory should not grow
MIB = 2**20


def write_documents(path: Path, rows: int, tokens: tuple[int, int]) -> None:
    """Rows of `tokens` tokens, about, with summaries of about 200."""
    rng = np.random.default_rng(0)
    words = np.asarray(["".join(rng.choice(SYLLABLES, (rng.integers(1, 5),))) for _ in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    drawn = rng.choice(words, (SENTENCES, WORDS_OF_SENTENCE), p=frequency / frequency.sum())
    sentences = [" ".join(sentence).capitalize() + "." for sentence in drawn]
    text = lambda count: " ".join(sentences[int(i)] for i in rng.integers(SENTENCES, size=(count,)))
    low, high = (max(int(n / TOKENS_A_WORD / WORDS_OF_SENTENCE), 1) for n in tokens)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file, progress.Progress(rows, unit="rows written") as bar:
        for i in range(rows):
            row = {"id": str(i), "document": text(rng.integers(low, high + 1)), "summary": text(7)}
            file.write(json.dumps(row) + "\n")
            bar.update()
    partial.replace(path)


def memory() -> float:
    """MiB of this process and its workers."""
    workers = [str(child.pid) for child in multiprocessing.active_children()]
    return sum(resident("VmRSS", process) for process in ("self", *workers)) / MIB


def read(source: Any, tokenizer: Any, config: PipelineConfig, rows: int, cache: Any) -> dict[str, Any]:
    """Figures of so many rows of a training epoch, whole batches."""
    batches = make_iterator(source, tokenizer, config, training=True, cache=cache)
    next(batches)  # workers have started
    tokens, places, most, settled, count = 0, 0, 0.0, 0.0, max(rows // config.batch_size, 1)
    started = time.monotonic()
    with progress.Progress(count, unit="batches") as bar:
        for number, batch in enumerate(itertools.islice(batches, count), 1):
            tokens += int(batch["token_mask"].sum())
            places += batch["token_mask"].size
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
        "padding %": f"{100 - 100 * tokens / places:.0f}",
        "MiB": f"{settled:.0f}",
        "MiB added": f"{most - settled:.1f}",
    }


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    if not sys.platform.startswith("linux"):
        raise UserError("the benchmark reads memory from /proc and so needs Linux")
    try:
        low, high = map(int, arguments.tokens.split(","))
        counts = sorted({int(count) for count in arguments.workers.split(",")})
    except ValueError:
        raise UserError("expected --tokens=LEAST,MOST and --workers=COUNT[,COUNT...]") from None
    if not 0 < low <= high or counts[0] < 0:
        raise UserError(f"--tokens={arguments.tokens} --workers={arguments.workers}: too small, or the wrong order")
    folder = files.make_folder(Path(arguments.folder), "--folder")
    path = folder / f"{arguments.rows}-{low}-{high}.jsonl"
    if not path.exists():
        write_documents(path, arguments.rows, (low, high))
    started = time.monotonic()
    source = JsonlSource(path, Fields(), folder)
    print(
        f"{path}: {path.stat().st_size / 1e9:.2f} GB, {len(source)} rows, opened in {time.monotonic() - started:.1f} s"
    )
    sample = (source[i].document for i in range(min(SAMPLE, len(source))))
    train = lambda target: tokenizer_lib.byte_level_bpe(sample, VOCABULARY, target)
    tokenizer = tokenizer_lib.cached(folder / "tokenizer", train)
    config = PipelineConfig(arguments.chunk_length, arguments.max_input_len, 256, batch_size=arguments.batch_size)
    rows = []
    for count in counts:
        with_workers = dataclasses.replace(config, workers=count)
        rows.append(read(source, tokenizer, with_workers, min(arguments.sample, len(source)), None))
    tokens, making = folder / "tokens", dataclasses.replace(config, workers=counts[-1])
    cache = cache_lib.find(source, tokenizer, making, tokens)
    if cache is None:
        started = time.monotonic()
        with progress.Progress(len(source), unit="rows tokenised") as bar:
            cache = cache_lib.token_cache(source, tokenizer, making, tokens, bar.update)
        seconds = time.monotonic() - started
        speed = f"{len(source) / seconds:.0f} rows/s by {counts[-1]} workers"
        print(f"cache: {cache.size / 1e9:.2f} GB, made in {seconds:.1f} s, {speed}")
    configs = [dataclasses.replace(config, workers=count) for count in counts]
    if arguments.bucket_batches:
        configs.append(dataclasses.replace(config, bucket_batches=arguments.bucket_batches))
    rows += [read(source, tokenizer, each, arguments.read or len(source), cache) for each in configs]
    if arguments.consumed:
        rows = [row | {"times the training": f"{row['tokens/s'] / arguments.consumed:.0f}"} for row in rows]
    print(tables.markdown_table(rows, list(rows[0])))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("benchmark.input", __doc__ or "", EXAMPLES)
    parser.add_argument(
        "--folder", required=True, help="for documents and tokens, some 60 KB a row; another run goes on with it"
    )
    parser.add_argument("--rows", type=cli.positive, default=100_000, help="documents (default 100000)")
    parser.add_argument("--tokens", default="4000,16000", help="least and most of a document, about")
    parser.add_argument("--sample", type=cli.positive, default=2_000, help="rows to tokenise while reading")
    parser.add_argument("--workers", default="0,2", help="processes that prepare batches (default 0,2)")
    parser.add_argument("--batch-size", type=cli.positive, default=8)
    parser.add_argument("--chunk-length", type=cli.positive, default=512)
    parser.add_argument("--max-input-len", type=cli.positive, default=16_384)
    parser.add_argument("--read", type=cli.positive, help="rows to read from the cache (default: an epoch)")
    parser.add_argument("--bucket-batches", type=int, default=32, help="sorted together (default 32); 0: not measured")
    parser.add_argument("--consumed", type=float, help="tokens/s that a training step consumes, to compare")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
