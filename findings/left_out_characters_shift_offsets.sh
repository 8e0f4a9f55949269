#!/usr/bin/env bash
# tokenizers: a character that SentencePiece's rules leave out shifts the offsets of a whole text that begins with it.
#
# Expected: each token's offsets are those of its characters. Seen: where a text begins with a control character that
# `normalizers.Precompiled` leaves out (U+007F, U+0001), every offset points one character too far to the left; later in
# the text the same character does no harm, and ids are right in both. What highlights or cuts text by offsets (answers,
# entities, chunks) is off by one, silently.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
check <<'PY'
import io

from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

out = io.BytesIO()
SentencePieceTrainer.train(sentence_iterator=iter(["some words to begin with"] * 100), model_writer=out, vocab_size=17,
                           normalization_rule_name="nmt_nfkc", add_dummy_prefix=False, minloglevel=2, hard_vocab_limit=False)
rules = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue()).normalizer_spec.precompiled_charsmap
tokenizer = Tokenizer(models.WordLevel({"some": 0, "words": 1}, unk_token="some"))
tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Precompiled(rules), pre_tokenizers.WhitespaceSplit()
for text, right in (("some words", True), ("\x7fsome words", False), ("\x01some words", False), ("some\x7f words", True)):
    found = tokenizer.encode(text)
    spelled = [text[start:end].strip("\x01\x7f") for start, end in found.offsets]
    print(f"{ascii(text)}: tokens {found.tokens}, expected the same at their offsets, seen {spelled}")
    assert found.tokens == ["some", "words"] and (spelled == found.tokens) is right
PY
