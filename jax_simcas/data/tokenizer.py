"""Tokenizers: loaded from a folder or the hub, or trained on a data set's own text."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jax_simcas.common.errors import UserError, first_line
from jax_simcas.data.published_tokenizer import from_pretrained, listing, slow
from jax_simcas.data.rows import RowSource
from jax_simcas.data.sentencepiece_model import Cutter

# BART's, at BART's ids.
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SMALLEST_VOCABULARY = 256 + len(SPECIALS)  # all bytes and the specials


LONG = 1 << 19  # characters of a text that is always tokenised whole
SETTLED = 1_000  # characters
SAMPLES, SAMPLE = 16, 1 << 14  # number; characters of each


class Tokenized(NamedTuple):
    """A text's tokens without specials, and the characters [start, end) of each."""

    ids: Int32[np.ndarray, " n"]
    offsets: Int[np.ndarray, "n 2"]


@runtime_checkable
class Tokenizer(Protocol):
    """What features need of a tokenizer, under transformers' names.

    It may have a `cutter` of documents and a `target_cutter`: then `backend_tokenizer` has the ids of their pieces.
    """

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

    def convert_tokens_to_ids(self, tokens: str) -> Any: ...

    def save_pretrained(self, save_directory: str) -> Any: ...


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts around a text and around a target, and those around each chunk.

    chunk_prefix, chunk_suffix: around each of several chunks: `prefix` and `suffix` or, where one is empty, BOS or EOS,
    as both ends of a chunk need a token without content. Without a BOS, EOS begins it: the only special token that
    such an encoder has always seen.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target_prefix: tuple[int, ...]
    target_suffix: tuple[int, ...]
    pad: int
    chunk_prefix: tuple[int, ...]
    chunk_suffix: tuple[int, ...]

    @property
    def tokens(self) -> set[int]:
        """All that may stand around the content of a chunk."""
        return {*self.prefix, *self.suffix, *self.chunk_prefix, *self.chunk_suffix, self.pad}


PROBES = ("a", "1", "\u4e00")  # texts of which one has tokens in any vocabulary


def frame_of(tokenizer: Tokenizer) -> Frame:
    """How the tokenizer frames a text, as `load_tokenizer` has found it, or `probe_frame` finds it."""
    frame = getattr(tokenizer, "frame", None)
    return frame if isinstance(frame, Frame) else probe_frame(tokenizer)


def probe_frame(tokenizer: Tokenizer) -> Frame:
    """How the tokenizer itself frames a text: `<s> ... </s>`, `[CLS] ... [SEP]`, `en_XX ... </s>`, `... </s> en_XX`.

    Where it ends no text, as Gemma's, a target is content and EOS, since a summary must end. The words of `word_level`,
    which adds nothing, are framed by BOS and EOS. Not while another thread tokenises: mBART's tokenizers are changed
    for a moment.
    """
    probe = next((text for text in PROBES if len(tokenize(tokenizer, text).ids)), PROBES[0])
    encoding = tokenizer.backend_tokenizer.encode(probe, add_special_tokens=True)
    source = target = _around(encoding.ids, encoding.special_tokens_mask)
    if callable(tokenizer):  # mBART's have another mode for targets
        own = getattr(tokenizer, "tgt_lang", None)
        encoded = tokenizer(text_target=probe, return_special_tokens_mask=True)
        target = _around(encoded["input_ids"], encoded["special_tokens_mask"])
        if own != getattr(tokenizer, "tgt_lang", None):  # it has taken the source's, which may change yet
            setattr(tokenizer, "tgt_lang", own)  # noqa: B010 - not of every tokenizer
    bos, eos, pad = (special_id(tokenizer, name) for name in ("bos", "eos", "pad"))
    if not any(source) and _has_our_words(tokenizer):
        source = target = ((bos,), (eos,))
    if not target[1]:
        target = (), (eos,)
    return Frame(*source, *target, pad, source[0] or (bos,), source[1] or (eos,))


def _has_our_words(tokenizer: Tokenizer) -> bool:
    """Whether `word_level` made it: models were trained with a frame that such tokenizers do not tell."""
    backend = tokenizer.backend_tokenizer
    ours = [backend.token_to_id(token) for token in SPECIALS] == [*range(len(SPECIALS))]
    return isinstance(backend.model, models.WordLevel) and ours


def _around(ids: Sequence[int], special: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after the content."""
    content = [place for place, is_special in enumerate(special) if not is_special]
    if not content:
        return (), ()
    return tuple(ids[: content[0]]), tuple(ids[content[-1] + 1 :])


def special_id(tokenizer: Any, name: str) -> int:
    """The id of the tokenizer's `bos`, `eos` or `pad`, or of the token that stands for it where it has none."""
    for kind in {"bos": ("bos", "cls"), "eos": ("eos", "sep"), "pad": ("pad", "eos", "sep")}[name]:
        token = getattr(tokenizer, f"{kind}_token_id", None)
        if token is not None:
            return int(token)
    if name == "bos":
        return special_id(tokenizer, "eos")
    raise UserError(f"the tokenizer has no {name}_token_id")


@dataclass(frozen=True)
class LightTokenizer:
    """A Tokenizer that a worker process can unpickle without importing transformers."""

    backend_tokenizer: tokenizers.Tokenizer
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    frame: Frame | None = None
    cutter: Cutter | None = None
    target_cutter: Cutter | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> LightTokenizer:
        """The same tokens."""
        if isinstance(tokenizer, LightTokenizer):
            return tokenizer
        bos, eos, pad = (special_id(tokenizer, name) for name in ("bos", "eos", "pad"))
        return cls(tokenizer.backend_tokenizer, bos, eos, pad, frame_of(tokenizer), *cutters(tokenizer))


def cutters(tokenizer: Tokenizer) -> tuple[Cutter | None, Cutter | None]:
    """What cuts documents and targets; None: the tokenizer's backend."""
    return getattr(tokenizer, "cutter", None), getattr(tokenizer, "target_cutter", None)


def tokenize(tokenizer: Tokenizer, text: str, target: bool = False) -> Tokenized:
    """Tokens of a text of any length, in time linear in it.

    Args:
      target: it is a target, which a tokenizer like Marian's cuts otherwise.

    Raises:
      UserError: a text that the tokenizer refuses, as one without a token for unknown words may.
    """
    backend, cutter = tokenizer.backend_tokenizer, cutters(tokenizer)[target]
    if cutter is None:
        try:
            encoding = backend.encode(text, add_special_tokens=False)
        except Exception as error:  # what a damaged vocabulary makes the library raise
            raise UserError(f"the tokenizer cannot read the text ({first_line(error)})") from None
        ids, offsets = encoding.ids, encoding.offsets
    else:
        pieces, offsets = cutter(text)
        unknown: Any = backend.token_to_id(backend.model.unk_token)
        found = (backend.token_to_id(piece) for piece in pieces)
        ids = [unknown if token is None else token for token in found]
    return Tokenized(np.asarray(ids, np.int32), np.asarray(offsets, np.int64).reshape(-1, 2))


def tokenize_start(tokenizer: Tokenizer, text: str, limit: int, target: bool = False) -> tuple[Tokenized, int]:
    """The first `limit` tokens of a text, and the number of those behind them.

    Of a text of more than `LONG` characters, only as much is tokenised as these tokens need, and the number of the
    others is estimated from samples, to two digits. The first tokens are those of the whole text, since what stands
    `SETTLED` characters behind a token does not change it (but for words as long as that).
    """
    length = max(LONG, 16 * limit)
    while length < len(text):
        start = tokenize(tokenizer, text[:length], target)
        unsettled = np.flatnonzero(start.offsets[:, 1] > length - SETTLED)
        count = int(unsettled[0]) if len(unsettled) else len(start.ids)
        if count > limit:
            rest = text[start.offsets[count - 1, 1] :]
            cut = count - limit + _estimated_count(tokenizer, rest, target)
            return _first(start, limit), round(float(f"{cut:.1e}"))
        length *= 2
    whole = tokenize(tokenizer, text, target)
    return _first(whole, limit), max(len(whole.ids) - limit, 0)


def _first(tokenized: Tokenized, count: int) -> Tokenized:
    return Tokenized(tokenized.ids[:count], tokenized.offsets[:count])


def _estimated_count(tokenizer: Tokenizer, text: str, target: bool) -> int:
    """The number of a text's tokens, by that of samples spread evenly over it."""
    if len(text) <= SAMPLES * SAMPLE:
        return len(tokenize(tokenizer, text, target).ids)
    starts = np.linspace(0, len(text) - SAMPLE, SAMPLES, dtype=int).tolist()
    found = sum(len(tokenize(tokenizer, text[start : start + SAMPLE], target).ids) for start in starts)
    return round(found * len(text) / (SAMPLES * SAMPLE))


def count_unknown(
    tokenizer: Tokenizer, ids: Int[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> tuple[int, int]:
    """(unknown, all) tokens of texts, without the special tokens around them."""
    content = ids[mask & ~np.isin(ids, [*frame_of(tokenizer).tokens])]
    unknown = getattr(tokenizer, "unk_token_id", None)
    return (0 if unknown is None else int((content == unknown).sum())), content.size


def load_tokenizer(source: str | os.PathLike[str], src_lang: str = "", tgt_lang: str = "") -> TextTokenizer:
    """A fast tokenizer from a folder or a hub id; runs no code that came with it.

    Args:
      src_lang, tgt_lang: see `set_languages`.

    Raises:
      UserError: none there, one without a vocabulary or special tokens, or not a fast one (offsets need one).
    """
    name = str(source)
    if not os.path.isdir(name) and (os.path.exists(name) or os.path.isabs(name) or name.count("/") > 1):
        raise UserError(f"{name}: no such folder; expected a folder with tokenizer.json, or a hub id")
    tokenizer = from_pretrained(name)
    if not tokenizer.is_fast:
        raise UserError(f"{name}: {slow(type(tokenizer).__name__)}")
    try:
        _prepare(tokenizer, name)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # settings of a damaged file that transformers reads only now
        raise UserError(f"{name}: the tokenizer cannot be used ({first_line(error)})") from None
    set_languages(tokenizer, src_lang, tgt_lang)
    return tokenizer


def _prepare(tokenizer: Any, name: str) -> None:
    """Checks that the tokenizer can be used, and finds its frame."""
    # Without its files the library silently makes an empty tokenizer.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"the tokenizer has no vocabulary, only special tokens{listing(name)}")
    # tokenizer.json may ask for these; documents must not be cut silently.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    try:
        special_id(tokenizer, "eos")
    except UserError:
        raise UserError("the tokenizer has no eos_token_id: a summary needs a token that ends it") from None
    tokenizer.frame = probe_frame(tokenizer)


LANGUAGES = ("config.data.src_lang", "config.data.tgt_lang")


def set_languages(tokenizer: Any, src_lang: str = "", tgt_lang: str = "", named: tuple[str, str] = LANGUAGES) -> None:
    """Lets a tokenizer like mBART's or NLLB's frame documents and targets with these languages' codes; "": its own.

    Args:
      named: as errors call the two.

    Raises:
      UserError: a tokenizer without languages, a code that it does not have.
    """
    for name, code, shown in (("src_lang", src_lang, named[0]), ("tgt_lang", tgt_lang, named[1])):
        if not code:
            continue
        where = f"{shown}={code!r}"
        if not hasattr(tokenizer, "set_src_lang_special_tokens"):
            raise UserError(f"{where}: the tokenizer ({type(tokenizer).__name__}) knows no languages; leave it out")
        codes = sorted(language_codes(tokenizer))
        if code not in codes:
            raise UserError(f"{where}: the tokenizer has no such language code; there are {', '.join(codes)}")
        setattr(tokenizer, name, code)
        tokenizer.init_kwargs[name] = code  # what save_pretrained writes
        tokenizer.frame = probe_frame(tokenizer)


def language_id(tokenizer: Any, code: str) -> int:
    """The id of the token of this language; M2M100's `de` is the token `__de__`."""
    own = getattr(tokenizer, "lang_code_to_id", {})
    return int(own[code] if code in own else tokenizer.convert_tokens_to_ids(code))


def language_codes(tokenizer: Any) -> list[str]:
    """The codes of the tokenizer's languages; NLLB's are its special tokens, but for those that have names."""
    if hasattr(tokenizer, "lang_code_to_id"):
        return [*tokenizer.lang_code_to_id]
    named = {str(token) for token in tokenizer.special_tokens_map.values() if not isinstance(token, list)}
    return [str(token) for token in tokenizer.all_special_tokens if str(token) not in named]


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


def word_level(words: Iterable[str], folder: Path, punctuated: bool = False) -> None:
    """Saves a tokenizer whose tokens are whitespace-separated `words`, with BART's specials.

    Args:
      punctuated: punctuation marks are tokens of their own, and stand right behind words when decoded.
    """
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIALS, *words]))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if punctuated else pre_tokenizers.WhitespaceSplit()
    if punctuated:
        tokenizer.decoder = decoders.WordPiece(cleanup=True)
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
