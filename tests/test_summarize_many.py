"""Summarising many documents: in batches, each as it would be alone; JSON lines in and out; one that fails."""

import gzip
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import one_line_error, page_data, slow_but, tiny_config

from jax_simcas import summarize
from jax_simcas.common.errors import UserError
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.evaluation import batched
from jax_simcas.evaluation.summarizer import Summarizer
from jax_simcas.method.chunk import half_step, quarter_step
from jax_simcas.method.select import POLICIES
from jax_simcas.run import build, summary_input

WORDS = SyntheticSource("test", tiny_config().data.embedded)[0].document.split()
TEXTS = [" ".join((WORDS * 4)[start : start + count]) for start, count in enumerate((3, 70, 14, 15, 41, 28, 100, 3))]


@pytest.fixture
def model(workdir):
    return build.load_summarizer(workdir)


def choosing(model, **changes):
    return Summarizer(model.predictor._replace(model=model.predictor.model.replace(**changes)))


def facts(summary):
    """What must not depend on the batch: all but the times; numbers up to rounding."""
    rounded = lambda x: np.round(np.asarray(x, np.float64), 4).tolist()
    out = summary._asdict() | {"score": round(summary.score, 4), "seconds": set(summary.seconds)}
    return {name: [rounded(x) for x in value] if name in ("read", "written") and value is not None else value
            for name, value in out.items()}  # fmt: skip


@pytest.mark.parametrize(
    "choices",
    slow_but([{}, {"policy": "topk", "budget": 7}, {"policy": "sample"}, {"policy": "random", "budget": 9}], {}),
    ids=str,
)
def test_each_document_of_a_list_gets_what_it_gets_alone(choices, model):
    choices = choices | ({"policy": POLICIES[choices["policy"]]} if choices else {})
    model = choosing(model, **choices)
    together = model.summarize(TEXTS, seed=3, attention=True)
    alone = [model.summarize(text, seed=3, attention=True) for text in TEXTS]
    assert [summary.document for summary in together] == TEXTS
    assert [facts(summary) for summary in together] == [facts(summary) for summary in alone]
    assert len({summary.chunks for summary in together}) > 3 and together[0].written is not None


def test_draws_depend_on_the_seed_alone(model):
    model = choosing(model, policy=POLICIES["sample"])
    kept = [[summary.kept_spans for summary in model.summarize(TEXTS[:3] * 2, seed=seed)] for seed in (0, 1)]
    assert kept[0] != kept[1] and all(spans[:3] == spans[3:] for spans in kept)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_size_of_batches_changes_nothing(size, model):
    assert [facts(s) for s in model.summarize(TEXTS, batch_size=size)] == [facts(s) for s in model.summarize(TEXTS)]


def test_so_does_each_of_many(model):
    """Whose chunks and states are padded in finer steps than those of few."""
    assert len(TEXTS * 3) > batched.FEW_DOCUMENTS >= len(TEXTS)
    alone = [facts(model.summarize(text)) for text in TEXTS]
    assert [facts(summary) for summary in model.summarize(TEXTS * 3)] == alone * 3


def test_a_list_of_one_and_of_none(model):
    assert model.summarize([]) == []
    [summary] = model.summarize(TEXTS[1:2])
    assert facts(summary) == facts(model.summarize(TEXTS[1]))


def test_rules_about_the_documents_tokens_hold_in_batches(model):
    """`encoder_no_repeat_ngram_size` sees each document's own tokens."""
    options = {"encoder_no_repeat_ngram_size": 1, "min_length": 4}
    generate = build.dataclasses.replace(model.predictor.generate, **options)
    model = Summarizer(model.predictor._replace(generate=generate))
    together = model.summarize(TEXTS[:4])
    assert [facts(s) for s in together] == [facts(model.summarize(text)) for text in TEXTS[:4]]
    assert not any(set(s.summary.split()) & set(s.document.split()) for s in together)


def test_a_document_that_fails_is_told_before_or_in_its_place(model):
    texts = [TEXTS[0], "", TEXTS[1], "not in the vocabulary"]
    with pytest.raises(UserError, match=r"document 1: .*empty"):
        model.summarize(texts)
    first, second, third, fourth = model.summarize(texts, errors="return")
    assert facts(first) == facts(model.summarize(TEXTS[0])) and facts(third) == facts(model.summarize(TEXTS[1]))
    assert isinstance(second, UserError) and "document 3: this model cannot read" in str(fourth)


def test_what_is_no_text_fails_in_its_place(model):
    texts = [TEXTS[0], None, 7]
    results = model.summarize(texts, errors="return")
    assert results[0].summary == model.summarize(TEXTS[0]).summary
    assert [str(each) for each in results[1:]] == [
        "document 1: is NoneType, expected a text",
        "document 2: is int, expected a text",
    ]


def test_wrong_arguments_are_named(model):
    for arguments, message in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"query": ["a"]}, "zip"),
    ):
        with pytest.raises(ValueError, match=message):
            model.summarize(TEXTS[:2], **arguments)


def test_where_memory_ends_batches_are_halved_once_and_for_all(model, monkeypatch):
    sizes, notes, generate = [], [], batched.generate_batch

    def scarce(params, compacted, *rest, **options):
        sizes.append(len(compacted.states))
        if sizes[-1] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.")
        return generate(params, compacted, *rest, **options)

    expected = [facts(s) for s in model.summarize(TEXTS)]
    monkeypatch.setattr(batched, "generate_batch", scarce)
    with pytest.warns(UserWarning, match="8 documents at a time do not fit into memory") as caught:
        assert [facts(s) for s in model.summarize(TEXTS)] == expected
    assert sizes == [8, 4, 2, 2, 2, 2] and len(caught) == 1 and not notes
    monkeypatch.setattr(batched, "generate_batch", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.summarize(TEXTS)


def test_long_documents_come_in_smaller_batches():
    assert [batched.batch_of(tokens) for tokens in (1, 6_144, 8_192, 8_193, 20_000, 40_000, 1 << 20)] == [
        *(8, 8, 8, 4, 2, 1, 1)
    ]
    assert batched.batch_of(1 << 20, 3) == 3


def test_sizes_are_few_and_pad_little():
    sizes = [half_step(length) for length in range(1, 1000)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(length <= size < 1.5 * length for length, size in enumerate(sizes, 1))
    sizes = [quarter_step(length) for length in range(1, 1000)]
    assert sorted(set(sizes))[:14] == [*range(1, 9), 10, 12, 14, 16, 20, 24] and len(set(sizes)) == 36
    assert all(length <= size < 1.25 * length for length, size in enumerate(sizes, 1))


def write_rows(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return str(path)


def test_rows_become_lines_in_their_order(workdir, cache, document, tmp_path, capsys):
    rows = write_rows(
        tmp_path / "rows.jsonl.gz", [{"document": text, "id": f"d{i}", "summary": None} for i, text in enumerate(TEXTS)]
    )
    out = tmp_path / "new" / "out.jsonl"
    assert summarize.main([f"--model={workdir}", f"--output={out}", rows, str(document)]) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("id") for line in lines] == [*(f"d{i}" for i in range(len(TEXTS))), None]
    assert [line.get("row") for line in lines] == [*range(1, len(TEXTS) + 1), None]
    assert [line["file"] for line in lines] == [rows] * len(TEXTS) + [str(document)]
    assert captured.out == "" and "9/9 documents" in captured.err and "documents/s" in captured.err
    summaries = [summary.record() for summary in build.load_summarizer(workdir).summarize(TEXTS)]
    same = ("summary", "kept_spans", "tokens", "kept", "chunks")
    assert [{n: line[n] for n in same} for line in lines[:-1]] == [{n: s[n] for n in same} for s in summaries]
    assert summarize.main([f"--model={workdir}", f"--output={out}", rows]) == 1
    assert "is there already" in one_line_error(capsys.readouterr().err)


def test_rows_of_csv_are_documents(workdir, cache, tmp_path, capsys):
    (tmp_path / "x.csv").write_text(f'id,document\na,"{TEXTS[0]}"\nb,"{TEXTS[3]}"\n')
    assert summarize.main([f"--model={workdir}", "--json", str(tmp_path / "x.csv")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["row"], line["id"]) for line in lines] == [(2, "a"), (3, "b")]
    (tmp_path / "y.tsv").write_text("text\tother\nwords\tmore\n")
    assert summarize.main([f"--model={workdir}", str(tmp_path / "y.tsv")]) == 1
    error = one_line_error(capsys.readouterr().err)
    assert "y.tsv:2: no field 'document'; its fields are 'text', 'other' (set config.data.fields.document)" in error


def test_rows_of_csv_as_pandas_writes_it_and_in_capitals(workdir, cache, tmp_path, capsys):
    """A column without a name numbers the rows."""
    (tmp_path / "X.CSV").write_text(f',document,summary\n0,"{TEXTS[0]}",s\n1,"{TEXTS[3]}",s\n')
    (tmp_path / "X.JSONL.GZ").write_bytes(gzip.compress(json.dumps({"document": TEXTS[0]}).encode()))
    assert summarize.main([f"--model={workdir}", "--json", *map(str, sorted(tmp_path.glob("X.*")))]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["row"] for line in lines] == [2, 3, 1]


def test_plain_summaries_are_one_line_each(workdir, cache, document, tmp_path, monkeypatch, capsys):
    """What a model writes may have line breaks; JSON keeps them."""
    summaries = Summarizer.summaries
    monkeypatch.setattr(
        Summarizer,
        "summaries",
        lambda *given, **options: (
            (place, summary._replace(summary="One.\nTwo.\r\nThree.")) for place, summary in summaries(*given, **options)
        ),
    )
    assert summarize.main([f"--model={workdir}", str(document), str(document)]) == 0
    assert capsys.readouterr().out == "One. Two. Three.\n" * 2
    assert summarize.main([f"--model={workdir}", "--json", str(document)]) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == "One.\nTwo.\r\nThree."


def test_a_name_that_is_not_utf8_does_not_lose_the_summaries(workdir, cache, document, tmp_path, capsys):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(odd).write_text(document.read_text())
    out = tmp_path / "out.jsonl"
    assert summarize.main([f"--model={workdir}", f"--output={out}", str(document), odd]) == 0
    assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == [
        str(document),
        f"{tmp_path}/caf\ufffd.txt",
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("x.json", "list"), ("x.json.gz", "list"), ("x.json", "object"), ("x.json", "lines"), ("x.ndjson", "lines")],
)
def test_rows_of_json_are_documents(name, shape, workdir, cache, tmp_path, capsys):
    records = [{"document": text, "id": f"d{i}"} for i, text in enumerate(TEXTS[: 1 if shape == "object" else 2])]
    lines = "\n".join(map(json.dumps, records))
    content = {"list": json.dumps(records), "object": json.dumps(records[0], indent=2), "lines": lines}[shape].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert summarize.main([f"--model={workdir}", "--json", str(tmp_path / name)]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [row["id"] for row in records]


def test_half_a_surrogate_pair_in_a_text_counts_as_the_replacement_character(model):
    half, whole = f"{TEXTS[0]} \ud800", f"{TEXTS[0]} \ufffd"
    expected = model.summarize(whole)
    for found in (model.summarize(half), *model.summarize([half])):
        assert (found.summary, found.kept_spans) == (expected.summary, expected.kept_spans)


def test_rows_that_fail_are_named_and_the_others_are_written(workdir, cache, tmp_path, capsys):
    rows = write_rows(
        tmp_path / "rows.jsonl",
        ["{", {"document": TEXTS[0]}, {"article": "x"}, {"document": " "}, {"document": "nothing known"}, "",
         {"document": TEXTS[1]}],
    )  # fmt: skip
    assert summarize.main([f"--model={workdir}", "--json", rows]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["row"] for line in captured.out.splitlines()] == [2, 7]
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and all(
        f"error: {rows}:{n}: " in line for n, line in zip((1, 3, 4, 5), errors, strict=True)
    )
    assert "config.data.fields.document" in errors[1] and "4 of 6 documents have no summary" in captured.err
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert summarize.main([f"--model={workdir}", empty]) == 1
    assert f"{empty}: no documents in it" in one_line_error(capsys.readouterr().err)


def test_rows_of_another_field_in_windows_with_pages(workdir, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(summary_input, "WINDOW", 3)
    rows = write_rows(tmp_path / "rows.jsonl", [{"body": text, "id": i} for i, text in enumerate(TEXTS)])
    flags = ["--config.data.fields.document=body", f"--html={tmp_path / 'kept.html'}", "--batch-size=2", "--json"]
    assert summarize.main([f"--model={workdir}", *flags, rows]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(len(TEXTS))]
    for number, (line, text) in enumerate(zip(lines, TEXTS, strict=True), 1):
        data = page_data(tmp_path / "kept_files" / f"{number}.html")
        assert data["document"] == text and data["summary"] == line["summary"]


def test_windows_hold_few_documents_and_read_no_further():
    read = []

    def stream():
        for number in range(200):
            read.append(number)
            size = summary_input.WINDOW_CHARACTERS if number == 70 else 1
            yield summary_input.InputDocument("", {}, summary_input.Row(str(number), "x" * size, ""))

    windows = summary_input.windows(stream())
    sizes = []
    for window in windows:
        sizes.append(len(window))
        assert len(read) == sum(sizes)
    assert sizes == [64, 7, 64, 64, 1]
