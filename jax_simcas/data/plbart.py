"""PLBart's tokenizer as a fast one, from its checkpoints' sentencepiece model: transformers has a slow one only."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, processors

from jax_simcas.common.errors import UserError
from jax_simcas.data import sentencepiece_model
from jax_simcas.data.spm_tokenizer import LanguageTokenizer, code_of

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


class PLBartTokenizer(LanguageTokenizer):
    """Gives the ids and texts of transformers' `PLBartTokenizer`, and frames texts as `... </s> __java__`.

    Its name and files are that one's, so that transformers reads what this one saves.
    Deviation: with the language codes "multi", which have no such token, `<mask>` is text; in transformers, `<unk>`.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012
    model_name = "PLBart"

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
        content = self._read(vocab_file=vocab_file)["vocab_file"]
        if language_codes not in LANGUAGES:
            raise UserError(f"language_codes={language_codes!r}: expected {' or '.join(map(repr, LANGUAGES))}")
        languages = LANGUAGES[language_codes]
        codes = [code_of(language) for language in languages]
        masks = ["<mask>"] if language_codes == "base" else []
        specials = [*FIRST, *codes, *masks]
        model = sentencepiece_model.read_model(content)
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
        self.lang_code_to_id = {name: ids[code_of(name)] for name in (*languages, *codes)}
        self.tgt_lang = tgt_lang
        self.src_lang = src_lang or ("en_XX" if language_codes == "multi" else None)

    def _around(self, code: str | None) -> tuple[list[str], list[str]]:
        return [], [str(self.eos_token), *([] if code is None else [code])]

    def _spelled(self, language: str) -> str:
        return code_of(language)

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
