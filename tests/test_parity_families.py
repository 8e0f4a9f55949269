"""Models of other families than BART through the judge, on small arrays that the PyTorch peer computed: no PyTorch."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import one_line_error
from safetensors.numpy import load_file, save_file

from jax_simcas import parity
from jax_simcas.run import parity_cases

DATA = Path(__file__).parent / "data"
FAMILIES = ("t5", "t5gemma", "t5gemma2")
CASES = ("forward_shift_padded", "generate_mean", "train_mean", "ppo_mean")
# The rest of what is stored is judged in the slow tests.
FAST = {*((family, case) for family in ("t5", "t5gemma2") for case in CASES[:2]), ("t5", "train_mean")}


def case_of(family, name):
    (case,) = (case for case in parity_cases.read_cases(DATA / f"parity_{family}") if case.name == name)
    return case


def marked(*given, fast):
    return pytest.param(*given, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "name"), [marked(f, name, fast=(f, name) in FAST) for f in FAMILIES for name in CASES]
)
def test_every_quantity_holds(family, name):
    checks = parity_cases.compare_case(case_of(family, name))
    assert checks and [check for check in checks if not check.holds] == []


def disturbed(array, key=""):
    """One element is another: a token or a draw, or the largest number, off by a hundredth; of actions, all are."""
    array = array.copy()
    if key.endswith("sampled_actions"):  # one state more or less need not change what is generated
        return 1 - array
    place = np.unravel_index(np.argmax(np.abs(array)), array.shape) if array.dtype.kind == "f" else (0,) * array.ndim
    place = (*place[:-1], 3) if array.ndim and array.dtype.kind == "i" else place  # behind the begin token
    array[place] = array[place] * 1.01 if array.dtype.kind == "f" else array[place] ^ 1
    return array


@pytest.mark.parametrize("family", [marked(family, fast=family == "t5") for family in FAMILIES])
def test_every_array_counts(family):
    for name in CASES[:2]:
        case = case_of(family, name)
        for key, array in case.arrays.items():
            wrong = case._replace(arrays=case.arrays | {key: disturbed(array, key)})
            assert any(not check.holds for check in parity_cases.compare_case(wrong)), key


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CASES[2:]])
def test_every_result_of_an_update_counts(name):
    case = case_of("t5", name)
    results = [key for key in case.arrays if key.startswith("after/") or key in ("losses", "advantages", "returns")]
    for key in (results[0], *(key for key in results if not key.startswith("after/"))):
        wrong = case._replace(arrays=case.arrays | {key: disturbed(case.arrays[key])})
        assert any(not check.holds for check in parity_cases.compare_case(wrong)), key


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_counts(family):
    """Each off by noise: a norm behind a product hides its scale, and some biases are 0."""
    case, rng = case_of(family, "forward_shift_padded"), np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(case.params)
    for i, leaf in enumerate(leaves):
        noise = (0.01 * max(1, np.abs(leaf).max()) * rng.standard_normal(leaf.shape)).astype(np.float32)
        wrong = case._replace(params=tree.unflatten([*leaves[:i], leaf + noise, *leaves[i + 1 :]]))
        assert any(not check.holds for check in parity_cases.compare_case(wrong)), i


@pytest.fixture
def folder(tmp_path):
    """The forward pass of the T5, to be damaged."""
    source = DATA / "parity_t5"
    for name in ("config.json", "model.safetensors", "forward_shift_padded.npz"):
        shutil.copy(source / name, tmp_path)
    manifest = json.loads((source / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({name: manifest[name] for name in CASES[:1]}))
    return tmp_path


def test_the_program_notices_a_weight_that_is_off_by_a_hundredth(folder, capsys):
    assert parity.main([str(folder)]) == 0
    assert "13 comparisons in 1 cases, 0 beyond" in capsys.readouterr().out
    weights = load_file(folder / "model.safetensors")
    weights["decoder.block.0.layer.1.layer_norm.weight"] *= 1.01
    save_file(weights, folder / "model.safetensors")
    assert parity.main([str(folder)]) == 1
    wrong = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines() if "EXCEEDED" in line]
    assert "logits" in wrong and "selected states" not in wrong


def rewrite(folder, **changes):
    path = folder / "forward_shift_padded.npz"
    np.savez(path, **dict(np.load(path)) | changes)


def settings(folder, **given):
    (folder / "manifest.json").write_text(json.dumps({"forward_shift_padded": given}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: rewrite(f, input_ids=np.zeros((3, 16), int)), "input_ids has the shape (3, 16), not [1, K, S]"),
        (
            lambda f: rewrite(f, sampled_actions=np.zeros((3, 9), int)),
            "sampled_actions has the shape (3, 9), not (3, 15)",
        ),
        (lambda f: rewrite(f, target_ids=np.zeros((1, 4), float)), "target_ids holds float64, not tokens"),
        (lambda f: rewrite(f, input_ids=np.full((1, 3, 16), 40)), "input_ids holds 40, and the model has 40 tokens"),
        (lambda f: rewrite(f, logits=np.float32(1)), "case forward_shift_padded: its arrays do not fit the model ("),
        (lambda f: settings(f), "no 'align' in its .npz or in the manifest"),
        (lambda f: settings(f, align="mine"), "its align in the manifest is 'mine', not mean, shift, none"),
    ],
)
def test_what_cannot_be_judged_is_one_line(damage, message, folder, capsys):
    damage(folder)
    assert parity.main([str(folder)]) == 1
    assert message in one_line_error(capsys.readouterr().err)
