"""PLBart's tokenizer as a fast one, from its checkpoints' sentencepiece model: transformers has a slow one only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from jax_simcas.common.errors import UserError
from jax_simcas.data import sentencepiece_model

VOCABULARY = "sentencepiece.bpe.model"
LANGUAGES = {
    "base": ("java", "python", "en_XX"),
    "multi": ("java", "python", "en_XX", "javascript", "php", "ruby", "go"),
}
FIRST = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's, in place of the model's `<unk>`, `<s>`, `</s>`
NAMES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
TIDY = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'")]
TIDY += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


class PLBartTokenizer(PreTrainedTokenizerFast):
    """Gives the ids and texts of transformers' `PLBartTokenizer`, and frames texts as `... </s> __java__`.

    Its name and files are that one's, so that transformers reads what this one saves.
    Deviation: with the language codes "multi", which have no such token, `<mask>` is text; in transformers, `<unk>`.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The file is read by `__init__`."""
        return kwargs

    def __init__(
        self,
        vocab_file: str | None = None,
        language_codes: str = "base",
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        extra_special_tokens: Any = (),
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        clean_up_tokenization_spaces: bool = True,
        **kwargs: Any,
    ) -> None:
        if vocab_file is None:
            raise UserError(f"no {VOCABULARY}, from which PLBart's tokenizer is read")
        if language_codes not in LANGUAGES:
            raise UserError(f"language_codes={language_codes!r}: expected {' or '.join(map(repr, LANGUAGES))}")
        languages = LANGUAGES[language_codes]
        codes = [f"__{language}__" for language in languages]
        masks = ["<mask>"] if language_codes == "base" else []
        specials = [*FIRST, *codes, *masks]
        self._content = Path(vocab_file).read_bytes()  # the file may be gone when this is saved
        model = sentencepiece_model.read_model(self._content)
        tokens = [*FIRST, *(piece.piece for piece in model.pieces[3:]), *specials[len(FIRST) :]]
        ids = {token: i for i, token in enumerate(tokens)}
        self._tokenizer = sentencepiece_model.backend(model, ids)
        self._add_tokens(specials, special_tokens=True)
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
        added = {i: token for i, token in (added_tokens_decoder or {}).items() if token.content not in ids}
        super().__init__(
            **(NAMES | kwargs | ({} if masks else {"mask_token": None})),
            language_codes=language_codes,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            extra_special_tokens=list(dict.fromkeys([*codes, *map(str, extra_special_tokens or ())])),
            added_tokens_decoder=added,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        # By names without and with underscores, as transformers takes them.
        self.lang_code_to_id = {name: ids[f"__{name.strip('_')}__"] for name in (*languages, *codes)}
        self.tgt_lang = tgt_lang
        self.src_lang = src_lang or ("en_XX" if language_codes == "multi" else None)

    @property
    def src_lang(self) -> str | None:
        """The code of documents' language; None: no code behind them."""
        return self._src_lang

    @src_lang.setter
    def src_lang(self, language: str | None) -> None:
        self._src_lang = self._code(language)
        self.set_src_lang_special_tokens(language)

    @property
    def tgt_lang(self) -> str | None:
        """The code of targets' language; None: no code behind them."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, language: str | None) -> None:
        self._tgt_lang = self._code(language)

    def _code(self, language: str | None) -> str | None:
        if language is None:
            return None
        if language not in self.lang_code_to_id:
            raise UserError(f"the tokenizer has no language {language!r}; there are {', '.join(self.lang_code_to_id)}")
        return f"__{language.strip('_')}__"

    def set_src_lang_special_tokens(self, language: str | None) -> None:
        """Ends texts in EOS and the code of this language."""
        code = self._code(language)
        suffix = [str(self.eos_token), *([] if code is None else [code])]
        after = " ".join(suffix)
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {after}",
            pair=f"$A $B {after}",
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in suffix],
        )

    def _switch_to_input_mode(self) -> None:
        self.set_src_lang_special_tokens(self.src_lang)

    def _switch_to_target_mode(self) -> None:
        self.set_src_lang_special_tokens(self.tgt_lang)

    def _add_tokens(self, new_tokens: Iterable[str | AddedToken], special_tokens: bool = False) -> int:
        return super()._add_tokens([_raw(token) for token in new_tokens], special_tokens)

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        # transformers does not tidy the text of a fast tokenizer with BPE, but that of its PLBartTokenizer.
        text = super()._decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces=False, **kwargs).strip()
        tidy = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        for spaced, close in TIDY if tidy else ():
            text = text.replace(spaced, close)
        return text

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Writes the model itself and no `tokenizer.json`, which has no place for languages."""
        before = f"{filename_prefix}-" if filename_prefix else ""
        path, added = (Path(save_directory, before + name) for name in (VOCABULARY, "added_tokens.json"))
        path.write_bytes(self._content)
        further = {token: i for token, i in self.get_added_vocab().items() if i >= self.vocab_size}
        if not further:
            return (*file_names, str(path))
        added.write_text(json.dumps(further, ensure_ascii=False), encoding="utf-8")
        return (*file_names, str(path), str(added))


def _raw(token: str | AddedToken) -> AddedToken:
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
