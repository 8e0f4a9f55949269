"""The programs as a user runs them: a whole tiny run, resuming, and what is said about bad input."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from helpers import ROOT, environment, figures, model_of, one_line_error, tiny_bert, tiny_config

from jax_simcas import compare, evaluate, summarize, train
from jax_simcas.checkpoints import hub
from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common import cli, metric_log
from jax_simcas.common.errors import UserError
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.method.model import init_params
from jax_simcas.run import build
from jax_simcas.run import config as config_lib
from jax_simcas.run import workdir as workdir_lib
from jax_simcas.run.processes import make_job


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("JAX_SIMCAS_CACHE")
    os.environ["JAX_SIMCAS_CACHE"] = str(folder)
    cli.prepare()  # the compilation cache
    yield folder
    os.environ.pop("JAX_SIMCAS_CACHE") if before is None else os.environ.update(JAX_SIMCAS_CACHE=before)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("run")
    outcome = train.train(tiny_config(), folder, cache, progress=False)
    assert outcome.step == 4 and not outcome.preempted and outcome.metrics["nll"] > 0
    return folder


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(SyntheticSource("test", tiny_config().data.embedded)[0].document, encoding="utf-8")
    return path


def user_runs(*arguments, cache=None, **options):
    """A program in a process of its own."""
    env = environment(**({"JAX_SIMCAS_CACHE": cache} if cache else {}))
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options)


def test_training_leaves_everything_it_promises(workdir):
    rows = figures(workdir)
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [2, 4]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert {"loss", "nll", "reward", "selection/kept", "ppo/approx_kl"} <= rows[-2].keys()
    assert (workdir / "curves.png").stat().st_size > 1000
    assert {"loss.png", "reward.png"} <= {path.name for path in (workdir / "curves").iterdir()}
    assert list((workdir / "tensorboard").rglob("events.*"))
    assert config_lib.read_json(workdir / "config.json").bart.vocab_size > 20
    assert load_params(workdir / "checkpoints", "latest")[1]["step"] == 4


def test_resuming_gives_the_uninterrupted_runs_numbers(workdir, cache, tmp_path, capsys):
    train.train(tiny_config(**{"loop.steps": 3}), tmp_path, cache, progress=False)
    train.train(tiny_config(), tmp_path, cache, progress=False)
    assert "resuming at step 3 of 4" in capsys.readouterr().err
    rows, expected = figures(tmp_path), figures(workdir)
    # The shorter run looked at the validation documents at its own end as well.
    assert [row for row in rows if row["split"] == "train" or row["step"] != 3] == expected
    for a, b in zip(
        jax.tree.leaves(load_params(tmp_path / "checkpoints", "latest")[0]),
        jax.tree.leaves(load_params(workdir / "checkpoints", "latest")[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_trained_again(workdir, cache, capsys):
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train.train(tiny_config(), workdir, cache, progress=False).step == 4
    assert "raise --config.loop.steps to go on" in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_workdir_of_another_run_is_refused(workdir, cache):
    with pytest.raises(UserError, match=r"optimizer\.max_lr: 0\.021 -> 0\.5"):
        train.train(tiny_config(**{"optimizer.max_lr": 0.5}), workdir, cache, progress=False)


def test_training_goes_on_from_another_workdir(workdir, cache, tmp_path, capsys):
    settings = tiny_config(**{"pretrained": str(workdir), "loop.steps": 1, "simcas.align": "none"})
    train.train(settings, tmp_path / "second", cache, progress=False)
    assert f"{workdir}: checkpoint of step " in capsys.readouterr().err
    with jax.set_mesh(mesh := make_job(settings.mesh, settings.data.batch_size).mesh):
        start = build.new_model(settings, cache, mesh)
    trained = build.load_model(str(workdir))
    assert start.settings.bart == trained.settings.bart and start.settings.simcas.align == "none"
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(trained.params), strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "empty" / "tokenizer").mkdir(parents=True)
    with pytest.raises(UserError, match="empty: a workdir without a checkpoint; train it first"):
        train.train(tiny_config(pretrained=str(tmp_path / "empty")), tmp_path / "third", cache, progress=False)


def go_on(workdir, cache, steps=5):
    return train.train(tiny_config(**{"loop.steps": steps}), workdir, cache, progress=False)


def test_metrics_tell_of_each_checkpoint_and_what_it_held_up(workdir):
    rows = [row for row in metric_log.read_metrics(workdir / "metrics.jsonl") if row["split"] == "checkpoint"]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 < row["stall_seconds"] <= row["write_seconds"] < 60 for row in rows)


def test_a_deleted_checkpoint_is_told_and_the_one_before_goes_on(workdir, cache, tmp_path, capsys):
    folder = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "4")
    go_on(folder, cache)
    err = capsys.readouterr().err
    assert f"warning: {folder}/checkpoints/4: metrics.jsonl records it, and it is gone\nresuming at step 2 of 5" in err
    assert [row["step"] for row in figures(folder) if row["split"] == "train"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("keep_folder", [True, False])
def test_training_does_not_start_over_where_checkpoints_were(workdir, cache, tmp_path, keep_folder):
    folder = shutil.copytree(workdir, tmp_path / "run")
    before = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    if keep_folder:
        (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match=rf"no checkpoint there, but .* records one of step 4: .* move {folder} away"):
        go_on(folder, cache)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_training_does_not_start_over_from_damage(workdir, cache, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "run")
    for step in (2, 4):
        (folder / "checkpoints" / str(step) / "meta" / "metadata").write_bytes(b"")
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no good checkpoint \(.*/4: skipped, .*/2: skipped, .* move the folder away"):
        go_on(folder, cache)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_in_its_first_save_says_so_and_starts_again(cache, tmp_path, capsys):
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "split": "train", "loss": 9.0}\n')
    go_on(tmp_path, cache, steps=1)
    assert f"warning: {left}: skipped, its save never finished\n" in capsys.readouterr().err
    assert [row["step"] for row in figures(tmp_path) if row["split"] == "train"] == [1]


def test_losses_that_stay_not_finite_stop_training_and_name_the_checkpoint(cache, tmp_path):
    changes = {"optimizer.max_lr": 1e35, "optimizer.warmup": 1, "loop.steps": 50, "loop.checkpoint_every": 1}
    settings = tiny_config(**changes | {"loop.max_skipped": 3})
    with pytest.raises(UserError, match=r"not finite for 3 batches in a row.*the last good one is .*checkpoints/\d+"):
        train.train(settings, tmp_path, cache, progress=False)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_params(tmp_path / "checkpoints", "latest")[0]))
    assert figures(tmp_path)[-1]["skipped"] == 1


def test_evaluate_writes_scores_and_a_row_per_document(workdir, cache, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=5"]) == 0
    out = capsys.readouterr().out
    assert "| exact_match: SQuAD exact match, best of the answers" in out
    assert "5 documents of test" in out and "times as likely" in out
    folder = workdir / "evaluation" / "test"
    scores = json.loads((folder / "scores.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(5)]
    assert scores["documents"] == 5 and scores["documents_cut"] == 0 and scores["lead_words"] == 3
    assert scores["scores"]["f1"]["mean"] == pytest.approx(np.mean([row["scores"]["f1"] for row in rows]))
    assert scores["kept_share"] == sum(row["kept"] for row in rows) / sum(row["candidates"] for row in rows)


def test_bertscore_stands_beside_the_other_scores(workdir, cache, tmp_path, capsys):
    model = tiny_bert(tmp_path / "tiny-bert")
    assert evaluate.main([f"--workdir={workdir}", "--limit=2", f"--output={tmp_path}", f"--bertscore={model}@1"]) == 0
    out = capsys.readouterr().out
    assert "| bertscore/tiny-bert@1: BERTScore F1, tiny-bert's layer 1" in out and "at most 16 tokens" in out
    summary = json.loads((tmp_path / "scores.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for kind in ("scores", "lead"):
        values = [row[kind]["bertscore/tiny-bert@1"] for row in rows]
        assert len(values) == 2 and all(0 < value <= 100.001 for value in values)
        assert summary[kind]["bertscore/tiny-bert@1"]["mean"] == pytest.approx(np.mean(values))


def test_other_policies_spend_what_the_model_would(workdir, cache, capsys):
    others = ("random", "topk", "first", "spaced")
    for policy in ([], *([f"--policy={other}"] for other in others)):
        assert evaluate.main([f"--workdir={workdir}", "--split=validation", *policy]) == 0
    read = lambda name: (workdir / "evaluation" / name / "predictions.jsonl").read_text().splitlines()
    kept = lambda name: [json.loads(line)["kept"] for line in read(name)]
    assert all(kept("validation") == kept(f"validation-{other}") for other in others)
    runs = [f"{name}={workdir}/evaluation/{name}" for name in ("validation", "validation-random")]
    plot = workdir / "comparison.png"
    capsys.readouterr()
    assert compare.main([*runs, f"--plot={plot}"]) == 0
    out = capsys.readouterr().out
    assert "validation-random" in out and "times as likely" in out and plot.stat().st_size > 1000
    assert "\nf1: SQuAD F1, best of the answers\n" in out and "authors/" not in out
    assert compare.main([*runs, "--measures=authors/f1"]) == 0
    out = capsys.readouterr().out
    assert "authors/f1: SQuAD F1" in out and "exact_match" not in out
    folders = [f"{workdir}/evaluation/{name}" for name in ("validation", "validation-random")]
    assert evaluate.main(["--compare", *folders]) == 0
    means = [json.loads((Path(f) / "scores.json").read_text())["scores"]["f1"]["mean"] for f in folders]
    cells = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| f1")).split("|")
    assert [float(cell) for cell in cells[2:4]] == pytest.approx(means, abs=0.005)
    assert float(cells[4].split()[0]) == pytest.approx(means[0] - means[1], abs=0.005)


def test_evaluates_nll_is_that_of_training(workdir, cache, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--split=validation", "--step=latest", "--limit=4"]) == 0
    assert "nats a token" in capsys.readouterr().out
    folder = workdir / "evaluation" / "validation"
    got = json.loads((folder / "scores.json").read_text())["nll"]
    logged = [row for row in figures(workdir) if row["split"] == "validation"][-1]
    assert got["mean"] == pytest.approx(logged["nll"], rel=1e-5) and got["count"] == 4
    rows = [json.loads(line)["nll"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert got["mean"] == pytest.approx(sum(nats for nats, _ in rows) / sum(tokens for _, tokens in rows))


def test_evaluation_changes_settings_for_itself(workdir, cache, capsys):
    longer = ["--config.data.embedded.chunks=7", "--config.data.batch_size=2"]
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=2", *longer]) == 0
    scores = json.loads((workdir / "evaluation" / "test" / "scores.json").read_text())
    assert "chunks=7" in scores["source"]
    assert config_lib.read_json(workdir / "config.json").data.embedded.chunks == 4
    line = (workdir / "evaluation" / "test" / "predictions.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["candidates"] == 7 * 15
    assert evaluate.main([f"--workdir={workdir}", "--config.data.embedded.chunks=many"]) == 1
    assert "chunks" in one_line_error(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={workdir}", "--conflig.data.batch_size=2"])
    assert "unrecognized arguments: --conflig" in capsys.readouterr().err


def test_training_on_a_few_rows_sees_no_others(cache, tmp_path, monkeypatch):
    seen = set()
    original = SyntheticSource.__getitem__

    def noting(self, index):
        if self._split == "train":
            seen.add(int(index))
        return original(self, index)

    monkeypatch.setattr(SyntheticSource, "__getitem__", noting)
    train.train(tiny_config(**{"data.train_rows": 3, "data.batch_size": 4}), tmp_path, cache, progress=False)
    assert seen == {0, 1, 2}


def test_training_without_selection_keeps_everything(cache, tmp_path):
    changes = {"simcas.policy": "all", "simcas.train_policy": "all", "loop.selector_every": 0}
    train.train(tiny_config(**changes), tmp_path, cache, progress=False)
    assert {row["selection/kept"] for row in figures(tmp_path)} == {1.0}


def test_a_document_is_scored_the_same_in_any_batch(workdir, cache, capsys):
    read = lambda: json.loads((workdir / "evaluation" / "test" / "scores.json").read_text())["scores"]
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--batch-size=1"]) == 0
    alone = read()
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--batch-size=4"]) == 0
    assert read() == alone


def test_summarize_prints_one_summary_a_file(workdir, cache, document, capsys, monkeypatch):
    assert summarize.main([f"--model={workdir}", str(document), str(document)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert "[2/2]" in captured.err and "chunks" in captured.err
    assert summarize.main([f"--model={workdir}", "--json", str(document)]) == 0
    record = json.loads(capsys.readouterr().out)
    text = document.read_text()
    assert record["summary"] == lines[0] and record["chunks"] == 4 and record["cut_tokens"] == 0
    assert record["tokens"] == len(text.split()) + 2 * record["chunks"]
    assert all(0 <= start < end <= len(text) for start, end in record["kept_spans"])
    assert record["kept"] > 0 and set(record["seconds"]) == {"tokenize", "encode_and_select", "generate"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    assert summarize.main([f"--model={workdir}"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]


def test_what_is_kept_is_within_the_capacity(workdir, cache, document, capsys):
    assert summarize.main([f"--model={workdir}", "--json", "--policy=all", "--capacity=10", str(document)]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 9  # and the document's state


def test_kept_spans_are_the_kept_tokens_text(workdir, cache, document, capsys):
    assert summarize.main([f"--model={workdir}", "--json", "--policy=all", str(document)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kept_spans"] == [[0, len(document.read_text().rstrip())]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; there is nothing to summarise"),
        (b" \n\t\n", "only whitespace; there is nothing to summarise"),
        (b"word-1 \xff\xfe", "not UTF-8 (byte 7 is 0xff)"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_file_is_told_and_the_others_are_summarised(content, message, workdir, cache, document, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    if content is not None:
        bad.write_bytes(content)
    assert summarize.main([f"--model={workdir}", str(bad), str(document)]) == 1
    captured = capsys.readouterr()
    assert f"{bad}: {message}" in one_line_error(captured.err)
    assert len(captured.out.splitlines()) == 1


@pytest.mark.parametrize("text", ["word-1", "not a word of the vocabulary", "fact-0-0-1 " * 3])
def test_a_few_words_are_a_document(text, workdir, cache, tmp_path, capsys):
    (tmp_path / "short.txt").write_text(text)
    assert summarize.main([f"--model={workdir}", str(tmp_path / "short.txt")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_document_over_the_limit_is_cut_and_said(workdir, cache, document, capsys):
    assert summarize.main([f"--model={workdir}", "--max-input-len=16", str(document)]) == 0
    words = len(document.read_text().split())
    assert f"cut to 16 tokens, {words - 14} left out; raise --max-input-len" in capsys.readouterr().err
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--max-input-len=16", "--limit=2"]) == 0
    assert "2 documents were cut to 16 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (evaluate, ["--workdir=nowhere"], "no config.json there"),
        (evaluate, ["--workdir={}", "--split=dev"], "split 'dev': the synthetic task has"),
        (evaluate, ["--workdir={}", "--step=first"], "--step=first: expected best, latest or a number"),
        (evaluate, ["--workdir={}", "--step=99"], "99"),
        (evaluate, ["--workdir={}", "--output=/dev/null/x"], "--output=/dev/null/x: cannot be written"),
        (evaluate, ["--workdir={}", "--min-length=9"], "min_length"),
        (summarize, ["--model=nowhere/at/all"], "no such folder"),
        (summarize, ["--model={}", "--query=Why?", "x"], "was trained without queries"),
        (summarize, ["--model={}", "--policy=topk", "x"], "budget"),
        (compare, ["a"], "expected NAME=FOLDER"),
        (compare, ["a=nowhere"], "run jax_simcas.evaluate first"),
        (evaluate, ["--workdir={}", "--bertscore=nowhere/at/all"], "--bertscore=nowhere/at/all: cannot be loaded ("),
    ],
)
def test_flags_that_cannot_be_used_are_named(tool, arguments, message, workdir, cache, capsys):
    assert tool.main([argument.format(workdir) for argument in arguments]) == 1
    assert message in one_line_error(capsys.readouterr().err)


@pytest.mark.parametrize("tool", [evaluate, summarize, compare])
def test_help_has_examples(tool, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main(["--help"])
    assert exit.value.code == 0 and "examples:\n  python -m jax_simcas." in capsys.readouterr().out


def jsonl_settings(data_dir, **changes):
    base = tiny_config()
    data = dataclasses.replace(base.data, source="jsonl", data_dir=str(data_dir), vocab_size=300, **changes)
    simcas = dataclasses.replace(base.simcas, max_input_len=100)
    return dataclasses.replace(base, data=dataclasses.replace(data, task="summarization"), simcas=simcas)


def write_split(folder, split, rows):
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_text_from_jsonl_with_queries_end_to_end(cache, tmp_path, capsys):
    rows = [
        {"article": f"Sentence {i} of many. It says ‘tree’ and {i}.", "abstract": f"tree {i}", "ask": f"what is {i}?"}
        for i in range(12)
    ]
    write_split(tmp_path / "data", "train", rows)
    write_split(tmp_path / "data", "validation", [*rows[:5], {"article": "", "abstract": "x", "ask": "y"}])
    fields = config_lib.Fields(document="article", summary="abstract", query="ask")
    settings = jsonl_settings(tmp_path / "data", fields=fields, input_template="{query}\n{document}")
    train.train(settings, tmp_path / "run", cache, progress=False)
    assert "empty" in capsys.readouterr().err
    assert evaluate.main([f"--workdir={tmp_path}/run"]) == 0
    assert "rougeLsum" in capsys.readouterr().out
    text = tmp_path / "text.txt"
    text.write_text(rows[0]["article"])
    assert summarize.main([f"--model={tmp_path}/run", str(text)]) == 1
    assert "was trained with queries; pass --query" in capsys.readouterr().err
    assert summarize.main([f"--model={tmp_path}/run", "--query=what is 0?", "--json", str(text)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert all(end <= len(rows[0]["article"]) for _, end in record["kept_spans"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"document": "a b", "summary": "c"}, {"document": "a b"}], "train.jsonl.gz:2: no field 'summary'"),
        ([{"document": 7, "summary": "c"}], "train.jsonl.gz:1: field 'document' is int"),
    ],
)
def test_data_that_cannot_be_used_are_named(rows, message, cache, tmp_path):
    write_split(tmp_path / "data", "train", rows)
    write_split(tmp_path / "data", "validation", rows)
    with pytest.raises(UserError) as error:
        train.train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    assert message in str(error.value) and "train.jsonl.gz" in str(error.value)


def test_a_missing_split_and_no_data_dir(cache, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.data_dir=.*no such folder"):
        train.train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"train\.jsonl"):
        train.train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    with pytest.raises(UserError, match=r"--config\.data\.data_dir=FOLDER"):
        train.train(jsonl_settings(""), tmp_path / "run", cache, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/embedded.py"], "--workdir is missing"),
        (["--workdir={}"], "--config is missing"),
        (["--config=configs/nothing.py", "--workdir={}"], "configs/nothing.py"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.loop.stepz=3"], "stepz"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.loop.steps=many"], "steps"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.simcas.align=median"], "align='median'"),
        (["--config=configs/embedded.py", "--workdir=/proc/nowhere"], "--workdir=/proc/nowhere: cannot be written"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.simcas.chunk_length=128"], "chunk_length=128"),
    ],
)
def test_trainings_flags_are_checked_in_one_line(arguments, message, tmp_path, cache):
    out = user_runs("jax_simcas.train", *(a.format(tmp_path / "run") for a in arguments), cache=cache)
    assert out.returncode == 1 and message in one_line_error(out.stderr)


def pretrained_folder(folder, extra_tokens=0):
    """A tiny BART without a selector, as the hub would hold it, with a tokenizer beside it."""
    words = tuple(f"word-{i}" for i in range(30))
    word_level(words, folder)
    size = len(load_tokenizer(folder)) - extra_tokens
    bart = dataclasses.replace(tiny_config().bart, vocab_size=size)
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model_of(bart))
    hub.save(folder, bart, {name: value for name, value in params.items() if name != "selector"})
    return folder


def test_a_pretrained_folder_is_fine_tuned_and_used_as_it_is(cache, tmp_path, capsys):
    model = pretrained_folder(tmp_path / "bart")
    rows = [{"document": " ".join(f"word-{(i + j) % 30}" for j in range(60)), "summary": f"word-{i}"} for i in range(9)]
    write_split(tmp_path / "data", "train", rows)
    write_split(tmp_path / "data", "validation", rows[:3])
    settings = dataclasses.replace(jsonl_settings(tmp_path / "data"), pretrained=str(model))
    train.train(settings, tmp_path / "run", cache, progress=False)
    assert "no selector in this checkpoint" in capsys.readouterr().err
    assert evaluate.main([f"--workdir={tmp_path}/run"]) == 0
    text = tmp_path / "text.txt"
    text.write_text(rows[0]["document"])
    for source in (tmp_path / "run", model):
        assert summarize.main([f"--model={source}", "--max-length=6", str(text)]) == 0
    assert "no selector in this checkpoint" in capsys.readouterr().err


def test_a_tokenizer_that_does_not_fit_the_weights_is_refused(cache, tmp_path, capsys):
    model = pretrained_folder(tmp_path / "bart", extra_tokens=5)
    (tmp_path / "text.txt").write_text("word-1")
    assert summarize.main([f"--model={model}", str(tmp_path / "text.txt")]) == 1
    assert "tokens but the weights have" in one_line_error(capsys.readouterr().err)


def test_a_workdir_in_a_bucket_has_its_small_files_copied_both_ways(monkeypatch, tmp_path):
    """With the paths of the real library, which refuse in buckets some of what they do on disks."""
    bucket, disk = tmp_path / "bucket", LocalFileSystem(auto_mkdir=True)
    monkeypatch.setattr(fsspec_backend, "fs", lambda path: DirFileSystem(str(bucket), disk))
    here = workdir_lib.Workdir.at("gs://b/run/", tmp_path / "one")
    assert here.checkpoints == "gs://b/run/checkpoints"
    (here.local / "tokenizer").mkdir()
    (here.local / "tokenizer" / "vocab.json").write_text("{}")
    (here.local / "config.json").write_text("1")
    here.publish()
    (bucket / "gs:" / "b" / "run" / "checkpoints" / "1").mkdir(parents=True)
    (bucket / "gs:" / "b" / "run" / "checkpoints" / "1" / "large").write_text("x")
    there = workdir_lib.Workdir.at("gs://b/run", tmp_path / "two")
    found = sorted(str(path.relative_to(there.local)) for path in there.local.rglob("*") if path.is_file())
    assert found == ["config.json", "tokenizer/vocab.json"]
    assert workdir_lib.Workdir.at(tmp_path / "plain", tmp_path).checkpoints == str(tmp_path / "plain" / "checkpoints")


def test_a_bucket_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    def refuse(name):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(workdir_lib.epath, "Path", refuse)
    with pytest.raises(UserError, match=r"--workdir=gs://b/run: cannot be read \(no gcsfs\)"):
        workdir_lib.Workdir.at("gs://b/run", tmp_path)
