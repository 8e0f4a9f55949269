"""What `import jax_simcas` gives."""

import inspect
import subprocess
import sys

import pytest
from helpers import environment

import jax_simcas


@pytest.mark.parametrize("name", jax_simcas.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    value = getattr(jax_simcas, name)
    if inspect.isfunction(value) or inspect.isclass(value):
        assert value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jax_simcas.nothing  # noqa: B018


def test_importing_the_package_loads_no_jax():
    code = "import sys, jax_simcas; assert jax_simcas.__version__ and 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
