#!/usr/bin/env bash
# transformers: the same two files of a Blenderbot give an end token behind each text in version 4, and none in 5.
#
# Expected: input ids of a checkpoint's tokenizer end in </s>, as the model was trained, whichever version reads them.
# Seen: version 5 makes the tokenizer of vocab.json and merges.txt without a post-processor, so nothing is added behind a
# text; and it puts a space before it, which version 4 does only where the files ask for it.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
seen() {
  check <<'PY'
import json
import pathlib

import transformers
from tokenizers import pre_tokenizers

tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
pathlib.Path("model").mkdir(exist_ok=True)
pathlib.Path("model/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
pathlib.Path("model/merges.txt").write_text("#version: 0.2\n")
settings = {"tokenizer_class": "BlenderbotTokenizer", "model_max_length": 128}
pathlib.Path("model/tokenizer_config.json").write_text(json.dumps(settings))
ids = transformers.AutoTokenizer.from_pretrained("model")("a")["input_ids"]
print(f"transformers {transformers.__version__}: expected an end (2) behind the text, seen {ids}")
assert (ids[-1] == 2) == transformers.__version__.startswith("4.")
PY
}
packages transformers==4.57.6 tokenizers==0.22.2
seen
packages transformers==5.24.0
seen
