#!/usr/bin/env bash
# transformers 5: BartTokenizer(vocab_file=..., merges_file=...) has five tokens, whatever the files hold.
#
# Expected: the constructor of version 4 reads the two files, or refuses arguments that it no longer has. Seen: they are
# taken in silence, the vocabulary is that of the special tokens, and every text is unknown. From a folder with the same
# files, `from_pretrained` reads all of them.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0
check <<'PY'
import json
from pathlib import Path

from transformers import BartTokenizer

folder = Path("tokenizer")
folder.mkdir()
words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "ab"]
(folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
(folder / "merges.txt").write_text("#version: 0.2\na b\n")
files = {"vocab_file": str(folder / "vocab.json"), "merges_file": str(folder / "merges.txt")}
made, loaded = BartTokenizer(**files), BartTokenizer.from_pretrained(folder)
print(f"tokens: expected {len(words)}; from_pretrained {len(loaded)}, made from the files: seen {len(made)}")
print("'ab':", loaded("ab").input_ids, "and", made("ab").input_ids)
assert len(loaded) == len(words) and len(made) == 5
PY
