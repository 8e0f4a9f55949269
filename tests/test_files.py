"""Files that are written whole or not at all, and values that JSON can hold."""

import math
import os
import resource

import pytest

from jax_simcas.common import files
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation.bootstrap import Score

NAN = math.nan


def test_json_ready():
    value = {"a": [1.0, NAN, (math.inf, "x", None)], "b": Score(1.0, NAN, 2.0, 3)}
    assert files.json_ready(value) == {"a": [1.0, None, [None, "x", None]], "b": [1.0, None, 2.0, 3]}


def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_half(tmp_path):
    path = tmp_path / "config.json"
    files.replace_file(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(UserError, match=rf"{path}: cannot be written \(File too large\)"):
            files.replace_file(path, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_device_is_no_place_for_a_file(tmp_path):
    """Writing would put a file in its place."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--json=.*pipe: no regular file; give the name of one"):
        files.check_place(tmp_path / "pipe", "--json")
    files.check_place(tmp_path / "new.json", "--json")
