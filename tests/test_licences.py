"""The table of licences in docs/security.md."""

import re
from importlib import metadata

import pytest
from helpers import ROOT, docs_program
from hostile import marker as marker
from hostile import marking_module as marking_module
from hostile import model as model
from packaging.requirements import Requirement
from stand_in_hub import hub as hub

# Licences


def test_the_table_of_licences_has_every_direct_dependency():
    pytest.importorskip("setuptools")
    made = docs_program("make_licences")
    text = made.PAGE.read_text(encoding="utf-8")
    assert {name: needed_by for name, (needed_by, _) in made.rows(text).items()} == {
        name: ", ".join(extras) for name, extras in made.requirements().items()
    }, "run python docs/make_licences.py"
    assert made.UNKNOWN not in text


def test_the_table_of_licences_is_what_the_pinned_packages_say():
    """Other versions may say the same in other words."""
    pytest.importorskip("setuptools")
    made = docs_program("make_licences")
    listed = made.rows(made.PAGE.read_text(encoding="utf-8"))
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    pinned = {plain(each.name): each for each in pins if each.marker is None or each.marker.evaluate()}
    for name, (_, licence) in listed.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if plain(name) in pinned and pinned[plain(name)].specifier.contains(version):
            assert made.licence_of(name) == licence, "run python docs/make_licences.py"
