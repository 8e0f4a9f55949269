"""What the fast tokenizers have in common that are read from sentencepiece models, and saved as the same files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from jax_simcas.common.errors import UserError
from jax_simcas.data import sentencepiece_model
from jax_simcas.data.sentencepiece_model import SPACE, Cutter, Joiner


class SpmTokenizer(PreTrainedTokenizerFast):
    """Keeps the files that it was read from, and takes added tokens as sentencepiece's slow tokenizers do."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    model_name = ""  # as errors call the model

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The files are read by `__init__`."""
        return kwargs

    def _read(self, **paths: str | None) -> dict[str, bytes]:
        """The contents of the files that `vocab_files_names` names.

        Raises:
          UserError: one is missing.
        """
        for argument, path in paths.items():
            if path is None:
                name = self.vocab_files_names[argument]
                raise UserError(f"no {name}, from which {self.model_name}'s tokenizer is read")
        read = {argument: Path(path).read_bytes() for argument, path in paths.items() if path}
        self._contents = read  # the files may be gone when this is saved
        return read

    def _frame(self, before: Sequence[str], after: Sequence[str]) -> None:
        """Puts these tokens around texts."""
        ids = [(token, self.convert_tokens_to_ids(token)) for token in {*before, *after}]
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=ids
        )

    def _add_tokens(self, new_tokens: Iterable[str | AddedToken], special_tokens: bool = False) -> int:
        return super()._add_tokens([raw(token) for token in new_tokens], special_tokens)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Writes the files as they were read and no `tokenizer.json`, which has no place for what they hold."""
        contents = {self.vocab_files_names[argument]: content for argument, content in self._contents.items()}
        further = {token: i for token, i in self.get_added_vocab().items() if i >= self.vocab_size}
        if further:
            contents["added_tokens.json"] = json.dumps(further, ensure_ascii=False).encode()
        before = f"{filename_prefix}-" if filename_prefix else ""
        paths = {Path(save_directory, before + name): content for name, content in contents.items()}
        for path, content in paths.items():
            path.write_bytes(content)
        return (*file_names, *map(str, paths))


class LanguageTokenizer(SpmTokenizer):
    """Frames documents and targets with the codes of their languages, which are tokens such as `__de__`.

    lang_code_to_id: of all names of languages.
    """

    lang_code_to_id: Mapping[str, int]

    def _around(self, code: str | None) -> tuple[list[str], list[str]]:
        """What stands before and after a text with this code."""
        raise NotImplementedError

    def _spelled(self, language: str) -> str:
        """What `src_lang` and `tgt_lang` call a language that was named like this."""
        return language

    @property
    def src_lang(self) -> str | None:
        """The language of documents; None: no code around them."""
        return self._src_lang

    @src_lang.setter
    def src_lang(self, language: str | None) -> None:
        self._src_lang = self._known(language)
        self.set_src_lang_special_tokens(language)

    @property
    def tgt_lang(self) -> str | None:
        """The language of targets; None: no code around them."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, language: str | None) -> None:
        self._tgt_lang = self._known(language)

    def _known(self, language: str | None) -> str | None:
        if language is None:
            return None
        if language not in self.lang_code_to_id:
            raise UserError(f"the tokenizer has no language {language!r}; there are {', '.join(self.lang_code_to_id)}")
        return self._spelled(language)

    def set_src_lang_special_tokens(self, language: str | None) -> None:
        """Frames texts as ones in this language."""
        known = self._known(language)
        self._frame(*self._around(None if known is None else code_of(known)))

    def _switch_to_input_mode(self) -> None:
        self.set_src_lang_special_tokens(self.src_lang)

    def _switch_to_target_mode(self) -> None:
        self.set_src_lang_special_tokens(self.tgt_lang)


class VocabularyTokenizer(SpmTokenizer):
    """Has a vocabulary other than that of the sentencepiece model that cuts its texts.

    `backend_tokenizer` has the ids of pieces, and cuts nothing; `cutter` and `target_cutter` do.
    Deviation: of a call with `return_offsets_mapping`, the offsets are within pieces; `data.tokenizer.tokenize` has
    those within the text.
    """

    cutter: Cutter
    target_cutter: Cutter
    after_special = ""  # what decoding puts behind a special token
    _in_use: Cutter

    def _vocabulary(self, content: bytes, named: Mapping[str, Any]) -> list[str]:
        """The tokens of `vocab.json` by id, all named special tokens among them.

        Raises:
          UserError: another content.
        """
        name = "vocab.json"
        try:
            ids = {str(token): i for token, i in json.loads(content).items()}
            if not all(type(i) is int for i in ids.values()):
                raise TypeError
        except (ValueError, RecursionError, AttributeError, TypeError):
            raise UserError(f"{name} is not a JSON object of tokens and ids") from None
        if sorted(ids.values()) != [*range(len(ids))]:
            raise UserError(f"{name} has ids other than 0 to {len(ids) - 1}, each once")
        missing = [str(token) for token in named.values() if str(token) not in ids]
        if missing:
            raise UserError(f"{name} has no {missing[0]!r}")
        return sorted(ids, key=ids.__getitem__)

    def _set_backend(self, tokens: Sequence[str], unknown: str, source: bytes, target: bytes | None = None) -> None:
        """Sets all that cuts texts, has ids, and makes text of pieces again."""
        model = sentencepiece_model.read_model(source)
        self._joined = Joiner.of(model)
        self.cutter = self.target_cutter = self._in_use = self._cutter_of(model)
        if target is not None:
            self.target_cutter = self._cutter_of(sentencepiece_model.read_model(target))
        backend = tokenizers.Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=unknown))
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", left=1)]
        )
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
        self._tokenizer = backend

    def _cutter_of(self, model: Any) -> Cutter:
        return Cutter.of(model)

    def _add_tokens(self, new_tokens: Iterable[str | AddedToken], special_tokens: bool = False) -> int:
        added = [raw(token) for token in new_tokens]
        for cutter in (self.cutter, self.target_cutter):
            cutter.backend.add_tokens(added)
        return super()._add_tokens(added, special_tokens)

    def _encode_plus(  # the other arguments are passed on
        self, text: Any, text_pair: Any = None, is_split_into_words: bool = False, **kwargs: Any
    ) -> Any:
        pair = None if text_pair is None else self._pieces(text_pair, is_split_into_words)
        return super()._encode_plus(self._pieces(text, is_split_into_words), pair, **kwargs, is_split_into_words=True)

    def _pieces(self, given: Any, words: bool) -> list[Any]:
        if isinstance(given, str):
            return self._in_use(given).pieces
        if words and all(isinstance(word, str) for word in given):
            return [piece for word in given for piece in self._in_use(word).pieces]
        return [self._pieces(one, words) for one in given]

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped = {*self.all_special_ids} if skip_special_tokens else set()
        known = self.backend_tokenizer.id_to_token
        found = (known(int(i)) for i in ids if int(i) not in skipped)
        text = self._text([str(self.unk_token) if token is None else token for token in found])
        tidy = clean_up_tokenization_spaces
        tidies = self.clean_up_tokenization_spaces if tidy is None else tidy
        return self.clean_up_tokenization(text) if tidies else text

    def _text(self, tokens: Sequence[str]) -> str:
        """The texts of the pieces between special tokens, and these."""
        specials = {*self.all_special_tokens}
        parts: list[str] = []
        pieces: list[str] = []
        for token in tokens:
            if token in specials:
                parts += [self._joined(pieces), token, self.after_special]
                pieces = []
            else:
                pieces.append(token)
        return "".join([*parts, self._joined(pieces)]).strip()


def code_of(language: str) -> str:
    """The token of a language, named without or with its underscores."""
    return f"__{language.strip('_')}__"


def raw(token: str | AddedToken) -> AddedToken:
    """The token as one that is found in a text as it is: normalised, it would begin with a space."""
    given = AddedToken(token) if isinstance(token, str) else token
    return AddedToken(
        given.content,
        single_word=given.single_word,
        lstrip=given.lstrip,
        rstrip=given.rstrip,
        normalized=False,
        special=given.special,
    )
