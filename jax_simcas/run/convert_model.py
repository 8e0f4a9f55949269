"""Rewriting a model in another layout: what `jax_simcas.convert` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jax_simcas.checkpoints import hub
from jax_simcas.checkpoints.hub import Pretrained
from jax_simcas.common import cli, files
from jax_simcas.common.errors import UserError
from jax_simcas.run import generation
from jax_simcas.run.build import generation_of, load_weights, raw_generation
from jax_simcas.run.workdir import CHECKPOINTS

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
CARD = "README.md"
MODEL_CARD = """\
---
library_name: transformers
pipeline_tag: summarization
tags: [simcas, jax]
---

# {name}

{kind} of {positions} positions, written by jax_simcas ([SimCAS](https://arxiv.org/abs/2308.13191)). With that package
it reads documents of any length, in chunks{selector}:

```sh
python -m jax_simcas.summarize --model=FOLDER article.txt
```

**transformers reads it plainly, without chunks and without selection**: as {kind}, inputs of up to {positions} tokens.
It reports parameters named `model.encoder.agent.*` as unexpected and ignores them. Both use the generation settings of
`generation_config.json`.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")
```
"""


def tokenizer_files(folder: Path) -> Iterable[Path]:
    """The files of the tokenizer in `folder`."""
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def model_card(found: Pretrained, name: str) -> str:
    """README.md of an export."""
    has_selector = "selector" in found.params
    return MODEL_CARD.format(
        name=name,
        kind={"bart": "BART", "mbart": "mBART", "plbart": "PLBart"}[found.config.family],
        positions=f"{found.config.max_position_embeddings:,}",
        selector=", of which its selector keeps the states that the decoder reads" if has_selector else "",
    )


def convert(source: str, target: Path, layout: str, step: Any = "best") -> tuple[Pretrained, Path]:
    """Writes config.json, generation_config.json, weights in `layout`, tokenizer, model card and our settings.

    A model card that is there already stays.

    Raises:
      UserError: an unreadable source; a target that cannot be written or that holds weights in another layout.
    """
    others = [name for name in hub.WEIGHTS if name != hub.LAYOUTS[layout] and (target / name).exists()]
    if others or (target / CHECKPOINTS).exists():
        held = others[0] if others else CHECKPOINTS
        raise UserError(f"{target}: holds {held} already, which would be read in place of the new file; choose another")
    files.check_place(target, "DST", folder=True)
    found = load_weights(source, step)
    backbone = (found.extra or {}).get("backbone", "bart")
    if backbone != "bart":
        raise UserError(f"{source}: config.backbone={backbone!r}; only a BART can be written in these layouts")
    copy = [path for path in tokenizer_files(found.folder) if path.parent.resolve() != target.resolve()]
    settings, notes = generation_of(found, source)
    texts = {hub.GENERATION: generation.to_json(raw_generation(found), settings, found.config)}
    if not (target / CARD).exists():
        texts[CARD] = model_card(found, Path(target).resolve().name)
    found = found._replace(notes=(*found.notes, *notes))
    return found, hub.save(target, found.config, found.params, layout, found.extra or None, copy, texts)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare_jax()
    found, written = convert(arguments.source, Path(arguments.target), arguments.to, arguments.step)
    for note in found.notes:
        print(note, file=sys.stderr)
    selector = "with its selector" if "selector" in found.params else "which has no selector"
    print(f"{arguments.source} ({selector}) -> {written}")
    return 0
