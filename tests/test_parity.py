"""Every number of the authors' PyTorch code, through the program that users run."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import MANIFEST, PARITY, fully_optimised, one_line_error

from jax_simcas import parity
from jax_simcas.run import parity_cases


@pytest.fixture(scope="module")
def every_check():
    """The program's own list, compiled as it is for users."""
    command = [sys.executable, "-m", "jax_simcas.parity", PARITY, "--json"]
    ran = subprocess.run(command, env=fully_optimised(), capture_output=True, text=True)
    assert ran.stdout, ran.stderr
    return json.loads(ran.stdout)["checks"]


@pytest.mark.parametrize("name", MANIFEST)
def test_every_quantity_holds(name, every_check):
    checks = [check for check in every_check if check["case"] == name]
    assert len(checks) >= 4
    assert [check for check in checks if not check["holds"]] == []


@pytest.fixture
def folder(tmp_path):
    """Two small cases, to be damaged."""
    for name in ("config.json", "model.safetensors", "forward_one_chunk.npz"):
        shutil.copy(PARITY / name, tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"forward_one_chunk": MANIFEST["forward_one_chunk"]}))
    return tmp_path


def rewrite(folder, **changes):
    path = folder / "forward_one_chunk.npz"
    arrays = dict(np.load(path))
    arrays.update(changes)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_the_program_prints_every_comparison_and_notices_a_wrong_one(folder, capsys):
    assert parity.main([str(folder)]) == 0
    assert "0 beyond their tolerance" in capsys.readouterr().out
    logits = np.load(folder / "forward_one_chunk.npz")["logits"]
    logits[0, 1, 2] += 1e-3
    rewrite(folder, logits=logits)
    assert parity.main([str(folder), "--json"]) == 1
    out = json.loads(capsys.readouterr().out)
    (wrong,) = [check for check in out["checks"] if not check["holds"]]
    assert wrong["quantity"] == "logits" and wrong["error"] == pytest.approx(1e-3, rel=0.1) and out["failed"] == 1


def test_not_a_number_and_another_shape_do_not_hold(folder):
    rewrite(folder, smoothed_loss=np.float32(np.nan), values=np.zeros((3, 3), np.float32))
    (case,) = parity_cases.read_cases(folder)
    assert [check.quantity.split(",")[0] for check in parity_cases.compare_case(case) if not check.holds] == [
        "values",
        "smoothed loss",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"sing_1": {}}'), "case 'sing_1' is of no known kind"),
        (lambda f: (f / "forward_one_chunk.npz").write_bytes(b"PK"), "forward_one_chunk.npz: cannot be read"),
        (lambda f: (f / "forward_one_chunk.npz").unlink(), "forward_one_chunk.npz: cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: rewrite(f, logits=None), "no 'logits' in its .npz"),
    ],
)
def test_what_is_missing_is_named(damage, message, folder, capsys):
    damage(folder)
    assert parity.main([str(folder)]) == 1
    error = one_line_error(capsys.readouterr().err)
    assert message in error and error.count(str(folder)) <= 1


def test_a_folder_of_something_else_is_told_what_it_must_hold(tmp_path, capsys):
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "manifest.json").write_text("[1]")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "list"):
        assert parity.main([str(folder)]) == 1
        error = one_line_error(capsys.readouterr().err)
        assert "DIR holds config.json, weights, manifest.json and CASE.npz for each case of it" in error
        assert error.count(str(tmp_path)) == 1
