"""Tokenizers: loaded from a folder or the hub, or trained on a data set's own text."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jax_simcas.common.errors import UserError

# BART's own, at BART's ids.
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


class Encoded(NamedTuple):
    """A text's tokens without specials, and the characters [start, end) of each."""

    ids: Int32[np.ndarray, " n"]
    offsets: Int[np.ndarray, "n 2"]


@dataclass(frozen=True)
class TextEncoder:
    """What the pipeline needs of a transformers tokenizer, under the same names.

    A worker process that gets this starts without importing transformers.
    """

    backend_tokenizer: Tokenizer
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    @classmethod
    def of(cls, tokenizer: Any) -> TextEncoder:
        """From a transformers tokenizer (or another TextEncoder)."""
        names = ("backend_tokenizer", "bos_token_id", "eos_token_id", "pad_token_id")
        return cls(*(getattr(tokenizer, name) for name in names))


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """Tokens of a text of any length, linear in it."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return Encoded(np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2))


def count_unknown(tokenizer: Any, ids: Int[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]) -> tuple[int, int]:
    """(unknown, all) tokens of texts, without the special tokens that stand around them."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    content = ids[mask & ~np.isin(ids, special)]
    unknown = getattr(tokenizer, "unk_token_id", None)
    return (0 if unknown is None else int((content == unknown).sum())), content.size


def load_tokenizer(source: str | os.PathLike[str]) -> Any:
    """A fast tokenizer from a folder or a hub id; never runs code that came with it.

    Raises:
      UserError: none there, one without a vocabulary or BART's specials, or not a fast one (offsets need one).
    """
    name = str(source)
    if not os.path.isdir(name) and (os.path.exists(name) or os.path.isabs(name) or name.count("/") > 1):
        raise UserError(f"{name}: no such folder; expected a folder with tokenizer.json, or a hub id")
    from transformers import AutoTokenizer  # seconds to import: only those that load wait for it

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except Exception as error:  # a damaged file makes the libraries raise anything, even a bare Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{name}: no tokenizer could be loaded ({reason}){_there(name)}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{name}: {type(tokenizer).__name__} is not a fast tokenizer; save it with tokenizer.json")
    # Without its files the library makes an empty tokenizer and says nothing.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"{name}: the tokenizer has no vocabulary, only special tokens{_there(name)}")
    missing = [n for n in ("pad_token_id", "bos_token_id", "eos_token_id") if getattr(tokenizer, n) is None]
    if missing:
        raise UserError(f"{name}: the tokenizer has no {', '.join(missing)}; expected BART's special tokens")
    # tokenizer.json may ask for these; documents must not be cut unseen.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _there(name: str) -> str:
    if not os.path.isdir(name):
        return ""
    found = ", ".join(sorted(os.listdir(name))[:10]) or "nothing"
    return f"; expected tokenizer.json (or vocab.json and merges.txt), there is {found}"


def byte_level_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Trains a byte-level BPE of at most `vocab_size` tokens with BART's specials and saves it into `folder`.

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
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", SPECIAL.index("</s>")), ("<s>", SPECIAL.index("<s>")), trim_offsets=True, add_prefix_space=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save(tokenizer, folder)


def word_level(words: Iterable[str], folder: Path) -> None:
    """Saves a tokenizer whose tokens are whitespace-separated `words`, with BART's specials."""
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _save(tokenizer, folder)


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, clean_up_tokenization_spaces=False)
    save_tokenizer(fast, folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves into `folder`, all or nothing; one that is there stays.

    Raises:
      UserError: the folder cannot be written.
    """
    if folder.is_dir():
        return
    partial = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        tokenizer.save_pretrained(str(partial))
        os.replace(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # otherwise another process was faster
            reason = error.strerror or str(error)
            raise UserError(f"{folder}: the tokenizer cannot be written there ({reason})") from None


def cached(folder: Path, make: Callable[[Path], None]) -> Any:
    """The tokenizer in `folder`, made there first if need be."""
    if not folder.is_dir():
        make(folder)
    return load_tokenizer(folder)


def trained_on(source: Any, vocab_size: int, cache: Path) -> Any:
    """A byte-level BPE of a source's documents, summaries and queries; kept in `cache` by content and size."""
    content = getattr(source, "fingerprint", None) or _digest(source)
    key = hashlib.sha256(f"byte-level-bpe 2 {vocab_size} {content}".encode()).hexdigest()[:20]
    return cached(cache / "tokenizers" / key, lambda path: byte_level_bpe(_texts(source), vocab_size, path))


def _digest(source: Any) -> str:
    digest = hashlib.sha256()
    for text in _texts(source):
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _texts(source: Any) -> Iterator[str]:
    """Every text once: query-based sets repeat a document for each of its queries."""
    seen: set[bytes] = set()
    for index in range(len(source)):
        row = source[index]
        for text in (row.document, *(row.answers or (row.summary,)), row.query):
            if text and (digest := hashlib.sha256(text.encode()).digest()) not in seen:
                seen.add(digest)
                yield text
