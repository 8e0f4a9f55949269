"""What tests with files from elsewhere share: marks that code would leave, and models to put such files into."""

import json
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, tiny_params
from stand_in_hub import hub as hub

from jax_simcas.checkpoints.hub import load, save
from jax_simcas.common.errors import UserError
from jax_simcas.run.allowed_code import ALLOWED

MODEL = ROOT / "examples" / "quickstart_model"
MARKUP = "{document.__class__} {0} {{query}} {% raw %} ${HOME} $(true) `true` %s <script>1</script> =1+1 \\u003c"
DEEP = "[" * 200_000


class Touch:
    """A pickle of it makes the file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """A file that must not be there when the test ends."""
    file = tmp_path / "ran"
    yield file
    assert not file.exists()


@pytest.fixture
def model(tmp_path):
    """A folder with a model of the tests' size, without a tokenizer."""
    save(tmp_path / "model", TINY, tiny_params())
    return tmp_path / "model"


@pytest.fixture
def marking_module(tmp_path, monkeypatch):
    """The name of a module that can be imported, and the file that importing it makes."""
    name, mark = "imported_by_a_name", tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nsame = lambda boundary, real, axis_name: boundary\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delenv(ALLOWED, raising=False)
    yield name, mark
    sys.modules.pop(name, None)


def refused(source, match=None, read=load):
    """The one line of the error."""
    with pytest.raises(UserError, match=match) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path, **values):
    """A JSON file with other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
