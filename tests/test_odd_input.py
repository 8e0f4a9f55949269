"""Odd files, settings and flags are read or refused by one line; and what `benchmark.odd_input` found."""

import json
import random
import shutil

import pytest
from helpers import ROOT, one_line_error

from jax_simcas import compare
from jax_simcas.benchmark import odd_input, odd_kinds, odd_runs, odd_values
from jax_simcas.common.errors import LONGEST, UserError
from jax_simcas.data.tokenizer import load_tokenizer, tokenize
from jax_simcas.evaluation.files import read_rows, read_scores

MODEL = ROOT / "examples/quickstart_model"
SCORE = {"mean": 0.5, "low": 0.4, "high": None, "count": 3}


class Still(random.Random):
    """Changes nothing."""

    def randint(self, a, b):
        return 0


def skip_without_its_package(kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("kind", odd_kinds.KINDS)
def test_each_kind_is_read_or_refused_by_one_line(kind):
    skip_without_its_package(kind)
    outcomes = [odd_runs.read_one(kind, number, seed=7) for number in range(8)]
    assert not [outcome for outcome in outcomes if outcome.result not in (odd_runs.READ, odd_runs.REFUSED)]


@pytest.mark.parametrize("kind", [kind for kind in odd_kinds.KINDS if kind != "flags"])
def test_what_is_not_changed_is_read(kind, tmp_path):
    skip_without_its_package(kind)
    odd_kinds.KINDS[kind].write(tmp_path, Still(0))()


def test_changes_depend_on_the_seed_alone():
    content = (MODEL / "tokenizer.json").read_bytes()
    made = [[odd_values.change_json(content, random.Random(seed)) for seed in range(30)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) == 30 and content not in made[0]


def multiline(folder, rng):
    def read():
        raise UserError("one\ntwo")

    return read


def half_written(folder, rng):
    return lambda: (folder / "x.json.part").write_text("")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder, rng: lambda: 1 / 0, "ZeroDivisionError in test_odd_input.py"),
        (multiline, "an error of 7 characters in 2 lines"),
        (half_written, "left behind: x.json.part"),
    ],
)
def test_faults_are_told_with_the_command_that_repeats_them(write, message, monkeypatch, capsys):
    monkeypatch.setattr(odd_runs, "KINDS", {"mine": odd_kinds.Kind(1, write)})
    assert odd_input.main(["--kinds=mine", "--only=3", "--seed=5"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"fault: --kinds mine --seed 5 --only 3: {message}") and "| mine |" in out.replace("  ", "")
    assert err.endswith("error: 1 of 1 inputs are neither read nor refused by one line\n")


def test_an_unknown_kind_is_named(capsys):
    assert odd_input.main(["--kinds=jsonl,xml"]) == 2
    assert "no kind 'xml'; there are text, html" in one_line_error(capsys.readouterr().err)


@pytest.mark.slow
def test_a_process_counts_and_what_hangs_is_told(capsys, monkeypatch):
    assert odd_input.main(["--count=40", "--kinds=text,csv"]) == 0
    assert "| all" in capsys.readouterr().out
    reader = odd_runs.Reader(0, seconds=1)
    monkeypatch.setattr(reader, "_seconds", 0)
    assert reader.read("jsonl", 0).result == odd_runs.SLOW
    monkeypatch.setattr(reader, "_seconds", 60)
    assert reader.read("text", 0).result == odd_runs.READ
    reader.stop()


def test_of_a_long_message_the_middle_is_left_out():
    message = str(UserError(f"config.json: vocab_size={'x' * 10_000}: expected a number"))
    assert len(message) < LONGEST and message.startswith("config.json: vocab_size=xxx")
    assert message.endswith("xxx: expected a number") and " ... " in message
    assert str(UserError(message)) == message


def tokenizer_with(folder, name, change):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / file, folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", lambda config: config.update(model_max_length="many")),
        ("tokenizer_config.json", lambda config: config.update(model_max_length=[])),
        ("tokenizer.json", lambda made: made["model"].update(unk_token="nothing")),
    ],
)
def test_a_tokenizer_with_odd_settings(name, change, tmp_path):
    with pytest.raises(UserError) as raised:
        tokenize(load_tokenizer(tokenizer_with(tmp_path, name, change)), "The roof leaks \u2603.")
    assert str(raised.value).count(str(tmp_path)) == 1 and "tokenizer" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": []}, "scores is []"),
        ({"scores": {"rouge1": 0.5}}, "scores.rouge1 is 0.5, expected numbers mean, low, high, count"),
        ({"scores": {"rouge1": SCORE | {"low": "0.4"}}}, "scores.rouge1 is {'mean': 0.5, 'low': '0.4'"),
        ({"evidence": {"recall": {"mean": 0.5}}}, "evidence.recall is {'mean': 0.5}, expected numbers"),
        ({"nll": "low"}, "nll is 'low'"),
        ({"kept_share": [0.5]}, "kept_share is [0.5]"),
        ({"documents": "3"}, "documents is '3'"),
        ({"rouge_tokenizer": 3}, "rouge_tokenizer is 3"),
    ],
)
def test_an_evaluation_with_odd_scores_is_named(change, message, tmp_path, capsys):
    good = {"scores": {"rouge1": SCORE}, "kept_share": None, "evidence": {}, "documents": 3}
    (tmp_path / "scores.json").write_text(json.dumps(good))
    assert read_scores(tmp_path) == good
    (tmp_path / "scores.json").write_text(json.dumps(good | change))
    assert compare.main([f"a={tmp_path}"]) == 1
    error = one_line_error(capsys.readouterr().err)
    assert (
        error.startswith(f"error: {tmp_path / 'scores.json'}: {message}") and "run jax_simcas.evaluate again" in error
    )


@pytest.mark.parametrize("read", [read_rows, read_scores])
def test_what_is_nested_too_deeply_is_not_json(read, tmp_path):
    for name in ("predictions.jsonl", "scores.json"):
        (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(UserError, match="JSON"):
        read(tmp_path)
