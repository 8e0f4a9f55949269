"""examples/quickstart.ipynb runs, and what is stored in it came from running it; the model that it loads is good."""

import dataclasses
import hashlib
import importlib.util
import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT, environment

from jax_simcas.data.rows import First
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.evaluation import documents
from jax_simcas.run.build import load_model
from jax_simcas.run.evaluate_split import evaluate_all

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
MODEL = ROOT / "examples" / "quickstart_model"
MAKER = ROOT / "docs" / "make_notebook.py"
STEPS = 4
OF_A_MACHINE = re.compile(r"(?<![\w.<~])/(?:home|Users|root|tmp|var|work|mnt|opt|usr|content|private)/\w")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def cell_with(notebook, text):
    """The only code cell whose source has the text."""
    (cell,) = [cell for cell in code(notebook) if text in source(cell)]
    return cell


def printed(cell):
    return "".join("".join(each["text"]) for each in cell["outputs"] if each.get("name") == "stdout")


def expected_and_answer(notebook):
    """As printed for the document that the notebook shows."""
    return re.findall(r"^(?:expected|answer): +(.+)$", printed(cell_with(notebook, 'print("expected:')), re.MULTILINE)


def errors(notebook):
    return [each for cell in code(notebook) for each in cell["outputs"] if each["output_type"] == "error"]


def all_text(value):
    """Every string in it, joined lines as one."""
    if isinstance(value, list):
        return "".join(map(all_text, value))
    return "\n".join(map(all_text, value.values())) if isinstance(value, dict) else str(value)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook as it comes out of a run here with few steps of training."""
    if not all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel")):
        pytest.skip("runs a notebook: pip install 'jax_simcas[notebook]'")
    folder = tmp_path_factory.mktemp("notebook")
    places = ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JAX_SIMCAS_CACHE")
    env = environment(**{name: folder / name.lower() for name in places})
    command = [sys.executable, str(MAKER), str(folder / "out.ipynb"), f"--steps={STEPS}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return read(folder / "out.ipynb")


@pytest.mark.slow
def test_it_runs_without_errors_and_gives_the_right_answer(executed):
    assert not errors(executed)
    expected, answer = expected_and_answer(executed)
    assert answer == expected
    many = re.findall(r"\?  (.+)  \(expected: (.+)\)$", printed(cell_with(executed, "(expected:")), re.MULTILINE)
    assert len(many) == 5 and all(answer == expected for answer, expected in many)


@pytest.mark.slow
def test_it_shows_what_was_kept_and_what_training_did(executed):
    answer = expected_and_answer(executed)[1].split(", ")
    document = printed(cell_with(executed, "in_brackets"))
    assert all(re.search(rf"\[[^]]*\b{word}\b[^]]*\]", document) for word in answer)
    page = all_text(cell_with(executed, "<iframe")["outputs"])
    assert "A document in plain English" in page and all(word in page for word in answer)
    log = all_text(cell_with(executed, "train(from_config")["outputs"])
    assert f"{STEPS}/{STEPS} steps, loss" in log and "kept" in log
    assert any("image/png" in each.get("data", {}) for each in cell_with(executed, "plt.show")["outputs"])


def test_the_stored_outputs_are_those_of_the_stored_cells():
    """Of all of them, in one run: the maker writes a hash of what it ran."""
    stored = read(NOTEBOOK)
    present = hashlib.sha256("\0".join(map(source, stored["cells"])).encode()).hexdigest()
    assert stored["metadata"]["jax_simcas"]["sources"] == present, "run python docs/make_notebook.py"


@pytest.mark.slow
def test_the_cells_that_are_stored_are_those_that_run_here(executed):
    shortened = [
        re.sub(r"^STEPS = \d+$", f"STEPS = {STEPS}", source(cell), flags=re.MULTILINE)
        for cell in read(NOTEBOOK)["cells"]
    ]
    assert shortened == [source(cell) for cell in executed["cells"]]
    assert sum(source(cell).count(f"STEPS = {STEPS}") for cell in executed["cells"]) == 1
    assert expected_and_answer(read(NOTEBOOK)) == expected_and_answer(executed)


def test_what_the_stored_cells_import_is_there():
    ours = re.compile(r"(?:from|import) jax_simcas\b.*")
    lines = [line for cell in code(read(NOTEBOOK)) for line in source(cell).splitlines() if ours.fullmatch(line)]
    assert len(lines) > 5
    exec("\n".join(lines), {})


def test_every_stored_cell_has_an_output_and_none_has_an_error_or_a_place_on_a_machine():
    stored = read(NOTEBOOK)
    assert all(cell["outputs"] for cell in code(stored))
    assert [cell["execution_count"] for cell in code(stored)] == list(range(1, len(code(stored)) + 1))
    assert not errors(stored)
    found = OF_A_MACHINE.search(all_text(stored))
    assert not found, found
    assert NOTEBOOK.stat().st_size < 300_000
    assert OF_A_MACHINE.search("wrote /home/somebody/x") and not OF_A_MACHINE.search("</p> a/b docs/home/x")


def test_one_switch_names_the_accelerator():
    first = code(read(NOTEBOOK))[0]
    assert source(first).startswith('ACCELERATOR = "cpu"  # "gpu" or "tpu"')
    assert "ACCELERATOR = " not in "".join(source(cell) for cell in code(read(NOTEBOOK))[1:])


def test_the_model_that_comes_with_it_is_small_and_keeps_its_promise():
    """On documents that no training has seen: right answers, from few states, among them those of the facts."""
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 1_000_000
    model = load_model(str(MODEL))
    new = dataclasses.replace(model.settings.data.embedded, seed=77)
    source = First(SyntheticSource("test", new), 60)
    by = documents.scoring("auto", "answers", [documents.references(source[i]) for i in range(len(source))])
    found = documents.summary_of(evaluate_all(model, source, model.settings.simcas.policy, by, seed=0), seed=0)
    assert found["documents_scored"] == 60
    assert found["scores"]["exact_match"]["mean"] >= 95
    assert found["kept_share"] < 0.2
    assert found["evidence"]["evidence_kept"]["mean"] >= 0.95
