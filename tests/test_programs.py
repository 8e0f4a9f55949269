"""The programs as a user runs them: a whole tiny run, resuming, and what is said about bad input."""

import dataclasses
import gzip
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_simcas import compare, evaluate, pretrained, program, summarize, train
from jax_simcas import settings as settings_lib
from jax_simcas.checkpoint import load_params
from jax_simcas.data.embedded import EmbeddedSource
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.errors import UserError
from jax_simcas.model import SimcasConfig, init_params

ROOT = Path(__file__).parent.parent
TIMES = ("tokens_per_second", "time")
TINY = {
    "bart.d_model": 16,
    "bart.encoder_ffn_dim": 32,
    "bart.decoder_ffn_dim": 32,
    "bart.encoder_attention_heads": 2,
    "bart.decoder_attention_heads": 2,
    "data.batch_size": 4,
    "data.embedded.chunks": 4,
    "data.embedded.held_out_rows": 6,
    "data.chunk_buckets": (4,),
    "loop.steps": 4,
    "loop.log_every": 1,
    "loop.eval_every": 2,
    "loop.checkpoint_every": 2,
    "loop.eval_documents": 4,
}


def tiny_config(**changes):
    spec = importlib.util.spec_from_file_location("embedded_config", ROOT / "configs" / "embedded.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(TINY | changes)
    return settings_lib.from_config(config)


def as_flags(changes):
    return [f"--config.{name}={value}" for name, value in (TINY | changes).items()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("JAX_SIMCAS_CACHE")
    os.environ["JAX_SIMCAS_CACHE"] = str(folder)
    program.prepare()  # the compilation cache
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
    path.write_text(EmbeddedSource("test", tiny_config().data.embedded)[0].document, encoding="utf-8")
    return path


def user_runs(*arguments, cache=None, **options):
    """A program in a process of its own."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if cache:
        env["JAX_SIMCAS_CACHE"] = str(cache)
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options)


def one_line_error(out):
    """The error's text; there must be no traceback beside it."""
    lines = [line for line in out.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in out, out
    return lines[0]


def figures(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def test_training_leaves_everything_it_promises(workdir):
    rows = figures(workdir)
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [2, 4]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert {"loss", "nll", "reward", "selection/kept", "ppo/approx_kl"} <= rows[-2].keys()
    assert (workdir / "curves.png").stat().st_size > 1000
    assert {"loss.png", "reward.png"} <= {path.name for path in (workdir / "curves").iterdir()}
    assert list((workdir / "tensorboard").rglob("events.*"))
    assert settings_lib.read_json(workdir / "config.json").bart.vocab_size > 20
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
    assert "exact_match" in out and "5 documents of test" in out and "times as likely" in out
    folder = workdir / "evaluation" / "test"
    scores = json.loads((folder / "scores.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(5)]
    assert scores["documents"] == 5 and scores["documents_cut"] == 0 and scores["lead_words"] == 3
    assert scores["scores"]["f1"]["mean"] == pytest.approx(np.mean([row["scores"]["f1"] for row in rows]))
    assert scores["kept_share"] == sum(row["kept"] for row in rows) / sum(row["candidates"] for row in rows)


def test_random_selection_spends_what_the_model_would(workdir, cache, capsys):
    for policy in ([], ["--policy=random"]):
        assert evaluate.main([f"--workdir={workdir}", "--split=validation", *policy]) == 0
    read = lambda name: (workdir / "evaluation" / name / "predictions.jsonl").read_text().splitlines()
    kept = [[json.loads(line)["kept"] for line in read(name)] for name in ("validation", "validation-random")]
    assert kept[0] == kept[1]
    runs = [f"{name}={workdir}/evaluation/{name}" for name in ("validation", "validation-random")]
    plot = workdir / "comparison.png"
    assert compare.main([*runs, f"--plot={plot}"]) == 0
    out = capsys.readouterr().out
    assert "validation-random" in out and "times as likely" in out and plot.stat().st_size > 1000


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
        (evaluate, ["--workdir={}", "--split=dev"], "split 'dev': the embedded task has"),
        (evaluate, ["--workdir={}", "--step=first"], "--step=first: expected best, latest or a number"),
        (evaluate, ["--workdir={}", "--step=99"], "99"),
        (evaluate, ["--workdir={}", "--output=/dev/null/x"], "--output=/dev/null/x: cannot be written"),
        (evaluate, ["--workdir={}", "--min-length=9"], "min_length"),
        (summarize, ["--model=nowhere/at/all"], "no such folder"),
        (summarize, ["--model={}", "--query=Why?", "x"], "was trained without queries"),
        (summarize, ["--model={}", "--policy=topk", "x"], "budget"),
        (compare, ["a"], "expected NAME=FOLDER"),
        (compare, ["a=nowhere"], "run jax_simcas.evaluate first"),
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
    fields = settings_lib.Fields(document="article", summary="abstract", query="ask")
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


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, cache, workdir):
    command = [sys.executable, "-m", "jax_simcas.train", "--config=configs/embedded.py", f"--workdir={tmp_path}"]
    command += as_flags({"loop.steps": 100_000, "loop.checkpoint_every": 100_000, "loop.eval_every": 100_000})
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_SIMCAS_CACHE": str(cache)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        end = time.monotonic() + 200
        while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=200)
    assert run.returncode == 75 and "the same command goes on" in err
    step = load_params(tmp_path / "checkpoints", "latest")[1]["step"]
    assert f"step {step} is saved" in err and figures(tmp_path)[-1]["step"] == step
    # What the process in between did is what an undisturbed run does.
    shared = min(step, 4)
    rows = lambda folder: [row for row in figures(folder) if row["split"] == "train"][:shared]
    for a, b in zip(rows(tmp_path), rows(workdir), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[k] for k in a if k != "split"], [b[k] for k in a if k != "split"], rtol=1e-3)


def pretrained_folder(folder, extra_tokens=0):
    """A tiny BART without a selector, as the hub would hold it, with a tokenizer beside it."""
    words = tuple(f"word-{i}" for i in range(30))
    word_level(words, folder)
    size = len(load_tokenizer(folder)) - extra_tokens
    bart = dataclasses.replace(tiny_config().bart, vocab_size=size)
    params = jax.jit(init_params, static_argnums=(1, 2))(jax.random.key(0), bart, SimcasConfig())
    pretrained.save(folder, bart, {name: value for name, value in params.items() if name != "selector"})
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
