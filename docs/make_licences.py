"""Writes the table of licences in docs/security.md: every direct dependency, with all extras.

The names come from setup.py, the licences from what the installed packages say of themselves. What is not installed
keeps its line.

python docs/make_licences.py
"""

from __future__ import annotations

import re
import runpy
from importlib import metadata
from pathlib import Path
from unittest import mock

PAGE = Path(__file__).with_name("security.md")
SETUP = PAGE.parent.parent / "setup.py"
HEAD = "| package | needed by | licence |\n| --- | --- | --- |\n"
ROW = re.compile(r"^\| `([\w.-]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
UNKNOWN = "not installed where this was written"
# What packages call the same licences; the names are those of SPDX, but for a BSD licence of unknown clauses.
NAMES = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "License agreement for matplotlib versions 1.3.0 and later": "matplotlib's, which is Python's (PSF) with its name",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def requirements() -> dict[str, list[str]]:
    """Package -> the extras that need it, or "all" for what is always installed; by name."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(SETUP))
    given = setup.call_args.kwargs
    found: dict[str, list[str]] = {}
    for extra, lines in {"all": given["install_requires"], **given["extras_require"]}.items():
        for line in lines:
            name = re.match(r"[\w.-]+", line)[0]  # type: ignore[index]
            if extra not in found.setdefault(name, []):
                found[name].append(extra)
    return {name: ["all"] if "all" in extras else extras for name, extras in sorted(found.items(), key=_by_name)}


def _by_name(item: tuple[str, list[str]]) -> str:
    return item[0].lower()


def licence_of(name: str) -> str | None:
    """What an installed package says of its licence; None: it is not installed, or says nothing."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classes = [line.split(" :: ")[-1] for line in said.get_all("Classifier", []) if line.startswith("License :: OSI")]
    whole = (said.get("License") or "").strip()  # may be its whole text
    first = whole.splitlines()[0].strip() if whole else ""
    listed = " and ".join(NAMES.get(each, each) for each in classes)
    found = said.get("License-Expression") or (first if len(first) < 60 else "") or listed
    return NAMES.get(found, found) or None


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Package -> what needs it, and its licence, as the page's table has them."""
    start = page.index(HEAD)
    return {name: (needed_by, licence) for name, needed_by, licence in ROW.findall(page, start)}


def table(before: str) -> str:
    """The table; packages that are not installed keep their licences of the page `before`."""
    kept = rows(before)
    lines = [
        f"| `{name}` | {', '.join(extras)} | {licence_of(name) or kept.get(name, ('', UNKNOWN))[1]} |\n"
        for name, extras in requirements().items()
    ]
    return HEAD + "".join(lines)


def page(before: str) -> str:
    """docs/security.md with a new table in the place of the one that it has."""
    start = before.index(HEAD)
    end = before.find("\n\n", start)
    return before[:start] + table(before) + ("" if end < 0 else before[end + 1 :])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
