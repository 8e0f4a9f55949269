"""Config files and code of version 0.1 import modules by their old names."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from jax_simcas.common.moved import MOVED
from jax_simcas.experiments.plan import Plan
from jax_simcas.run.config import from_config
from jax_simcas.run.config_file import load_module, read_config

# Of the warnings that a test does not ask for, such as that of the package around an old module.
pytestmark = pytest.mark.filterwarnings("ignore:jax_simcas.* has moved:DeprecationWarning")
OLD = Path(__file__).parent / "data" / "old_configs"


@pytest.fixture(autouse=True)
def not_imported_before(monkeypatch):
    for name in MOVED:
        monkeypatch.delitem(sys.modules, f"jax_simcas.{name}", raising=False)


@pytest.mark.parametrize("name", sorted(MOVED))
def test_an_old_name_is_the_new_module(name):
    if "torch" in MOVED[name]:
        pytest.importorskip("torch")
    new = importlib.import_module(f"jax_simcas.{MOVED[name]}")
    spec = new.__spec__
    with pytest.warns(DeprecationWarning, match=rf"jax_simcas\.{name} has moved: import jax_simcas\.{MOVED[name]}"):
        assert importlib.import_module(f"jax_simcas.{name}") is new
    assert new.__spec__ is spec and spec.name == f"jax_simcas.{MOVED[name]}"


@pytest.mark.parametrize("path", sorted(OLD.glob("*.py")), ids=lambda path: path.stem)
def test_old_configs_are_read_and_checked(path):
    with pytest.warns(DeprecationWarning, match=r"jax_simcas\.presets has moved"):
        config = read_config(str(path))
    old, new = from_config(config), from_config(read_config(path.stem))
    fields, more = old.data.fields, new.data.fields  # ours may also read fields of other names
    for role in ("document", "summary", "id"):
        assert getattr(more, role).split("|")[0] == getattr(fields, role)
    assert old == dataclasses.replace(new, data=dataclasses.replace(new.data, fields=fields))


@pytest.mark.parametrize("path", sorted(OLD.glob("experiments/*.py")), ids=lambda path: path.stem)
def test_old_experiments_are_read_and_checked(path, tmp_path):
    with pytest.warns(DeprecationWarning, match=r"jax_simcas\.grid has moved"):
        module = load_module(path)
    config = module.get_config()
    assert Plan(str(path), config, tmp_path).commands(module.get_experiment(config))
