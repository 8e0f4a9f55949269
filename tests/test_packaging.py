"""What users install: the wheel's files, version, command and requirements, and the two files of pinned versions."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import jax_simcas

PYTHONS = ("3.11", "3.13")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The text of the wheel's files by name. It is built from a copy, because building writes beside setup.py."""
    pytest.importorskip("setuptools", minversion="77", reason="builds a wheel: pip install 'jax_simcas[test]'")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for top in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "configs", "jax_simcas", "tests"):
        for file in [ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = source / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=source, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = [name for name in wheel if name.endswith(".dist-info/METADATA")]
    return message_from_string(wheel[name])


@pytest.fixture(scope="module")
def requirements(metadata):
    return [Requirement(line) for line in metadata.get_all("Requires-Dist")]


def pins(name, python):
    """What a file of pins says for that Python: version by package."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    found = [each for each in found if each.marker is None or each.marker.evaluate({"python_version": python})]
    assert all(re.fullmatch(r"==[^,*]+", str(each.specifier)) for each in found)
    named = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}
    assert len(named) == len(found), f"{name} pins a package twice"
    return named


def extra(requirement):
    """The extra that asks for it, or an empty string."""
    return "".join(re.findall(r'extra == "(\w+)"', str(requirement.marker)))


def test_wheel_has_the_package_its_types_templates_and_configs(wheel):
    files = {name for name in wheel if ".dist-info/" not in name}
    package = {f"jax_simcas/{file.relative_to(ROOT / 'jax_simcas')}" for file in (ROOT / "jax_simcas").rglob("*.py")}
    configs = {f"jax_simcas/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.py")}
    pages = {f"jax_simcas/evaluation/pages/{name}" for name in ("document.html", "index.html", "page.js", "style.css")}
    assert files == package | configs | pages | {"jax_simcas/py.typed"}


def test_one_version(metadata):
    assert metadata["Version"] == jax_simcas.__version__


def test_command(wheel):
    (name,) = [name for name in wheel if name.endswith("/entry_points.txt")]
    commands = ConfigParser()
    commands.read_string(wheel[name])
    assert dict(commands["console_scripts"]) == {"simcas": "jax_simcas.__main__:main"}


def test_description_has_no_links_into_the_repository(metadata):
    links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert links and all(link.startswith("https://") for link in links)


def test_extras(metadata, requirements):
    """Torch may be any newer release, so that nobody is downgraded; each extra of CUDA is one version of it."""
    assert set(metadata.get_all("Provides-Extra")) == {
        *("cuda", "cuda12", "cuda13", "tpu", "data", "documents", "torch", "bertscore", "notebook", "test")
    }
    assert all(each.specifier.contains("99") for each in requirements if each.name == "torch")
    cuda = {extra(each): each.extras for each in requirements if "cuda" in extra(each)}
    assert cuda == {"cuda": {"cuda12"}, "cuda12": {"cuda12"}, "cuda13": {"cuda13"}}


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_are_within_the_ranges(requirements, python):
    pinned = pins("constraints.txt", python)
    wanted = [each for each in requirements if extra(each) in ("", "data", "test")]
    assert {canonicalize_name(each.name) for each in wanted} <= set(pinned)
    for each in requirements:
        version = pinned.get(canonicalize_name(each.name))
        assert version is None or each.specifier.contains(version), f"{each} and {version}"


def test_lowest_constraints_are_the_lower_bounds(requirements):
    pinned = pins("constraints-lowest.txt", PYTHONS[0])
    bounds = {
        canonicalize_name(each.name): Version(bound.version)
        for each in requirements
        if extra(each) == ""
        for bound in each.specifier
        if bound.operator == ">="
    }
    assert {name: Version(pinned[name]) for name in bounds} == bounds
