"""Summarising files: summaries, what was kept, and what is said of documents that cannot be read."""

import gzip
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import one_line_error, page_data, page_kept
from trained import jsonl_settings, pretrained_folder, write_split

from jax_simcas import evaluate, summarize
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation.summarizer import kept_spans
from jax_simcas.run import build, summarize_files
from jax_simcas.run import config as config_lib
from jax_simcas.run.loop import train


def test_summarize_prints_one_summary_a_file(workdir, cache, document, capsys, monkeypatch):
    assert summarize.main([f"--model={workdir}", str(document), str(document)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert "[2/2]" in captured.err and f"{len(document.read_text().split())} tokens in 4 chunks, " in captured.err
    assert summarize.main([f"--model={workdir}", "--json", str(document)]) == 0
    record = json.loads(capsys.readouterr().out)
    text = document.read_text()
    assert record["summary"] == lines[0] and record["chunks"] == 4 and record["cut_tokens"] == 0
    assert record["tokens"] == len(text.split()) and record["unknown_tokens"] == 0
    assert all(0 <= start < end <= len(text) for start, end in record["kept_spans"])
    assert record["kept"] > 0 and set(record["seconds"]) == {"tokenize", "encode_and_select", "generate"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    assert summarize.main([f"--model={workdir}"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]


def test_what_is_kept_is_within_the_capacity(workdir, cache, document, capsys):
    summarize.main([f"--model={workdir}", "--json", "--policy=all", "--capacity=10", str(document)])
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["kept"] == 9 and record["overflow"] == record["candidates"] - 9  # and the document's state
    share = 100 * record["overflow"] / record["candidates"]
    assert (
        f"warning: {document}: {share:.0f} % of what the selector chooses finds no place in config.simcas.cap"
        in captured.err
    )


def test_kept_spans_are_the_kept_tokens_text(workdir, cache, document, capsys):
    assert summarize.main([f"--model={workdir}", "--json", "--policy=all", str(document)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kept_spans"] == [[0, len(document.read_text().rstrip())]]


def test_a_span_ends_at_a_token_that_is_not_kept():
    """`ABC, DEF.` as five tokens, in chunks of four positions whose first and last are special."""
    offsets = np.array([[[-1, -1], [0, 3], [3, 4], [-1, -1]], [[-1, -1], [5, 7], [7, 8], [-1, -1]]])
    kept = lambda *rows: np.array(rows, bool)
    assert kept_spans(kept([1, 1, 1], [1, 1, 1]), offsets) == [[0, 8]]
    assert kept_spans(kept([1, 0, 1], [1, 1, 0]), offsets) == [[0, 3], [5, 8]]
    assert kept_spans(kept([1, 1, 0], [0, 1, 0]), offsets) == [[0, 4], [7, 8]]
    assert kept_spans(kept([0, 0, 1], [0, 0, 1]), offsets) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; there is nothing to summarise"),
        (b" \n\t\n", "only whitespace; there is nothing to summarise"),
        (b"word-1 \xff\xfe", "not UTF-8 (byte 7 is 0xff)"),
        ("word-1".encode("utf-16"), "not UTF-8 (it looks like UTF-16: save it as UTF-8)"),
        # With the time of now in it, workers may collect tests of different names.
        (gzip.compress(b"word-1", mtime=0), "not UTF-8 (it looks like gzip: unpack it first)"),
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


@pytest.mark.parametrize(
    ("text", "figures"), [("word-1", "1 token in 1 chunk, "), ("fact-0-0-1 " * 3, "3 tokens in 1 chunk, ")]
)
def test_a_few_words_are_a_document(text, figures, workdir, cache, tmp_path, capsys):
    (tmp_path / "short.txt").write_text(text)
    summarize.main([f"--model={workdir}", "--min-length=4", str(tmp_path / "short.txt")])
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1 and figures in captured.err


def test_a_text_of_unknown_tokens_is_refused_and_one_of_many_is_a_warning(workdir, cache, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("not in the vocabulary")
    assert summarize.main([f"--model={workdir}", str(tmp_path / "other.txt")]) == 1
    captured = capsys.readouterr()
    assert "none of its 4 tokens is in the tokenizer's vocabulary" in one_line_error(captured.err)
    assert not captured.out
    (tmp_path / "most.txt").write_text("Words of another task, and word-1 and word-1 again")
    assert summarize.main([f"--model={workdir}", str(tmp_path / "most.txt")]) == 1
    assert one_line_error(capsys.readouterr().err).endswith(
        "most.txt: this model cannot read the text: 7 of its 9 tokens are not in the tokenizer's vocabulary "
        "(unknown: 'Words', 'of', 'another')"
    )
    (tmp_path / "half.txt").write_text("word-1 and word-2 too")
    summarize.main([f"--model={workdir}", str(tmp_path / "half.txt")])
    assert "half.txt: 50 % of the documents' tokens are not in the tokenizer's" in capsys.readouterr().err


def test_only_empty_summaries_are_an_error(workdir, cache, document, tmp_path, capsys):
    ends_at_once = ["--max-length=2", "--min-length=0"]  # the start token and one more, which is BOS or EOS
    assert summarize.main([f"--model={workdir}", *ends_at_once, str(document)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "\n" and "every summary is empty" in one_line_error(captured.err)
    assert f"warning: {document}: its summary is empty" in captured.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy=topk"], "budget"),
        (["--min-length=9"], "--min-length=9 exceeds max_length"),
        (["--query=Why?"], "was trained without queries"),
    ],
)
def test_flags_and_files_are_checked_before_weights_are_read(flags, message, workdir, document, monkeypatch, capsys):
    monkeypatch.setattr(summarize_files, "load_model", None)
    assert summarize.main([f"--model={workdir}", *flags, str(document)]) == 1
    assert message in one_line_error(capsys.readouterr().err)
    assert summarize.main([f"--model={workdir}", "nowhere.txt"]) == 1
    assert "nowhere.txt: cannot be read" in one_line_error(capsys.readouterr().err)


def test_a_page_shows_what_was_kept_and_where_the_decoder_looked(workdir, cache, document, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    flags = ["--policy=first", "--budget=5", "--min-length=6", f"--html={page}", "--json"]
    summarize.main([f"--model={workdir}", *flags, str(document)])
    captured = capsys.readouterr()
    record, data, text = json.loads(captured.out), page_data(page), document.read_text()
    assert f"what was kept: {page}" in captured.err and f"<h1>{document}</h1>" in page.read_text()
    assert data["document"] == text and sum(page_kept(data)) == record["kept"] == 5
    assert data["summary"] == record["summary"] and "written" not in record
    written = data["written"]
    assert "".join(record["summary"][start:end] for start, end in written["spans"]) == record["summary"] != ""
    first = text.split()[:5]
    for places, state in zip(written["places"], written["state"], strict=True):
        assert {text[start:end] for _, start, end, _ in places} <= set(first)
        shares = [share for *_, share in places]
        assert shares == sorted(shares, reverse=True) and sum(shares) + state == pytest.approx(1, abs=1e-3)


def test_several_documents_get_a_page_each_and_an_index(workdir, cache, document, tmp_path, capsys):
    page, other = tmp_path / "kept.html", tmp_path / "other.txt"
    other.write_text("word-1 word-2")
    documents = [str(document), str(other), str(tmp_path / "none.txt")]
    assert summarize.main([f"--model={workdir}", "--min-length=4", f"--html={page}", *documents]) == 1
    files = sorted(path.name for path in (tmp_path / "kept_files").iterdir())
    assert files == ["1.html", "2.html"]
    assert re.findall(r'<a href="([^"]+)">([^<]+)</a>', page.read_text()) == [
        ("kept_files/1.html", str(document)),
        ("kept_files/2.html", str(other)),
    ]
    assert page_data(tmp_path / "kept_files/2.html")["document"] == "word-1 word-2"


def test_a_page_that_cannot_be_written_is_told_before_weights_are_read(
    workdir, document, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(summarize_files, "load_model", None)
    document = document.rename(tmp_path / "document.html")
    for path, message in {
        tmp_path: "a folder; give a file",
        document: "is one of the documents",
        document / "page.html": "cannot be written",
        Path("/dev/null"): "no regular file",
    }.items():
        before = document.read_bytes()
        assert summarize.main([f"--model={workdir}", f"--html={path}", str(document)]) == 1
        error = one_line_error(capsys.readouterr().err)
        assert message in error and "--html=" in error and document.read_bytes() == before


def test_python_gives_what_the_program_prints(workdir, cache, document, capsys):
    summarize.main([f"--model={workdir}", "--json", str(document)])
    record = json.loads(capsys.readouterr().out)
    summary = build.load_summarizer(workdir).summarize(document.read_text())
    assert summary.summary == record["summary"] and summary.kept_spans == record["kept_spans"]
    assert summary.document == document.read_text() and summary.read.kept.sum() <= summary.kept <= summary.candidates
    assert len(summary.read.span) == summary.tokens == len(document.read_text().split())


def test_settings_in_python_are_the_programs_flags(workdir, cache, document, capsys):
    flags = ["--num-beams=1", "--max-length=5", "--max-input-len=16", "--policy=topk", "--budget=3", "--dtype=bfloat16"]
    summarize.main([f"--model={workdir}", "--json", *flags, str(document)])
    record = json.loads(capsys.readouterr().out)
    given = {"num_beams": 1, "max_length": 5, "max_input_len": 16, "policy": "topk", "budget": 3, "dtype": "bfloat16"}
    summary = build.load_summarizer(workdir, **given).summarize(document.read_text())
    assert summary.summary == record["summary"] and summary.kept == record["kept"] == 3
    assert summary.tokens == record["tokens"] == 14  # besides BOS and EOS


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"beams": 2}, TypeError, "no setting 'beams'; there are policy, budget, .* num_beams"),
        ({"num_beams": 0}, UserError, "^num_beams=0: expected at least 1"),
        ({"num_beams": "4"}, UserError, "^num_beams='4': expected a whole number"),
        ({"policy": "best"}, UserError, "^policy='best': expected one of sample, greedy"),
        ({"budget": 5}, UserError, "^budget=5: the policy 'greedy' has no budget"),
    ],
)
def test_settings_in_python_are_checked_and_named_as_they_are_given(settings, kind, message, workdir):
    with pytest.raises(kind, match=message):
        build.load_summarizer(workdir, **settings)


def test_a_document_over_the_limit_is_cut_and_said(workdir, cache, document, capsys):
    assert summarize.main([f"--model={workdir}", "--max-input-len=16", str(document)]) == 0
    words = len(document.read_text().split())
    assert f"14 of {words} tokens are read; --max-input-len={words + 2} reads all" in capsys.readouterr().err
    assert evaluate.main([f"--workdir={workdir}", "--split=test", "--max-input-len=16", "--limit=2"]) == 0
    assert "2 of 2 documents are cut at max_input_len=16" in capsys.readouterr().out


def test_text_from_jsonl_with_queries_end_to_end(cache, tmp_path, capsys):
    rows = [
        {"article": f"Sentence {i} of many. It says ‘tree’ and {i}.", "abstract": f"tree {i}", "ask": f"what is {i}?"}
        for i in range(12)
    ]
    write_split(tmp_path / "data", "train", rows)
    write_split(tmp_path / "data", "validation", [*rows[:5], {"article": "", "abstract": "x", "ask": "y"}])
    fields = config_lib.Fields(document="article", summary="abstract", query="ask")
    settings = jsonl_settings(tmp_path / "data", fields=fields, input_template="{query}\n{document}")
    train(settings, tmp_path / "run", cache, progress=False)
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


def test_a_token_that_the_weights_do_not_have_is_refused(cache, tmp_path, capsys):
    model = pretrained_folder(tmp_path / "bart", extra_tokens=5)
    (tmp_path / "text.txt").write_text("word-1 word-29")
    assert summarize.main([f"--model={model}", str(tmp_path / "text.txt")]) == 1
    assert "word-29' (id 34), which the weights (30 tokens) have not" in one_line_error(capsys.readouterr().err)
