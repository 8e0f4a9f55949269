#!/usr/bin/env bash
# transformers: without the package sentencepiece, AutoTokenizer calls a Marian or M2M100 folder an unrecognised config.
#
# Expected: a line that names the missing package, as for other optional ones. Seen: the class of a model type is left
# out of AutoTokenizer's table where sentencepiece is not installed, so that a published folder (no `tokenizer_class` in
# it) raises "Unrecognized configuration class", a list of some hundred other models, and no hint what to install.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0
check <<'PY'
import json, os

from transformers import AutoTokenizer

for model_type in ("marian", "m2m_100"):
    os.makedirs(model_type)
    with open(f"{model_type}/config.json", "w") as file:
        json.dump({"model_type": model_type}, file)
    with open(f"{model_type}/vocab.json", "w") as file:
        json.dump({"</s>": 0, "<unk>": 1, "a": 2, "<pad>": 3}, file)
    try:
        AutoTokenizer.from_pretrained(model_type)
        raise SystemExit(f"{model_type}: read")
    except (ValueError, ImportError) as error:
        text = str(error)
    print(f"{model_type}: expected a hint to install sentencepiece, seen {text[:60]!r} in {len(text)} characters")
    assert "Unrecognized configuration class" in text and "sentencepiece" not in text.lower()
PY
