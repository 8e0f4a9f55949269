"""A sentencepiece model as a tokenizer of the tokenizers library, without the sentencepiece package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from jax_simcas.common.errors import UserError

SPACE = "\u2581"  # stands for a space in pieces
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # types of pieces
UNSEEN = "\ufdd0"  # no character, so in no text: a run of unknown characters in the model of a `Cutter`


def read_model(content: bytes) -> Any:
    """The model as its protocol buffer, `ModelProto`.

    Raises:
      UserError: not a sentencepiece model, or one whose pieces or settings `backend` cannot follow.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise UserError("not a sentencepiece model, or a damaged one") from None
    trainer = model.trainer_spec
    unread = {
        "no pieces": not model.pieces,
        "a model_type other than unigram and bpe": trainer.model_type not in (UNIGRAM, BPE),
        "byte_fallback": trainer.byte_fallback,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "user-defined, unused or byte pieces": any(p.type not in (NORMAL, UNKNOWN, CONTROL) for p in model.pieces),
    }
    found = [name for name, is_there in unread.items() if is_there]
    if found:
        raise UserError(f"its sentencepiece model has {' and '.join(found)}, which is not supported")
    return model


def backend(model: Any, ids: Mapping[str, int], unknown: str = "<unk>") -> tokenizers.Tokenizer:
    """A tokenizer that cuts texts into the pieces that sentencepiece cuts them into, and gives them these ids.

    Args:
      ids: 0 to n - 1, of all pieces but control pieces, and of further tokens.

    Source: sentencepiece's `normalizer.cc`, `bpe_model.cc`, `unigram_model.cc`.
    Deviation: an accent behind a character with a compatibility form that is not composed with it may be lost. Marks
    that stand in another order than Unicode's (some of Arabic and Hebrew) are put into it. Of cuts that a unigram model
    finds equally good (long runs of one digit or mark), another one may be taken.
    """
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    kind: models.Model
    if model.trainer_spec.model_type == BPE:
        kind = models.BPE(dict(ids), merges(normal), unk_token=unknown, fuse_unk=True)
    else:
        pieces = [(piece, normal.get(piece, 0.0)) for piece in sorted(ids, key=ids.__getitem__)]
        kind = models.Unigram(pieces, unk_id=ids[unknown])
    tokenizer = tokenizers.Tokenizer(kind)
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    if SPACE in normal and not any(SPACE in piece[1:] for piece in normal):
        # No piece crosses the start of a word: words alone give the same pieces, and are remembered.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", left=1)])
    return tokenizer


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, that with the best score first."""
    best_first = sorted(scores, key=lambda piece: -scores[piece])
    pairs = ((piece[:at], piece[at:]) for piece in best_first for at in range(len(piece) - 1, 0, -1))
    return [(left, right) for left, right in pairs if left in scores and right in scores]


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        rules = normalizers.Precompiled(spec.precompiled_charsmap)
        # It shifts the offsets of a text that begins with characters that the rules leave out (tokenizers 0.23).
        left_out = [chr(code) for code in (*range(1, 32), *range(127, 160)) if not rules.normalize_str(chr(code))]
        if left_out:
            steps.append(normalizers.Replace(Regex(rf"\A[{re.escape(''.join(left_out))}]+"), ""))
        # A rule of several characters is applied in part, which loses accents: these are composed before and behind.
        compose = [normalizers.NFC()] if rules.normalize_str("e\u0301") == "\u00e9" else []
        steps += [*compose, rules, *compose]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    space = SPACE if spec.escape_whitespaces else " "
    if spec.remove_extra_whitespaces:  # at the end also what the text itself has of them
        steps.append(normalizers.Replace(Regex(rf"{space}+\z"), ""))
    return normalizers.Sequence(steps)


class Cut(NamedTuple):
    """The pieces of a text, and its characters [start, end) of each."""

    pieces: list[str]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into the pieces that sentencepiece cuts them into, for a vocabulary other than the model's own.

    takes_codes: what stands between `>>` and `<<` at the start of a text is one piece with them, as for Marian.

    As there, a run of characters that no piece has is a piece of its own. Source: `sentencepiece_processor.cc`.
    """

    backend: tokenizers.Tokenizer
    takes_codes: bool = False

    @classmethod
    def of(cls, model: Any, takes_codes: bool = False) -> Cutter:
        """Cuts as the model does; its control pieces are in no text."""
        pieces = [UNSEEN, *(piece.piece for piece in model.pieces if piece.type == NORMAL)]
        return cls(backend(model, {piece: i for i, piece in enumerate(pieces)}, UNSEEN), takes_codes)

    def __call__(self, text: str) -> Cut:
        """In time linear in the text."""
        if self.takes_codes and text.startswith(">>") and (close := text.find("<<")) > 0:
            end = close + len("<<")
            pieces, offsets = replace(self, takes_codes=False)(text[end:])
            return Cut([text[:end], *pieces], [(0, end), *((end + a, end + b) for a, b in offsets)])
        encoding = self.backend.encode(text, add_special_tokens=False)
        pieces, offsets = encoding.tokens, encoding.offsets
        size = self.backend.get_vocab_size(with_added_tokens=False)
        added = [place for place, token in enumerate(encoding.ids) if token >= size]
        for place in added:  # without the spaces that some take in
            pieces[place] = self.backend.id_to_token(encoding.ids[place]) or ""
        if UNSEEN not in pieces:  # always so where the model is unigram, whose tokens are what was found
            return Cut(pieces, offsets)
        named, start = [], 0
        for place in added:
            named += [*self._pieces(text[start : offsets[place][0]]), pieces[place]]
            start = offsets[place][1]
        return Cut([*named, *self._pieces(text[start:])], offsets)

    def _pieces(self, text: str) -> list[str]:
        """The pieces of a text without added tokens, by where they are in the text that has been normalised."""
        normal = self.backend.normalizer.normalize_str(text)
        words = self.backend.pre_tokenizer.pre_tokenize_str(normal) if self.backend.pre_tokenizer else [(normal, None)]
        found = ((word.encode(), *token.offsets) for word, _ in words for token in self.backend.model.tokenize(word))
        return [word[start:end].decode() for word, start, end in found]


@dataclass(frozen=True)
class Joiner:
    """Makes text of pieces as sentencepiece does.

    kinds: the types of the model's pieces; others are text as they are.
    surface: the text of the model's unknown piece.
    strips, strips_all: the first space is not text, nor are those right behind it.

    Source: `SentencePieceProcessor::Decode`.
    """

    kinds: Mapping[str, int]
    surface: str
    strips: bool
    strips_all: bool

    @classmethod
    def of(cls, model: Any) -> Joiner:
        """Joins as the model does."""
        rules = model.normalizer_spec
        strips_all = rules.remove_extra_whitespaces
        kinds = {piece.piece: piece.type for piece in model.pieces}
        return cls(kinds, model.trainer_spec.unk_surface, strips_all or rules.add_dummy_prefix, strips_all)

    def __call__(self, pieces: Iterable[str]) -> str:
        """The text of consecutive pieces."""
        text, strips = "", self.strips
        shown: list[str] = []
        for piece in pieces:
            kind = self.kinds.get(piece)
            if kind == NORMAL:
                spaced = strips and piece.startswith(SPACE)
                text = (piece[1:] if spaced else piece).replace(SPACE, " ")
                strips = strips and not text and (self.strips_all or not spaced)
            else:
                text = {None: piece, UNKNOWN: self.surface, CONTROL: ""}[kind]
                strips = strips and not text
            shown.append(text)
        return "".join(shown)
