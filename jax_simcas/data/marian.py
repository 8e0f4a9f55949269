"""Marian's tokenizer as a fast one, from the files that its checkpoints have: transformers has a slow one only."""

from __future__ import annotations

from typing import Any

from jax_simcas.common.errors import UserError
from jax_simcas.data.sentencepiece_model import SPACE, Cutter
from jax_simcas.data.spm_tokenizer import VocabularyTokenizer

NAMES = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class MarianTokenizer(VocabularyTokenizer):
    """Gives the ids and texts of transformers' `MarianTokenizer`, and frames texts as `... </s>`.

    Its name and files are that one's, so that transformers reads what this one saves. As there, documents are cut by
    `source.spm` and targets by `target.spm`, and `>>de<<` at the start of a text is one token.
    Deviation: so it is only there; in transformers, also right behind a special token within the text.
    """

    vocab_files_names = {  # noqa: RUF012
        "vocab": "vocab.json",
        "source_spm": "source.spm",
        "target_spm": "target.spm",
        "target_vocab_file": "target_vocab.json",
    }
    model_name = "Marian"
    after_special = " "

    def __init__(
        self,
        vocab: str | None = None,
        source_spm: str | None = None,
        target_spm: str | None = None,
        target_vocab_file: str | None = None,
        separate_vocabs: bool = False,
        model_max_length: int = 512,
        **kwargs: Any,
    ) -> None:
        if separate_vocabs:
            raise UserError("separate_vocabs: targets with a vocabulary of their own are not supported")
        content = self._read(vocab=vocab, source_spm=source_spm, target_spm=target_spm)
        named = NAMES | {name: token for name, token in kwargs.items() if name in NAMES}
        tokens = self._vocabulary(content["vocab"], named)
        self._set_backend(tokens, str(named["unk_token"]), content["source_spm"], content["target_spm"])
        super().__init__(**(named | kwargs), separate_vocabs=False, model_max_length=model_max_length)
        self._frame([], [str(self.eos_token)])

    def _cutter_of(self, model: Any) -> Cutter:
        return Cutter.of(model, takes_codes=True)

    def _text(self, tokens: Any) -> str:
        # Pieces of targets that documents do not have keep their mark of a space.
        return super()._text(tokens).replace(SPACE, " ").strip()

    def _switch_to_input_mode(self) -> None:
        self._in_use = self.cutter

    def _switch_to_target_mode(self) -> None:
        self._in_use = self.target_cutter
