#!/usr/bin/env bash
# tokenizers and sentencepiece: the same normalisation rules compose Latin accents, but neither Hangul nor kana.
#
# Expected: `normalizers.Precompiled`, which reads the rules out of a SentencePiece model (T5, mT5, PEGASUS, mBART), does
# what sentencepiece does with them. Seen: "e" + U+0301 becomes one character in both; Hangul written as jamo, and kana
# with a combining mark, do in sentencepiece only. Text from a Mac's file names or a PDF has these forms: with the fast
# tokenizer it falls into other pieces, or unknown ones, than the model was trained on.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
check <<'PY'
import io

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import normalizers

out = io.BytesIO()
SentencePieceTrainer.train(sentence_iterator=iter(["some words to begin with"] * 100), model_writer=out, vocab_size=17,
                           normalization_rule_name="nmt_nfkc", add_dummy_prefix=False, minloglevel=2, hard_vocab_limit=False)
rules = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue()).normalizer_spec.precompiled_charsmap
theirs, fast = SentencePieceProcessor(model_proto=out.getvalue()), normalizers.Precompiled(rules)
for name, text, same in (("Latin", "e\u0301", True), ("Hangul", "\u1112\u1161\u11ab", False),
                         ("kana", "\u30ab\u3099", False)):
    seen = [theirs.normalize(text), fast.normalize_str(text)]
    print(f"{name}: sentencepiece {ascii(seen[0])}, tokenizers expected the same, seen {ascii(seen[1])}")
    assert (seen[0] == seen[1]) is same and len(seen[0]) == 1
PY
