"""Writes docs/config.md from the dataclasses of the settings: every field with its type, default and explanation.

python docs/make_config.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_simcas.run.config import Settings

PAGE = Path(__file__).with_name("config.md")
HEADER = """\
# Settings

<!-- Written by docs/make_config.py from the dataclasses; a test compares it. Change the explanations there. -->

A config file returns these settings with its own values; the command line changes any of them:

```sh
python -m jax_simcas.train --config=configs/finetune.py --workdir=runs/mine --config.data.data_dir=DATA \\
  --config.loop.steps=300
```

`WORKDIR/config.json` has all settings of a run. Where a type is `int | None`, nothing given is written `None`. Defaults
are those of `default_config()`; the files in `configs/` start from a preset in `jax_simcas/run/presets.py`, with
defaults of its own.
"""


def explanations(cls: type) -> dict[str, str]:
    """The explanation of each field: `metadata["help"]`, the comment beside it, or `name: ...` in the docstring."""
    found: dict[str, str] = {}
    doc = inspect.getdoc(cls) or ""
    for match in re.finditer(r"^((?:\w+, )*\w+): (.+(?:\n {2}.+)*)$", doc, re.MULTILINE):
        for name in match[1].split(", "):
            found[name] = " ".join(match[2].split())
    comment = ""
    for line in textwrap.dedent(inspect.getsource(cls)).splitlines():
        if above := re.match(r"^ +# (.+)$", line):
            comment = f"{comment} {above[1]}".strip()
            continue
        if beside := re.match(r"^ +(\w+): [^#]+?(?:# (.+))?$", line):
            said = " ".join(filter(None, (comment, beside[2])))
            if said:
                found.setdefault(beside[1], said)
        comment = ""
    found |= {item.name: item.metadata["help"] for item in dataclasses.fields(cls) if "help" in item.metadata}
    for name, text in found.items():
        if re.search(r"(\bsee|[,;:])$", text):
            raise ValueError(f"{cls.__name__}.{name}: ends in {text[-20:]!r}; indent the next line of the docstring")
    return found


def type_name(hint: Any) -> str:
    """`int | None` as people write it."""
    if isinstance(hint, types.UnionType):
        return " | ".join(map(type_name, typing.get_args(hint)))
    return "None" if hint is type(None) else re.sub(r"\btyping\.", "", getattr(hint, "__name__", str(hint)))


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def sections(cls: Any, name: str) -> Iterator[str]:
    """One table per dataclass, `cls` first."""
    hints, said = typing.get_type_hints(cls), explanations(cls)
    plain, nested = [], []
    for item in dataclasses.fields(cls):
        (nested if dataclasses.is_dataclass(hints[item.name]) else plain).append(item)
    title = name or "top level"
    yield f"## {title}\n\n{summary(cls)}\n"
    rows = []
    for item in plain:
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
        kind = str(hints[item.name]) if "tuple" in str(hints[item.name]) else type_name(hints[item.name])
        flag = f"{name}.{item.name}".removeprefix(".")
        rows.append(f"| `{flag}` | {cell(kind)} | `{cell(repr(default))}` | {cell(said.get(item.name, ''))} |")
    if rows:
        yield "| setting | type | default | meaning |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    for item in nested:
        yield from sections(hints[item.name], f"{name}.{item.name}".removeprefix("."))


def summary(cls: type) -> str:
    """The docstring without what it raises; fields that it explains stand in the table."""
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    said = [text for text in paragraphs if not re.match(r"(\w+, )*\w+:\s", text)]
    return "\n\n".join(textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False) for text in said)


def page() -> str:
    """The whole of docs/config.md."""
    return HEADER + "\n" + "\n".join(sections(Settings, ""))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
