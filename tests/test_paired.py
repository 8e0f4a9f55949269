"""`python -m jax_simcas.evaluate --compare A B`: documents paired by id, and what is said of files that do not fit."""

import json
import math
import re
import time

import numpy as np
import pytest
from helpers import one_line_error, tiny_bert

from jax_simcas import evaluate
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation import files, metrics, paired_bootstrap


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled"))


def row(id, **fields):
    return {"id": id, "prediction": "x", "reference": "x", "answers": []} | fields


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in rows), encoding="utf-8")
    return path


def with_scores(path, **scores):
    """A file with a row for each value."""
    columns = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    return write(path, [row(f"doc-{i}", scores=values) for i, values in enumerate(columns)])


def compared(capsys, *arguments):
    """Score -> its cells, of the table that is printed; and all of what is printed."""
    assert evaluate.main(["--compare", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert lines[0] == ["score", "A", "B", "A - B", "p", "documents"]
    return {cells[0].split(":")[0]: cells[1:] for cells in lines[2:]}, out


def test_two_files_are_compared_document_by_document(tmp_path, capsys):
    rng = np.random.default_rng(0)
    b = rng.uniform(0, 90, 50)
    a = b + rng.uniform(0, 2, 50)  # better by about one, on every document
    first = with_scores(tmp_path / "a" / "predictions.jsonl", rouge1=a.tolist(), rougeLsum=[5.0] * 50)
    second = with_scores(tmp_path / "b.jsonl", rouge1=b.tolist(), rougeLsum=[5.0] * 50, other=[1.0] * 50)
    rows, out = compared(capsys, tmp_path / "a", second)
    assert list(rows) == ["rouge1", "rougeLsum"]
    assert "rouge1: ROUGE-1 F1, stemmed" in out and f"A: {tmp_path}/a\nB: {second}" in out
    assert "10000 bootstrap resamples" in out and "seed 0" in out
    mean_a, mean_b, difference, p, documents = rows["rouge1"]
    assert (mean_a, mean_b, documents) == (f"{a.mean():.2f}", f"{b.mean():.2f}", "50")
    point, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", difference).groups())
    error = (a - b).std() / math.sqrt(50)
    assert point == pytest.approx((a - b).mean(), abs=0.005)
    assert low == pytest.approx(point - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(point + 1.96 * error, abs=0.2 * error)
    assert p == "< 0.0002"  # 2 / 10,001: no resample favours B
    assert rows["rougeLsum"] == ["5.00", "5.00", "0.00 [0.00, 0.00]", "1", "50"]
    assert compared(capsys, first, second)[0] == rows
    back = compared(capsys, second, first)[0]["rouge1"]
    assert back[:3] == [mean_b, mean_a, f"{-point:.2f} [{-high:.2f}, {-low:.2f}]"]


def test_the_seed_decides_the_interval(tmp_path, capsys):
    values = np.random.default_rng(0).normal(size=(2, 30)).tolist()
    files = [with_scores(tmp_path / f"{i}.jsonl", f1=values[i]) for i in (0, 1)]
    one, again, other = (compared(capsys, *files, f"--seed={seed}")[0]["f1"] for seed in (1, 1, 2))
    assert one == again and one != other and one[:2] == other[:2]


def test_rows_are_paired_by_id_and_not_by_place(tmp_path, capsys):
    rows = [row(i, scores={"f1": float(i)}) for i in range(6)]
    twice = [row("same", scores={"f1": 50.0}), row("same", scores={"f1": 70.0})]  # ids of user data may come twice
    a = write(tmp_path / "a.jsonl", [*rows, *twice])
    b = write(tmp_path / "b.jsonl", [*twice, *rows[::-1]])
    # (0 + 1 + ... + 5 + 50 + 70) / 8
    assert compared(capsys, a, b)[0]["f1"] == ["16.88", "16.88", "0.00 [0.00, 0.00]", "1", "8"]


def test_a_document_without_a_score_does_not_count(tmp_path, capsys):
    a = with_scores(tmp_path / "a.jsonl", f1=[10.0, None, 30.0, 40.0])
    b = with_scores(tmp_path / "b.jsonl", f1=[0.0, 90.0, None, 20.0])
    assert compared(capsys, a, b)[0]["f1"][:2] == ["25.00", "10.00"]
    assert compared(capsys, a, b)[0]["f1"][-1] == "2"
    nothing = with_scores(tmp_path / "c.jsonl", f1=[None] * 4)
    assert compared(capsys, a, nothing)[0]["f1"] == ["–", "–", "–", "–", "0"]


def test_scores_that_are_not_there_are_computed_from_the_texts(tmp_path, capsys):
    rows = [row("1", reference="red cat ran"), row("2", reference="red cat ran")]
    a = write(tmp_path / "a.jsonl", [r | {"prediction": "red cat sat"} for r in rows])
    b = write(tmp_path / "b.jsonl", [r | {"prediction": "a dog"} for r in rows])
    found, _ = compared(capsys, a, b)
    assert tuple(found) == metrics.SUMMARY_SCORES
    assert found["rouge1"][:2] == found["authors/rouge1"][:2] == ["66.67", "0.00"]
    assert list(compared(capsys, a, b, "--measures=f1,rouge2")[0]) == ["f1", "rouge2"]
    answers = {"answers": ["blue cat", "red cats"]}
    c = write(tmp_path / "c.jsonl", [r | answers | {"prediction": "red cat"} for r in rows])
    found, _ = compared(capsys, c, c)
    assert tuple(found) == metrics.ANSWER_SCORES and found["f1"][0] == "50.00"


def test_scores_of_the_file_go_before_computed_ones(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", [row("1", scores={"f1": 7.0}), row("2", scores={"f1": 9.0})])
    found, _ = compared(capsys, a, a, "--measures=f1,exact_match")
    assert found["f1"][0] == "8.00" and found["exact_match"][0] == "100.00"


def test_the_differences_are_drawn(tmp_path, capsys):
    a = with_scores(tmp_path / "a.jsonl", f1=[1.0, 2.0, 3.0], odd=[None] * 3)
    plot = tmp_path / "plots" / "difference.png"
    _, out = compared(capsys, a, a, f"--plot={plot}")
    assert f"plot: {plot}" in out and plot.read_bytes()[:4] == b"\x89PNG"


def test_bertscore_is_computed_from_the_texts(tmp_path, capsys):
    model = tiny_bert(tmp_path / "tiny-bert")
    rows = [row("1", reference="w1 w2"), row("2", reference="w3", answers=["w3 w4", "w5"])]
    a = write(tmp_path / "a.jsonl", [rows[0] | {"prediction": "w1 w2"}, rows[1] | {"prediction": "w5"}])
    b = write(tmp_path / "b.jsonl", [rows[0] | {"prediction": ""}, rows[1] | {"prediction": "w5"}])
    found, out = compared(capsys, a, b, f"--bertscore={model}@2", "--measures=rouge1")
    assert list(found) == ["rouge1", "bertscore/tiny-bert@2"]
    assert found["bertscore/tiny-bert@2"][:2] == ["100.00", "50.00"]
    assert "BERTScore F1, tiny-bert's layer 2" in out and "BERTScore reads at most 16 tokens of a text" in out
    bare = write(tmp_path / "bare.jsonl", [{"id": i, "scores": {"rouge1": 1}} for i in "12"])
    assert evaluate.main(["--compare", str(a), str(bare), f"--bertscore={model}@2", "--measures=rouge1"]) == 1
    assert "id '1' holds no bertscore/tiny-bert@2, and no" in one_line_error(capsys.readouterr().err)


def test_five_thousand_documents_take_seconds():
    rng = np.random.default_rng(0)
    a, b = ({("d", i): {"f1": float(x), "em": 0.0} for i, x in enumerate(rng.random(5000))} for _ in range(2))
    started = time.monotonic()
    found = paired_bootstrap.paired_differences(a, b, 0)
    assert found["f1"].difference.count == 5000 and time.monotonic() - started < 20  # two on an idle core


TEXTS = '{"id": "1", "prediction": "x", "reference": "y"}\n'


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (None, TEXTS, "a.jsonl: cannot be read (No such file"),
        ("", TEXTS, "a.jsonl: empty; there is nothing to compare"),
        ("\n \n", TEXTS, "a.jsonl: empty"),
        (TEXTS, TEXTS + "{oops", "b.jsonl:2: not JSON"),
        (TEXTS, "[1]", "b.jsonl:1: expected an object with an id"),
        (TEXTS, '{"prediction": "x", "reference": "y"}', "b.jsonl:1: expected an object with an id"),
        (TEXTS, '{"id": "1"}', "b.jsonl:1: neither scores nor a prediction and a reference to score"),
        (TEXTS, '{"id": "1", "prediction": "x"}', "b.jsonl:1: neither scores nor"),
        (TEXTS, '{"id": "1", "prediction": 7, "reference": "y"}', "b.jsonl:1: field 'prediction': expected a text"),
        (TEXTS, '{"id": "1", "prediction": "x", "answers": "y"}', "b.jsonl:1: field 'reference' or 'answers'"),
        (TEXTS, '{"id": "1", "scores": {"f1": "high"}}', "b.jsonl:1: field 'scores': expected an object of numbers"),
        (TEXTS, '{"id": "1", "scores": {"f1": 1e999}}', "b.jsonl:1: score 'f1' is not finite"),
        (TEXTS, '{"id": "1", "scores": {"f1": 1}}', "id '1' holds no rouge1, and no prediction and reference"),
        (TEXTS + TEXTS.replace("1", "2") * 2, TEXTS, "B lacks 2 of the 3 ids of A, the first is '2'; compare"),
        (TEXTS, TEXTS + TEXTS.replace("1", "2"), "A lacks 1 of the 2 ids of B, the first is '2'; compare"),
        (TEXTS, TEXTS.replace("y", "z"), "different references for 1 of 1 ids, the first is '1'; compare"),
    ],
)
def test_files_that_do_not_fit_are_one_line(a, b, message, tmp_path, capsys):
    for name, content in (("a", a), ("b", b)):
        if content is not None:
            (tmp_path / f"{name}.jsonl").write_text(content)
    assert evaluate.main(["--compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 1
    captured = capsys.readouterr()
    assert message in one_line_error(captured.err) and captured.out == ""


def test_other_files_are_refused(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", [row("1")])
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for bad, message in ((tmp_path / "binary.jsonl", "not UTF-8 (byte 0)"), (tmp_path, "predictions.jsonl: cannot be")):
        assert evaluate.main(["--compare", str(good), str(bad)]) == 1
        assert message in one_line_error(capsys.readouterr().err)
    assert evaluate.main(["--compare", str(good), str(good), "--measures=f1,bleu"]) == 1
    assert f"{good} has no score 'bleu'; expected some of rouge1" in one_line_error(capsys.readouterr().err)
    assert evaluate.main(["--compare", str(good), str(good), "--plot=/dev/null/x.png"]) == 1
    assert "/dev/null/x.png: cannot be written" in one_line_error(capsys.readouterr().err)


def test_a_folder_without_an_encoder_is_refused(tmp_path, capsys):
    pytest.importorskip("torch")
    good = write(tmp_path / "good.jsonl", [row("1")])
    assert evaluate.main(["--compare", str(good), str(good), f"--bertscore={tmp_path}/none"]) == 1
    assert "none: cannot be loaded (" in one_line_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --workdir --compare is required"),
        (["--workdir=w", "--compare", "a", "b"], "not allowed with"),
        (["--compare", "a"], "expected 2 arguments"),
        (["--workdir=w", "--plot=x.png"], "--measures and --plot go with --compare"),
    ],
)
def test_flags_that_do_not_go_together_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        evaluate.main(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_a_workdir_in_place_of_its_evaluation_names_those_within(tmp_path):
    (tmp_path / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / "evaluation" / "test" / "predictions.jsonl").write_text("")
    (tmp_path / "evaluation" / "test" / "scores.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "evaluation"):
        for read in (paired_bootstrap.read_predictions, files.read_scores):
            with pytest.raises(UserError, match=r"(cannot be read .*|not found); give one of .*/evaluation/test$"):
                read(folder)
