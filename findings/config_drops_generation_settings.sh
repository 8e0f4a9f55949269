#!/usr/bin/env bash
# transformers 5: a config drops generation settings given in code, and takes the same ones from a file.
#
# Expected: BartConfig(forced_bos_token_id=0, num_beams=4), as in scripts for version 4, keeps the settings, or says that
# it does not. Seen: both are gone without a word, and so from the model's generation settings: `generate` is greedy and
# forces nothing. The same two fields in a config.json that is loaded do end up in `model.generation_config`.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0 torch==2.13.0
check <<'PY'
import json
from pathlib import Path

from transformers import BartConfig, BartForConditionalGeneration

sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in
         {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()}
settings = {"forced_bos_token_id": 0, "num_beams": 4}
made = BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=16, **sizes, **settings))
made.save_pretrained("model")
Path("model/generation_config.json").unlink()  # as files of version 4 were
path = Path("model/config.json")
path.write_text(json.dumps(json.loads(path.read_text()) | settings))
loaded = BartForConditionalGeneration.from_pretrained("model")
found = [{name: getattr(model.generation_config, name) for name in settings} for model in (made, loaded)]
print(f"expected {settings}\nfrom a file: {found[1]}\nfrom code:   {found[0]}")
assert found[1] == settings and all(found[0][name] != value for name, value in settings.items())
PY
