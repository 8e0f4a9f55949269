"""Tokenizers: loaded from a folder or the hub, or trained on a data set's own text."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jax_simcas.common.errors import UserError, first_line
from jax_simcas.data.rows import RowSource

# BART's, at BART's ids.
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SMALLEST_VOCABULARY = 256 + len(SPECIALS)  # all bytes and the specials


class Tokenized(NamedTuple):
    """A text's tokens without specials, and the characters [start, end) of each."""

    ids: Int32[np.ndarray, " n"]
    offsets: Int[np.ndarray, "n 2"]


@runtime_checkable
class Tokenizer(Protocol):
    """What features need of a tokenizer, under transformers' names."""

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer: ...

    # transformers answers for these in __getattr__, where isinstance does not look from Python 3.12 on.
    if TYPE_CHECKING:

        @property
        def bos_token_id(self) -> int: ...

        @property
        def eos_token_id(self) -> int: ...

        @property
        def pad_token_id(self) -> int: ...


@runtime_checkable
class TextTokenizer(Tokenizer, Protocol):
    """A tokenizer that also gives text back and can be saved; transformers' fast ones are."""

    def __len__(self) -> int: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any: ...

    def save_pretrained(self, save_directory: str) -> Any: ...


@dataclass(frozen=True)
class LightTokenizer:
    """A Tokenizer that a worker process can unpickle without importing transformers."""

    backend_tokenizer: tokenizers.Tokenizer
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> LightTokenizer:
        """The same tokens."""
        ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        return cls(tokenizer.backend_tokenizer, *ids)


def tokenize(tokenizer: Tokenizer, text: str) -> Tokenized:
    """Tokens of a text of any length, in time linear in it."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return Tokenized(np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2))


def count_unknown(
    tokenizer: Tokenizer, ids: Int[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> tuple[int, int]:
    """(unknown, all) tokens of texts, without the special tokens around them."""
    content = ids[mask & ~np.isin(ids, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])]
    unknown = getattr(tokenizer, "unk_token_id", None)
    return (0 if unknown is None else int((content == unknown).sum())), content.size


def load_tokenizer(source: str | os.PathLike[str]) -> TextTokenizer:
    """A fast tokenizer from a folder or a hub id; runs no code that came with it.

    Raises:
      UserError: none there, one without a vocabulary or BART's specials, or not a fast one (offsets need one).
    """
    name = str(source)
    if not os.path.isdir(name) and (os.path.exists(name) or os.path.isabs(name) or name.count("/") > 1):
        raise UserError(f"{name}: no such folder; expected a folder with tokenizer.json, or a hub id")
    from transformers import AutoTokenizer  # takes seconds: imported only where needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except Exception as error:  # the libraries raise anything for a damaged file, even a bare Exception
        raise UserError(f"{name}: no tokenizer could be loaded ({first_line(error)}){_listing(name)}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{name}: {type(tokenizer).__name__} is not a fast tokenizer; save it with tokenizer.json")
    # Without its files the library silently makes an empty tokenizer.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"{name}: the tokenizer has no vocabulary, only special tokens{_listing(name)}")
    missing = [n for n in ("pad_token_id", "bos_token_id", "eos_token_id") if getattr(tokenizer, n) is None]
    if missing:
        raise UserError(f"{name}: the tokenizer has no {', '.join(missing)}; expected BART's special tokens")
    # tokenizer.json may ask for these; documents must not be cut silently.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _listing(name: str) -> str:
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
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"config.data.vocab_size={vocab_size}: expected at least {SMALLEST_VOCABULARY} (all bytes and the specials)"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", SPECIALS.index("</s>")), ("<s>", SPECIALS.index("<s>")), trim_offsets=True, add_prefix_space=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save(tokenizer, folder)


def word_level(words: Iterable[str], folder: Path) -> None:
    """Saves a tokenizer whose tokens are whitespace-separated `words`, with BART's specials."""
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIALS, *words]))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _save(tokenizer, folder)


def _save(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIALS, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, clean_up_tokenization_spaces=False)
    save_tokenizer(fast, folder)


def save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Saves into `folder`, all or nothing; an existing folder stays as it is.

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


def load_or_make(folder: Path, make: Callable[[Path], None]) -> TextTokenizer:
    """The tokenizer in `folder`, which `make` saves first if the folder is missing."""
    if not folder.is_dir():
        make(folder)
    return load_tokenizer(folder)


def train_on_rows(source: RowSource, vocab_size: int, cache: Path) -> TextTokenizer:
    """A byte-level BPE of a source's documents, summaries and queries, cached by content and vocabulary size."""
    content = source.fingerprint or _content_digest(source)
    key = hashlib.sha256(f"byte-level-bpe 2 {vocab_size} {content}".encode()).hexdigest()[:20]
    train = lambda folder: byte_level_bpe(distinct_texts(source), vocab_size, folder)
    return load_or_make(cache / "tokenizers" / key, train)


def _content_digest(source: RowSource) -> str:
    digest = hashlib.sha256()
    for text in distinct_texts(source):
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def distinct_texts(source: RowSource) -> Iterator[str]:
    """Documents, references and queries, each once: query-based sets repeat a document for each of its queries."""
    seen: set[bytes] = set()
    for index in range(len(source)):
        row = source[index]
        for text in (row.document, *(row.answers or (row.summary,)), row.query):
            if text and (digest := hashlib.sha256(text.encode()).digest()) not in seen:
                seen.add(digest)
                yield text
