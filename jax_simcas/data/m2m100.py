"""M2M100's tokenizer as a fast one, from the files that its checkpoints have: transformers has a slow one only."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from jax_simcas.common.errors import UserError
from jax_simcas.data.spm_tokenizer import LanguageTokenizer, VocabularyTokenizer, code_of

# In the order of their tokens, which stand behind those of vocab.json.
LANGUAGES = {
    "m2m100": (
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht "
        "hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps "
        "pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
    ),
    "wmt21": "en ha is ja cs ru zh de",
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class M2M100Tokenizer(VocabularyTokenizer, LanguageTokenizer):
    """Gives the ids and texts of transformers' `M2M100Tokenizer`, and frames texts as `__en__ ... </s>`.

    Its name and files are that one's, so that transformers reads what this one saves. As there, the languages' tokens
    are special (found in texts, left out of summaries) where the files list them, as the published ones do.
    Deviation: without a `tgt_lang`, targets are framed as `... </s>`; transformers frames none. `len` counts the
    languages in any case.
    """

    vocab_files_names = {"vocab_file": "vocab.json", "spm_file": "sentencepiece.bpe.model"}  # noqa: RUF012
    model_name = "M2M100"

    def __init__(
        self,
        vocab_file: str | None = None,
        spm_file: str | None = None,
        language_codes: str = "m2m100",
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        extra_special_tokens: Any = (),
        additional_special_tokens: Any = (),
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **kwargs: Any,
    ) -> None:
        content = self._read(vocab_file=vocab_file, spm_file=spm_file)
        if language_codes not in LANGUAGES:
            raise UserError(f"language_codes={language_codes!r}: expected {' or '.join(map(repr, LANGUAGES))}")
        languages = LANGUAGES[language_codes].split()
        codes = [code_of(language) for language in languages]
        named = NAMES | {name: token for name, token in kwargs.items() if name in NAMES}
        tokens = [*self._vocabulary(content["vocab_file"], named), *codes]
        self._set_backend(tokens, str(named["unk_token"]), content["spm_file"])
        known, given = {*tokens}, added_tokens_decoder or {}
        further = [*(extra_special_tokens or ()), *(additional_special_tokens or ())]
        listed = {*map(str, further), *(token.content for token in given.values())}
        extra = [code for code in codes if code in listed]
        extra += [token for token in further if str(token) not in extra]
        super().__init__(
            **(named | kwargs),
            language_codes=language_codes,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            extra_special_tokens=extra,
            added_tokens_decoder={i: token for i, token in given.items() if token.content not in known},
        )
        first = len(tokens) - len(codes)
        self.lang_code_to_id = {language: first + i for i, language in enumerate(languages)}
        self.tgt_lang = tgt_lang
        self.src_lang = src_lang or "en"

    def _around(self, code: str | None) -> tuple[list[str], list[str]]:
        return [] if code is None else [code], [str(self.eos_token)]
