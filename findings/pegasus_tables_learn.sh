#!/usr/bin/env bash
# transformers: the sinusoid positions of PEGASUS are fixed in a model that is made, and learn in one that is loaded.
#
# Expected: a table of sines and cosines that the model class freezes (requires_grad=False) is frozen in every model of
# that class, so that fine-tuning leaves it alone. Seen: `from_pretrained` makes a parameter of it that requires a
# gradient. So an optimizer over `model.parameters()` moves the table of a loaded PEGASUS, by weight decay even where
# gradients are small, and two fine-tuned copies differ in weights that no paper trains. Marian is the same.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0 torch==2.13.0
check <<'PY'
import torch
from transformers import MarianConfig, MarianMTModel, PegasusConfig, PegasusForConditionalGeneration

sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in
         {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()}
tokens = {"pad_token_id": 49, "decoder_start_token_id": 49, "eos_token_id": 0}
for config, kind in (
    (PegasusConfig(vocab_size=50, d_model=16, max_position_embeddings=16, **sizes), PegasusForConditionalGeneration),
    (MarianConfig(vocab_size=50, d_model=16, max_position_embeddings=16, **sizes, **tokens), MarianMTModel),
):
    made = kind(config)
    made.save_pretrained("model")
    loaded = kind.from_pretrained("model")
    tables = [model.model.encoder.embed_positions.weight for model in (made, loaded)]
    before = tables[1].detach().clone()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
    ids = torch.tensor([[5, 6, 7]])
    loaded(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = float((tables[1] - before).abs().max())
    seen = [table.requires_grad for table in tables]
    print(f"{kind.__name__}: requires a gradient, made and loaded: expected [False, False], seen {seen}")
    print(f"  moved by one step of AdamW: expected 0, seen {moved:.3f}")
    assert seen == [False, True] and moved > 0
PY
