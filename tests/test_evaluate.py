"""Evaluating a run: scores, a row per document, other policies, and what is said of bad flags."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import figures, one_line_error, page_data, page_kept, tiny_bert, tiny_config

from jax_simcas import compare, evaluate
from jax_simcas.data.batches import as_example, pad_batch
from jax_simcas.data.features import featurize
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.evaluation import comparison, metrics
from jax_simcas.method.model import forward
from jax_simcas.run import build
from jax_simcas.run import config as config_lib


def test_evaluate_writes_scores_and_a_row_per_document(workdir, cache, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=5"]) == 0
    out = capsys.readouterr().out
    assert "| exact_match: SQuAD exact match, best of the answers" in out
    assert "5 documents of test" in out and "times as likely to be kept" in out
    folder = workdir / "evaluation" / "test"
    scores = json.loads((folder / "scores.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(5)]
    assert scores["documents"] == 5 and scores["documents_cut"] == 0 and scores["lead_words"] == 3
    assert scores["step"] == 4
    assert scores["scores"]["f1"]["mean"] == pytest.approx(np.mean([row["scores"]["f1"] for row in rows]))
    assert scores["kept_share"] == sum(row["kept"] for row in rows) / sum(row["candidates"] for row in rows)


def test_attention_to_evidence_is_that_of_one_document_after_the_other(workdir, cache, tmp_path, capsys):
    flags = ["--split=test", "--limit=3", "--num-beams=1", "--batch-size=3", f"--output={tmp_path}"]
    assert evaluate.main([f"--workdir={workdir}", *flags]) == 0
    assert re.search(
        r"of what was kept is evidence \(precision\) and gets [\d.]+ % of its attention", capsys.readouterr().out
    )
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    predictor = build.load_summarizer(workdir).predictor
    params = jax.tree.map(jnp.asarray, predictor.params)
    source = SyntheticSource("test", tiny_config().data.embedded)
    for number, row in enumerate(rows):
        features = featurize(source[number], predictor.tokenizer, predictor.reading)
        batch = pad_batch([features], predictor.reading, predictor.tokenizer.pad_token_id, 1)
        example = jax.tree.map(lambda x: jnp.asarray(x[0]), as_example(batch))
        out = forward(params, predictor.model, example)
        marked, real = (batch[name][0][:, 1:].ravel() for name in ("evidence_mask", "token_mask"))
        weights = np.zeros(real.size + 1)  # the last: of no candidate
        weights[np.asarray(out.encoded.compacted.index)] = np.asarray(out.cross_attention)[1:]
        share, (total, count) = weights[:-1][real], row["evidence"]["evidence_attended"]
        assert count == row["evidence"]["evidence_precision"][1] > 0
        assert total / count == pytest.approx(share[marked[real]].sum() / share.sum(), rel=1e-4)


def test_evaluate_counts_empty_summaries_and_unknown_tokens(workdir, cache, tmp_path, capsys):
    assert (
        evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=3", "--num-beams=1", f"--output={tmp_path}"])
        == 0
    )
    out = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    empty = sum(not row["prediction"] for row in rows)
    assert scores["empty_predictions"] == empty and (f"{empty} of 3 summaries are empty" in out) == (empty > 0)
    assert all(row["tokens"] == 4 * 14 and row["unknown_tokens"] == 0 for row in rows)
    assert scores["unknown_share"] == 0 and "vocabulary" not in out


def test_what_finds_no_place_is_counted_and_told(workdir, cache, tmp_path, capsys):
    flags = ["--policy=all", "--num-beams=1", "--limit=2", f"--output={tmp_path}"]
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--config.simcas.capacity=10", *flags]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all(row["kept"] == 9 and row["kept"] + row["overflow"] == row["candidates"] == 60 for row in rows)
    assert "warning: 85 % of what the selector chooses finds no place in config.simcas.capacity=10" in out
    assert json.loads((tmp_path / "scores.json").read_text())["overflow_share"] == 51 / 60
    assert evaluate.main([f"--workdir={workdir}", "--split=test", *flags]) == 0
    assert "finds no place" not in capsys.readouterr().out


def test_documents_without_a_reference_are_predicted_and_not_scored(workdir, cache, tmp_path, capsys):
    rows = [{"document": f"ask-0 word-{i}", "summary": "value-0-1"} for i in range(2)]
    bare = [{"document": "ask-0 word-3"}, {"document": "ask-0 word-4", "summary": None}]
    flags = ["--config.data.source=jsonl", f"--data-dir={tmp_path}", "--num-beams=1", f"--output={tmp_path / 'out'}"]

    def evaluated(records):
        (tmp_path / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert evaluate.main([f"--workdir={workdir}", "--split=test", *flags]) == 0
        lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        return capsys.readouterr().out, scores, [json.loads(line) for line in lines]

    with_references, mixed, alone = map(evaluated, (rows, rows + bare, bare))
    assert "4 documents of test" in mixed[0] and "2 documents have no reference: predicted, not scored" in mixed[0]
    for name in ("scores", "lead", "nll", "lead_words"):
        assert mixed[1][name] == with_references[1][name]
    assert [bool(row["scores"]) for row in mixed[2]] == [True, True, False, False]
    assert [row["prediction"] for row in mixed[2]] == [row["prediction"] for row in with_references[2] + alone[2]]
    assert alone[1]["scores"] == {} and "| score" not in alone[0] and "nats per token" not in alone[0]
    assert "2 documents have no reference: predicted, not scored" in alone[0]
    out = str(tmp_path / "out")
    assert evaluate.main(["--compare", out, out]) == 1
    assert "no row has a reference; there is nothing to compare" in one_line_error(capsys.readouterr().err)


def test_without_a_reference_nothing_attends_to_evidence(workdir, cache, tmp_path, capsys):
    rows = [{"document": "ask-0 word-3", "evidence": [[0, 5]]}, {"document": "ask-0 word-4", "evidence": [[6, 12]]}]
    flags = ["--config.data.source=jsonl", f"--data-dir={tmp_path}", "--num-beams=1", "--policy=all"]

    def evaluated(*records):
        (tmp_path / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert evaluate.main([f"--workdir={workdir}", "--split=test", *flags, f"--output={tmp_path / 'out'}"]) == 0
        lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
        return capsys.readouterr().out, ["evidence_attended" in json.loads(line)["evidence"] for line in lines]

    out, attended = evaluated(*rows)
    assert attended == [False, False] and "marked evidence: kept 100.0 %" in out and "attention" not in out
    out, attended = evaluated(rows[0] | {"summary": "value-0-1"}, rows[1])
    assert attended == [True, False] and "of its attention" in out and "nan" not in out


def test_a_selection_of_nothing_is_one_clear_line(workdir, cache, tmp_path, capsys):
    flags = ["--policy=threshold", "--config.simcas.threshold=1.0", "--limit=2", f"--output={tmp_path}"]
    assert evaluate.main([f"--workdir={workdir}", "--split=test", *flags]) == 0
    out = capsys.readouterr().out
    assert "2 documents of test; nothing was kept: the decoder saw the document state alone\n" in out
    assert "nan" not in out and "evidence" not in out


def test_what_a_policy_draws_depends_on_the_row_and_not_on_batches(workdir, cache, tmp_path):
    rows = []
    for size in (1, 3):
        flags = ["--policy=random", "--config.simcas.budget=5", "--limit=4", f"--config.data.batch_size={size}"]
        flags += ["--num-beams=1", "--max-length=4", f"--output={tmp_path / str(size)}"]
        assert evaluate.main([f"--workdir={workdir}", "--split=test", *flags]) == 0
        lines = (tmp_path / str(size) / "predictions.jsonl").read_text().splitlines()
        rows.append([(json.loads(line)["prediction"], round(json.loads(line)["nll"][0], 3)) for line in lines])
    assert rows[0] == rows[1]


def test_a_step_without_a_checkpoint_names_those_with_one(workdir, cache, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--step=7"]) == 1
    assert "no checkpoint of step 7; there are 2, 4" in one_line_error(capsys.readouterr().err)


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


def test_each_document_gets_a_page_with_its_evidence(workdir, cache, tmp_path, capsys):
    flags = [f"--workdir={workdir}", "--split=test", "--limit=5", "--min-length=6"]
    assert evaluate.main([*flags, "--html", f"--output={tmp_path}"]) == 0
    assert f"what was kept of each document: {tmp_path}/html/index.html" in capsys.readouterr().out
    source = SyntheticSource("test", tiny_config().data.embedded)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    index = (tmp_path / "html" / "index.html").read_text()
    assert re.findall(r'href="([^"]+)">([^<]+)<', index) == [(f"{i}.html", f"test-{i}") for i in range(5)]
    for number, row in enumerate(rows):
        data = page_data(tmp_path / "html" / f"{number}.html")
        text, kept = source[number].document, page_kept(data)
        assert data["document"] == text and data["summary"] == row["prediction"]
        assert [text[start:end] for start, end in data["evidence"]] == [
            text[start:end] for start, end in source[number].evidence
        ]
        assert len(kept) == len(text.split()) and 0 <= row["kept"] - sum(kept) <= 4  # chunks, of which each has an end
        assert len(data["written"]["spans"]) == len(row["prediction"].split())
    page = (tmp_path / "html" / "0.html").read_text()
    assert source[0].summary in page and f"<h1>{workdir.name}: test-0</h1>" in page
    assert evaluate.main([*flags, f"--html={tmp_path}/scores.json", f"--output={tmp_path}/more"]) == 1
    assert "--html=" in one_line_error(capsys.readouterr().err)
    nothing = ["--policy=threshold", "--config.simcas.threshold=1.0", f"--html={tmp_path}/nothing"]
    assert evaluate.main([*flags, *nothing, f"--output={tmp_path}/more"]) == 0
    data = page_data(tmp_path / "nothing" / "4.html")
    assert not any(page_kept(data)) and not any(data["written"]["places"])


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
    capsys.readouterr()
    assert compare.main(runs) == 0 and capsys.readouterr().err == ""
    folders = [f"{workdir}/evaluation/{name}" for name in ("validation", "validation-random")]
    assert evaluate.main(["--compare", *folders]) == 0
    means = [json.loads((Path(f) / "scores.json").read_text())["scores"]["f1"]["mean"] for f in folders]
    cells = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| f1")).split("|")
    assert [float(cell) for cell in cells[2:4]] == pytest.approx(means, abs=0.005)
    assert float(cells[4].split()[0]) == pytest.approx(means[0] - means[1], abs=0.005)


def test_evaluations_of_other_documents_are_compared_with_a_warning(tmp_path, capsys):
    score = {"mean": 1.0, "low": 0.5, "high": 1.5, "count": 2}
    summary = {"split": "test", "documents": 2, "source": "rows", "kept_share": 0.5, "evidence": {}}
    runs = []
    for name, change in (("A", {}), ("B", {"split": "validation"}), ("C", {"documents": 1}), ("D", {"source": "x"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({**summary, "scores": {"f1": score}, **change}))
        runs.append(f"{name}={tmp_path / name}")
    assert compare.main(runs) == 0
    captured = capsys.readouterr()
    assert captured.out.count("1.0 [0.5, 1.5]") == 4
    assert captured.err.splitlines() == [
        f"warning: A and {name} are evaluations of different documents ({what})"
        for name, what in (
            ("B", "split: test and validation"),
            ("C", "documents: 2 and 1"),
            ("D", "source: rows and x"),
        )
    ]


def test_the_picture_of_a_comparison_has_the_kept_share():
    got = comparison.kept_score({"kept_share": 0.25, "documents": 3})
    assert metrics.measure_of(*got).title == "Kept candidates"
    (score,) = got.values()
    assert score.mean == 25 and np.isnan(score.low) and score.count == 3


def test_evaluates_nll_is_that_of_training(workdir, cache, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--split=validation", "--step=latest", "--limit=4"]) == 0
    assert "nats per token" in capsys.readouterr().out
    folder = workdir / "evaluation" / "validation"
    got = json.loads((folder / "scores.json").read_text())["nll"]
    logged = [row for row in figures(workdir) if row["split"] == "validation"][-1]
    assert got["mean"] == pytest.approx(logged["nll"], rel=1e-5) and got["count"] == 4
    rows = [json.loads(line)["nll"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert got["mean"] == pytest.approx(sum(nats for nats, _ in rows) / sum(tokens for _, tokens in rows))


def test_references_that_are_cut_for_the_nll_are_told(workdir, cache, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=3", "--config.simcas.max_target_len=3"]) == 0
    out = capsys.readouterr().out
    assert "nats per token; 3 of 3 references are cut at max_target_len=3 for it" in " ".join(out.split())


def test_evaluation_changes_settings_for_itself(workdir, cache, capsys):
    longer = ["--config.data.embedded.chunks=7", "--config.data.batch_size=2"]
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=3", "--num-beams=1"]) == 0
    capsys.readouterr()
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=2", *longer]) == 0
    warning = f"warning: {workdir}/evaluation/test has an evaluation with --num-beams=1 --limit=3, which this one will"
    assert warning in capsys.readouterr().err
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--limit=2", *longer]) == 0
    assert "will replace" not in capsys.readouterr().err
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


def test_a_document_is_scored_the_same_in_any_batch(workdir, cache, capsys):
    read = lambda: json.loads((workdir / "evaluation" / "test" / "scores.json").read_text())["scores"]
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--batch-size=1"]) == 0
    alone = read()
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--batch-size=4"]) == 0
    assert read() == alone
