"""Training: what a run leaves, how it resumes, and what it says of data and settings that cannot be used."""

import contextlib
import dataclasses
import io
import re
import shutil

import jax
import numpy as np
import pytest
from helpers import ROOT, figures, one_line_error, read_config, tiny_config
from trained import jsonl_settings, pretrained_folder, user_runs, write_split

from jax_simcas import evaluate, summarize
from jax_simcas import train as train_program
from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common import metric_log
from jax_simcas.common.errors import UserError
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.run import build
from jax_simcas.run import config as config_lib
from jax_simcas.run.loop import train
from jax_simcas.run.processes import make_job


def test_training_leaves_metrics_curves_settings_and_checkpoints(workdir):
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


def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(workdir, cache, tmp_path, capsys):
    train(tiny_config(**{"loop.steps": 3}), tmp_path, cache, progress=False)
    train(tiny_config(), tmp_path, cache, progress=False)
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
    assert train(tiny_config(), workdir, cache, progress=False).step == 4
    said = capsys.readouterr().err
    assert said.endswith("\nstep 4 of 4 is done: nothing to train; raise --config.loop.steps to go on\n")
    assert train(tiny_config(**{"loop.steps": 2}), workdir, cache, progress=False).step == 4
    said = capsys.readouterr().err
    assert said.endswith(
        "\nstep 4 is done, loop.steps=2 asks for 2: nothing to train; raise --config.loop.steps to go on\n"
    )
    assert "resuming" not in said
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_workdir_of_another_run_is_refused(workdir, cache):
    with pytest.raises(UserError, match=r"optimizer\.max_lr: 0\.021 -> 0\.5"):
        train(tiny_config(**{"optimizer.max_lr": 0.5}), workdir, cache, progress=False)


def test_training_starts_from_another_workdir(workdir, cache, tmp_path, capsys):
    settings = tiny_config(**{"pretrained": str(workdir), "loop.steps": 1, "simcas.align": "none"})
    train(settings, tmp_path / "second", cache, progress=False)
    assert f"{workdir}: checkpoint of step " in capsys.readouterr().err
    with jax.set_mesh(mesh := make_job(settings.mesh, settings.data.batch_size).mesh):
        start = build.new_model(settings, cache, mesh)
    trained = build.load_model(str(workdir))
    assert start.settings.bart == trained.settings.bart and start.settings.simcas.align == "none"
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(trained.params), strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "empty" / "tokenizer").mkdir(parents=True)
    with pytest.raises(UserError, match="empty: a workdir without a checkpoint; train it first"):
        train(tiny_config(pretrained=str(tmp_path / "empty")), tmp_path / "third", cache, progress=False)


def resume(workdir, cache, steps=5):
    return train(tiny_config(**{"loop.steps": steps}), workdir, cache, progress=False)


def test_metrics_record_each_checkpoint_and_how_long_training_waited(workdir):
    rows = [row for row in metric_log.read_metrics(workdir / "metrics.jsonl") if row["split"] == "checkpoint"]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 < row["stall_seconds"] <= row["write_seconds"] < 60 for row in rows)


def test_training_warns_of_a_deleted_checkpoint_and_resumes_from_the_one_before(workdir, cache, tmp_path, capsys):
    folder = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "4")
    resume(folder, cache)
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
        resume(folder, cache)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_training_does_not_start_over_from_damage(workdir, cache, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "run")
    for step in (2, 4):
        (folder / "checkpoints" / str(step) / "meta" / "metadata").write_bytes(b"")
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no good checkpoint \(.*/4: skipped, .*/2: skipped, .* move the folder away"):
        resume(folder, cache)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_in_its_first_save_says_so_and_starts_again(cache, tmp_path, capsys):
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "split": "train", "loss": 9.0}\n')
    resume(tmp_path, cache, steps=1)
    assert f"warning: {left}: skipped, its save never finished\n" in capsys.readouterr().err
    assert [row["step"] for row in figures(tmp_path) if row["split"] == "train"] == [1]


def test_losses_that_stay_not_finite_stop_training_and_name_the_checkpoint(cache, tmp_path):
    changes = {"optimizer.max_lr": 1e35, "optimizer.warmup": 1, "loop.steps": 50, "loop.checkpoint_every": 1}
    settings = tiny_config(**changes | {"loop.max_skipped": 3})
    with pytest.raises(UserError, match=r"not finite for 3 batches in a row.*the last good one is .*checkpoints/\d+"):
        train(settings, tmp_path, cache, progress=False)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_params(tmp_path / "checkpoints", "latest")[0]))
    assert figures(tmp_path)[-1]["skipped"] == 1


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Standard error and metrics of a run of two steps of two batches, whose capacity is a few states."""
    folder = tmp_path_factory.mktemp("narrow")
    changes = {"simcas.capacity": 8, "optimizer.accumulate_step": 2, "loop.steps": 2, "optimizer.warmup": 50}
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        train(tiny_config(**changes), folder / "run", folder / "cache")
    return text.getvalue(), figures(folder / "run")


def test_training_says_what_a_step_takes_and_what_it_compiles_once(narrow):
    err, _ = narrow
    assert "2 steps to train, 2 batches of 4 documents each; 100,000 rows to learn from" in err
    for name in ("transformer's step", "selector's step", "validation"):
        assert err.count(f"compiling the {name} for 4 chunks and 8 target tokens\n") == 1


def test_training_warns_of_a_warmup_beyond_its_steps_and_names_the_rates(narrow):
    settings = tiny_config()
    rate = settings.optimizer.learning_rate(2)
    (warning,) = [line for line in narrow[0].splitlines() if "warmup" in line]
    assert "config.optimizer.warmup=50 exceeds the 2 steps of this run" in warning
    assert f"would peak at max_lr / sqrt(warmup) = {settings.optimizer.max_lr / 50**0.5:.2g}" in warning
    assert f"ends at {float(rate(1)):.2g}" in warning


def test_kept_is_what_the_decoder_sees_and_what_finds_no_place_is_a_warning(narrow):
    err, rows = narrow
    for row in rows:
        assert row["kept"] == pytest.approx(row["selection/kept"] * (1 - row["selection/overflow"]))
        assert row["kept"] * 60 <= 7.001  # of the 60 candidates, beside the document state
    assert err.count("finds no place in config.simcas.capacity=8, and the decoder does not see it") == 1
    shown = re.findall(r"kept ([\d.]+)%", err)
    assert shown and max(map(float, shown)) <= 100 * 7 / 60 + 0.05  # rounded


def test_a_first_attempt_that_fails_leaves_its_folder_to_other_settings(cache, tmp_path, capsys):
    rows = [{"document": "a tree and a house", "summary": "a tree"}] * 4
    write_split(tmp_path / "data", "train", rows)
    with pytest.raises(UserError, match=r"validation\.jsonl"):
        train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    train(tiny_config(**{"loop.steps": 1}), tmp_path / "run", cache, progress=False)
    assert config_lib.read_json(tmp_path / "run" / "config.json").data.source == "embedded"


def test_settings_and_tokenizer_that_no_step_has_used_are_replaced(workdir, cache, tmp_path):
    shutil.copy(workdir / "config.json", tmp_path)
    word_level(("another", "vocabulary"), tmp_path / "tokenizer")
    (tmp_path / "metrics.jsonl").touch()
    changed = tiny_config(**{"loop.steps": 1, "optimizer.max_lr": 0.5})
    train(changed, tmp_path, cache, progress=False)
    assert config_lib.read_json(tmp_path / "config.json").optimizer.max_lr == 0.5
    assert len(load_tokenizer(tmp_path / "tokenizer")) == len(load_tokenizer(workdir / "tokenizer"))


@pytest.mark.slow
def test_training_warns_of_tokens_that_the_tokenizer_does_not_know(cache, tmp_path, capsys):
    model = pretrained_folder(tmp_path / "bart")
    rows = [{"document": "word-1 and other words that it has never seen", "summary": "word-1"}] * 4
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, rows)
    settings = dataclasses.replace(jsonl_settings(tmp_path / "data"), pretrained=str(model))
    settings = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=1))
    train(settings, tmp_path / "run", cache, progress=False)
    assert "89 % of the documents' tokens are not in the tokenizer's vocabulary" in capsys.readouterr().err
    assert figures(tmp_path / "run")[0]["data/unknown"] == pytest.approx(8 / 9)


@pytest.mark.slow
def test_training_on_a_few_rows_sees_no_others(cache, tmp_path, monkeypatch):
    seen = set()
    original = SyntheticSource.__getitem__

    def noting(self, index):
        if self._split == "train":
            seen.add(int(index))
        return original(self, index)

    monkeypatch.setattr(SyntheticSource, "__getitem__", noting)
    train(tiny_config(**{"data.train_rows": 3, "data.batch_size": 4}), tmp_path, cache, progress=False)
    assert seen == {0, 1, 2}


@pytest.mark.slow
def test_training_without_selection_keeps_everything(cache, tmp_path):
    changes = {"simcas.policy": "all", "simcas.train_policy": "all", "loop.selector_every": 0}
    train(tiny_config(**changes), tmp_path, cache, progress=False)
    assert {row["selection/kept"] for row in figures(tmp_path)} == {1.0}


@pytest.mark.slow
def test_the_transformer_reads_everything_until_the_selector_starts(cache, tmp_path):
    changes = {"loop.selector_start": 2, "loop.selector_every": 1, "loop.steps": 3}
    train(tiny_config(**changes), tmp_path, cache, progress=False)
    train(tiny_config(**changes | {"loop.steps": 4}), tmp_path, cache, progress=False)  # a resumed run goes on with it
    rows = {row["step"]: row for row in figures(tmp_path) if row["split"] == "train"}
    assert [rows[step]["selection/kept"] == 1.0 for step in (1, 2, 3, 4)] == [True, True, False, False]
    assert ["reward" in rows[step] for step in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"document": "a b"}, {"document": "a b", "summary": None}], "train.jsonl.gz:1: no field 'summary'"),
        ([{"document": 7, "summary": "c"}], "train.jsonl.gz:1: field 'document' is int"),
    ],
)
def test_rows_that_cannot_be_read_are_named_and_leave_the_folder_to_others(rows, message, cache, tmp_path):
    write_split(tmp_path / "data", "train", rows)
    write_split(tmp_path / "data", "validation", rows)
    with pytest.raises(UserError) as error:
        train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    assert message in str(error.value) and "train.jsonl.gz" in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "tokenizer").exists()


def test_data_that_is_not_named_is_missed_before_weights_are_fetched(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("jax_simcas.run.build.load", None)
    for data_dir, message in (("", "config.data.data_dir is empty: pass --config"), ("/nowhere", "no such folder")):
        settings = read_config("finetune")[0]
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, data_dir=data_dir))
        with pytest.raises(UserError, match=message):
            train(settings, tmp_path, cache, progress=False)


def test_a_missing_split_or_folder_is_named(cache, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.data_dir=.*no such folder"):
        train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"train\.jsonl"):
        train(jsonl_settings(tmp_path / "data"), tmp_path / "run", cache, progress=False)
    with pytest.raises(UserError, match=r"--config\.data\.data_dir=FOLDER"):
        train(jsonl_settings(""), tmp_path / "run", cache, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nothing.py", "--workdir={}"], "configs/nothing.py"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.loop.stepz=3"], "stepz"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.loop.steps=many"], "steps"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.simcas.align=median"], "align='median'"),
        (["--config=configs/embedded.py", "--workdir=/proc/nowhere"], "--workdir=/proc/nowhere: cannot be written"),
        (["--config=configs/embedded.py", "--workdir={}", "--config.simcas.chunk_length=128"], "chunk_length=128"),
    ],
)
def test_trainings_flags_are_checked_in_one_line(arguments, message, tmp_path, cache, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert train_program.main([a.format(tmp_path / "run") for a in arguments]) == 1
    assert message in one_line_error(capsys.readouterr().err)


def test_a_wrong_flag_ends_the_process_of_training_in_one_line(tmp_path, cache):
    out = user_runs("jax_simcas.train", "--config=embedded", f"--workdir={tmp_path}/run", "--config.loop.stepz=3")
    assert out.returncode == 1 and "stepz" in one_line_error(out.stderr)


@pytest.mark.slow
def test_a_pretrained_folder_is_fine_tuned_and_used_as_it_is(cache, tmp_path, capsys):
    model = pretrained_folder(tmp_path / "bart")
    rows = [{"document": " ".join(f"word-{(i + j) % 30}" for j in range(60)), "summary": f"word-{i}"} for i in range(9)]
    write_split(tmp_path / "data", "train", rows)
    write_split(tmp_path / "data", "validation", rows[:3])
    settings = dataclasses.replace(jsonl_settings(tmp_path / "data"), pretrained=str(model))
    train(settings, tmp_path / "run", cache, progress=False)
    assert "no selector in this checkpoint" in capsys.readouterr().err
    longer = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=5))
    train(longer, tmp_path / "run", cache, progress=False)  # its selector is in its checkpoint
    err = capsys.readouterr().err
    assert "resuming at step 4 of 5" in err and "no selector" not in err
    assert evaluate.main([f"--workdir={tmp_path}/run"]) == 0
    text = tmp_path / "text.txt"
    text.write_text(rows[0]["document"])
    for source in (tmp_path / "run", model):
        assert summarize.main([f"--model={source}", "--max-length=6", "--min-length=5", str(text)]) == 0
    assert "no selector in this checkpoint" in capsys.readouterr().err
