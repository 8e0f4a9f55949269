#!/usr/bin/env bash
# transformers: a T5 with more decoder than encoder layers trains, and cannot generate.
#
# Expected: `num_decoder_layers` may be larger than `num_layers`; the loss is computed, and `generate` works as it does
# the other way round. Seen: `generate` raises IndexError, as the cache is made with as many layers as the encoder has.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0 torch==2.13.0
check <<'PY'
import torch
from transformers import T5Config, T5ForConditionalGeneration

def model(encoder, decoder):
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(num_layers=encoder, num_decoder_layers=decoder, **sizes))

ids = torch.tensor([[5, 6, 1]])
print("3 + 1 layers generate:", model(3, 1).generate(ids, max_length=4).shape)
deep = model(1, 3)
print("1 + 3 layers, loss:", float(deep(input_ids=ids, labels=ids).loss))
print("1 + 3 layers, without a cache:", deep.generate(ids, max_length=4, use_cache=False).shape)
try:
    seen = f"{deep.generate(ids, max_length=4).shape}"
except IndexError as error:
    seen = f"IndexError: {error}"
print("1 + 3 layers generate: expected tokens, seen", seen)
assert seen.startswith("IndexError")
PY
