#!/usr/bin/env bash
# transformers: mBART's tokenizer keeps the language of the first target text for all later ones.
#
# Expected: with src_lang given and no tgt_lang, the language behind a target text is the one that src_lang names when
# the text is read; at least, reading a text changes no setting.
# Seen: the first call with text_target stores the source language of that moment as tgt_lang. After src_lang is set
# anew, texts end in the new language, and targets still in the old one, without a warning.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0 tokenizers==0.23.3
check <<'PY'
import transformers

for kind in (transformers.MBartTokenizer, transformers.MBart50Tokenizer):
    tokenizer = kind(src_lang="en_XX")

    def language(**text):
        ids = tokenizer(**text)["input_ids"]
        return [token for token in tokenizer.convert_ids_to_tokens(ids) if len(token) == 5 and token[2] == "_"]

    assert tokenizer.tgt_lang is None
    assert language(text_target="a") == ["en_XX"]
    tokenizer.src_lang = "de_DE"
    seen = language(text="a"), language(text_target="a"), tokenizer.tgt_lang
    print(f"{kind.__name__}, transformers {transformers.__version__}, src_lang de_DE: expected de_DE twice, seen {seen}")
    assert seen == (["de_DE"], ["en_XX"], "en_XX")
PY
