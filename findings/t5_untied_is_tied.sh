#!/usr/bin/env bash
# transformers 5: T5Config(tie_word_embeddings=False) makes a model whose head is tied.
#
# Expected: a new T5 with the setting that T5 v1.1 and Flan-T5 were published with has a head of its own, and config.json
# of such a model says so. Seen: the head is the embedding; the setting only decides whether states are scaled before
# it. A head of its own has what is loaded from weights that hold `lm_head.weight`; its config says
# "tie_word_embeddings": true as well, and so does what it saves. So whoever trains a T5 v1.1 from scratch trains
# another model, and a reader must look into the weights to tell the two kinds apart.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0 torch==2.13.0
check <<'PY'
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
made = T5ForConditionalGeneration(T5Config(**sizes, **kind))
made.save_pretrained("made")
weights = load_file("made/model.safetensors")
save_file(weights | {"lm_head.weight": torch.randn(50, 16)}, "made/model.safetensors", {"format": "pt"})
loaded = T5ForConditionalGeneration.from_pretrained("made")
loaded.save_pretrained("loaded")
says = json.loads(Path("loaded/config.json").read_text())["tie_word_embeddings"]
own = [not torch.equal(model.lm_head.weight, model.shared.weight) for model in (made, loaded)]
print(f"a head of its own, made: expected True, seen {own[0]}; loaded from a file with one: {own[1]}")
print(f"config.json of that: tie_word_embeddings expected False, seen {str(says).lower()}")
assert own == [False, True] and says is True
PY
