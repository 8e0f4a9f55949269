"""A run and an evaluation of an earlier version are read, resumed and compared as their own version did."""

import dataclasses
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_simcas import compare, convert, evaluate, summarize
from jax_simcas.common import metric_log
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.run import build
from jax_simcas.run import config as config_lib
from jax_simcas.run.loop import train

DATA = Path(__file__).parent / "data" / "old_workdir"
# Programs here may compile with fewer optimisations than the one that wrote the files.
CLOSE = {"rel": 1e-4, "abs": 1e-6}


@pytest.fixture
def old(tmp_path, cache):
    with tarfile.open(DATA / "workdir.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def assert_close(new, old):
    """Equal in all that the old value has."""
    if isinstance(old, dict):
        for name in old:
            assert_close(new[name], old[name])
    elif isinstance(old, list):
        assert len(new) == len(old)
        for a, b in zip(new, old, strict=True):
            assert_close(a, b)
    else:
        assert new == (pytest.approx(old, **CLOSE) if isinstance(old, float) else old)


def test_it_evaluates_to_the_scores_and_predictions_stored_with_it(old, tmp_path, capsys):
    assert evaluate.main([f"--workdir={old}", "--split=test", "--limit=4", f"--output={tmp_path / 'new'}"]) == 0
    before, after = (json.loads((f / "scores.json").read_text()) for f in (old / "evaluation/test", tmp_path / "new"))
    changing = ("seconds", "source")
    assert_close(after, {name: value for name, value in before.items() if name not in changing})
    assert_close(predictions(tmp_path / "new"), predictions(old / "evaluation/test"))
    assert any(row["prediction"] for row in predictions(tmp_path / "new"))
    capsys.readouterr()
    assert evaluate.main(["--compare", str(old / "evaluation/test"), str(tmp_path / "new")]) == 0
    assert compare.main([f"old={old}/evaluation/test", f"new={tmp_path}/new", f"--plot={tmp_path}/plot.png"]) == 0
    rows = [line.split("|")[2:] for line in capsys.readouterr().out.splitlines() if line.startswith(("| old", "| new"))]
    assert rows[0] == rows[1]


def test_it_resumes_with_the_numbers_that_it_had(old, cache, capsys):
    settings = config_lib.read_json(old / "config.json")
    settings = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=6))
    train(settings, old, cache, progress=False)
    assert "resuming at step 4 of 6" in capsys.readouterr().err
    rows, expected = (
        [row for row in metric_log.read_metrics(path) if row["split"] != "checkpoint"]
        for path in (old / "metrics.jsonl", DATA / "resumed.jsonl")
    )
    assert len(rows) == len(expected) == 6
    timed = "tokens_per_second"
    assert_close(rows, [{name: value for name, value in row.items() if name != timed} for row in expected])


def test_its_settings_are_the_defaults_where_it_has_none(old):
    stored = json.loads((old / "config.json").read_text())
    settings = json.loads(config_lib.to_json(config_lib.read_json(old / "config.json")))
    assert_close(settings, stored)


def test_it_summarises_and_converts(old, tmp_path, capsys):
    row = SyntheticSource("test", config_lib.read_json(old / "config.json").data.embedded)[0]
    (tmp_path / "document.txt").write_text(row.document)
    assert summarize.main([f"--model={old}", str(tmp_path / "document.txt")]) == 0
    stored = predictions(old / "evaluation/test")[0]
    captured = capsys.readouterr()
    assert captured.out.strip() == stored["prediction"]
    assert f"{stored['kept']} of {stored['candidates']} candidates kept" in captured.err
    assert convert.main([str(old), str(tmp_path / "hf"), "--to=hf"]) == 0
    ours, theirs = build.load_model(str(old)).params, build.load_model(str(tmp_path / "hf")).params
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
