#!/usr/bin/env bash
# transformers: a T5Gemma 2 that is asked for in float32 may have its encoder in bfloat16, and then cannot run.
#
# Expected: `from_pretrained(folder, dtype=torch.float32)` gives all weights in float32, as of every other model.
# Seen: where the config of the encoder's text part names a dtype of its own, those weights keep it, and the first
# product of a float32 state with one of them raises a RuntimeError. `model.float()` after loading mends it.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0 torch==2.13.0
check <<'PY'
from collections import Counter

import torch
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration

stack = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
         "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8,
         "layer_types": ["sliding_attention", "full_attention"]}
vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}
image = {"mm_tokens_per_image": 4, "image_token_index": 61, "boi_token_index": 62, "eoi_token_index": 63}
for dtype in (None, "bfloat16"):
    encoder = {"text_config": stack | {"dtype": dtype}, "vision_config": vision, **image}
    config = T5Gemma2Config(encoder=encoder, decoder=stack, image_token_index=61, eoi_token_index=63)
    T5Gemma2ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained("model")
    model = T5Gemma2ForConditionalGeneration.from_pretrained("model", dtype=torch.float32)
    seen = Counter(str(weight.dtype) for weight in model.parameters())
    print(f"text_config.dtype={dtype}: expected float32 alone, seen {dict(seen)}")
    assert (seen["torch.bfloat16"] > 0) == (dtype is not None)
ids = torch.tensor([[5, 6, 7]])
try:
    model(input_ids=ids, decoder_input_ids=ids)
except RuntimeError as error:
    print(f"run: expected logits, seen RuntimeError: {str(error).splitlines()[0]}")
else:
    raise AssertionError("it ran")
model.float()(input_ids=ids, decoder_input_ids=ids)
PY
