"""Tokenizers: loaded from a folder or the hub, or trained on a data set's own text."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jax_simcas.errors import UserError

# BART's own, at BART's ids.
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


class Encoded(NamedTuple):
    """A text's tokens without specials, and the characters [start, end) of each."""

    ids: Int32[np.ndarray, " n"]
    offsets: Int[np.ndarray, "n 2"]


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """Tokens of a text of any length, linear in it."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return Encoded(np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2))


def load_tokenizer(source: str | os.PathLike[str]) -> Any:
    """A fast tokenizer from a folder or a hub id; never runs code that came with it.

    Raises:
      UserError: none there, or not a fast one (offsets need one).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{source}: no tokenizer could be loaded ({reason})") from None
    if not tokenizer.is_fast:
        raise UserError(f"{source}: {type(tokenizer).__name__} is not a fast tokenizer; save it with tokenizer.json")
    missing = [n for n in ("pad_token_id", "bos_token_id", "eos_token_id") if getattr(tokenizer, n) is None]
    if missing:
        raise UserError(f"{source}: the tokenizer has no {', '.join(missing)}; expected BART's special tokens")
    return tokenizer


def byte_level_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Trains a byte-level BPE of `vocab_size` tokens with BART's specials and saves it into `folder`.

    Raises:
      UserError: a vocabulary smaller than the bytes and the specials.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL)
    if vocab_size < least:
        raise UserError(f"config.data.vocab_size={vocab_size}: expected at least {least} (all bytes and the specials)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save(tokenizer, folder)


def word_level(words: Iterable[str], folder: Path) -> None:
    """Saves a tokenizer whose tokens are whitespace-separated `words`, with BART's specials."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _save(tokenizer, folder)


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, clean_up_tokenization_spaces=False)
    save_tokenizer(fast, folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves into `folder`, all or nothing."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        tokenizer.save_pretrained(str(partial))
        os.replace(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # otherwise another process was faster
            raise


def cached(folder: Path, make: Callable[[Path], None]) -> Any:
    """The tokenizer in `folder`, made there first if need be."""
    if not folder.is_dir():
        make(folder)
    return load_tokenizer(folder)


def trained_on(source: Any, vocab_size: int, cache: Path) -> Any:
    """A byte-level BPE of a source's documents and summaries; kept in `cache` by their content and size."""
    digest = hashlib.sha256(f"byte-level-bpe {vocab_size}".encode())
    for text in _texts(source):
        digest.update(hashlib.sha256(text.encode()).digest())
    folder = cache / "tokenizers" / digest.hexdigest()[:20]
    return cached(folder, lambda path: byte_level_bpe(_texts(source), vocab_size, path))


def _texts(source: Any) -> Iterator[str]:
    for index in range(len(source)):
        row = source[index]
        yield from filter(None, (row.document, row.summary, row.query))
