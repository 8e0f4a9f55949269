"""JSONL and CSV files: quoting, line numbers, and one-line errors for whatever a file holds."""

import csv
import gzip
import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common.errors import UserError
from jax_simcas.data.formats import open_rows
from jax_simcas.data.rows import Fields, Row
from jax_simcas.data.text_files import CsvSource, JsonlSource

FIELDS = Fields(document="text", summary="short", id="")


def written(rows, header=("text", "short")):
    """As spreadsheets write it: CRLF between records."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([header, *rows])
    return out.getvalue().encode()


def rows_of(source):
    return [(row.document, row.summary) for row in (source[i] for i in range(len(source)))]


# CSV


@pytest.mark.parametrize("compress", [False, True])
def test_cells_may_hold_commas_quotes_and_line_breaks(tmp_path, compress):
    rows = [("a, b", "plain"), ('say "hi"\nand\r\ngo', "Grüße 😀"), ("last", "no line end")]
    content = written(rows).removesuffix(b"\r\n")
    (tmp_path / ("train.csv" + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    source = open_rows("csv", str(tmp_path), "train", FIELDS, tmp_path / "cache")
    assert rows_of(source) == rows
    assert [source[i].id for i in range(3)] == ["2", "3", "6"]  # the lines that they begin on
    assert rows_of(pickle.loads(pickle.dumps(source))) == rows


def test_other_columns_a_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfname,text,short,asked\r\n\r\nn1,d,s,why\r\n")
    fields = Fields("text", "short", query="asked", id="name")
    assert CsvSource(path, fields, tmp_path)[0] == Row("n1", "d", "s", query="why")


def test_long_cells(tmp_path):
    text = "word " * 100_000
    (tmp_path / "x.csv").write_bytes(written([(text, "s")]))
    assert rows_of(CsvSource(tmp_path / "x.csv", FIELDS, tmp_path)) == [(text, "s")]


def test_rows_with_empty_cells_are_left_out(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(written([("a", ""), ("b", "s"), (" ", "s")]))
    source = CsvSource(path, FIELDS, tmp_path)
    assert rows_of(source) == [("b", "s")]
    assert source.notes == (f"{path}: 2 of 3 rows left out: empty document or summary (line 2, 4)",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.csv: no rows in it; it is empty"),
        (b"text,short\n", r"x\.csv: no rows in it; it is empty"),
        (b"text,short\na,b\nonly one\n", r"x\.csv:3: 1 cell, but the header has 2: quote cells that hold commas"),
        (b'text,short\na,b\n"c\nd,e\n', r"x\.csv:3: not CSV \(a quote that opens in this record never ends\)"),
        (b'text,short\n"a"b,c\n', r"x\.csv:2: not CSV"),
        (b"text,short\na,b\nd,\xff\n", r"x\.csv:3: not UTF-8 \(byte 2 of the line\)"),
        (b"text,short,,\na,b,,\nc,,,\n", r"x\.csv: empty document or summary \(line 3\); a row is left out"),
        (b"text,text\na,b\n", r"x\.csv:1: the header names 'text' twice"),
        (b"document;summary\na;b\n", r"x\.csv:2: no field 'text'; its fields are 'document', 'summary' \(set config"),
        (b"text|short\na|b\n", r"x\.csv:2: no field 'text'; its fields are 'text\|short' \(set config"),
        (b"text,short\ra,b\r", r"x\.csv:1: not CSV \(a line that ends in CR alone: save it with LF or CRLF\)"),
        ("text,short\na,b\n".encode("utf-16"), r"x\.csv:1: not UTF-8 \(it looks like UTF-16: save it as UTF-8\)"),
        (gzip.compress(b"text,short\n", mtime=0), r"x\.csv:1: not UTF-8 \(it looks like gzip: name it \.csv\.gz\)"),
    ],
)
def test_errors_name_file_and_line(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        CsvSource(tmp_path / "x.csv", FIELDS, tmp_path, max_bad_rows=0)
    assert "\n" not in str(error.value)


def test_rows_that_cannot_be_read_are_left_out(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'text,short\na,b\nonly one\n"c"d,e\nf,g\n\xff,h\n"i,\nj",k\n')
    source = CsvSource(path, FIELDS, tmp_path)
    assert rows_of(source) == [("a", "b"), ("f", "g"), ("i,\nj", "k")]
    (note,) = source.notes
    assert f"3 of 6 rows left out: they cannot be read (line 3, 4, 6); the first: {path}:3: 1 cell," in note


@pytest.mark.parametrize(
    ("record", "lines"),
    [
        (b'"He said "hi" to all.\nThe board met, and left.\nIt ended well.",short\n', 3),
        (b'"One caf\xe9.\nThe board met, and left.\nIt ended well.",short\n', 3),  # one byte is not UTF-8
        (b'"One.\nThe caf\xe9, closed.\nIt ended well.",short\n', 3),
        (b'"Five" tall",short\n', 1),  # an odd number of quotes
    ],
)
def test_no_line_of_a_record_that_cannot_be_read_passes_for_a_record(record, lines, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,short\na,b\n" + record + b'"c",d\n"e, f","g"\n')
    source = CsvSource(path, FIELDS, tmp_path)
    assert rows_of(source) == [("a", "b"), ("c", "d"), ("e, f", "g")]
    (note,) = source.notes
    assert f"{lines} of {lines + 3} rows left out" in note


def test_a_quote_that_never_ends_costs_the_lines_from_it_on(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'text,short\na,b\n"c\nd",e\nf,"g\nh,i\nj,k\n')
    source = CsvSource(path, FIELDS, tmp_path)
    assert rows_of(source) == [("a", "b"), ("c\nd", "e")]
    (note,) = source.notes
    assert f"3 of 5 rows left out: they cannot be read (line 5, 6, 7); the first: {path}:5: not CSV (a quote" in note
    with pytest.raises(UserError, match=r"x\.csv:5: not CSV .*; 3 rows are left out, more than .*max_bad_rows=2"):
        CsvSource(path, FIELDS, tmp_path, max_bad_rows=2)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_or_tabs_where_the_header_has_no_comma(mark, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f'text{mark}"short, or not"\na, b{mark}c\n"d{mark}\ne"{mark}f\n')
    source = CsvSource(path, Fields(document="text", summary="short, or not"), tmp_path)
    assert rows_of(source) == [("a, b", "c"), (f"d{mark}\ne", "f")]


def test_tabs(tmp_path):
    rows = [("a, b", "s"), ("two\tcells\nand lines", "t")]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t").writerows([("text", "short"), *rows])
    (tmp_path / "train.tsv").write_text(out.getvalue())
    for kind in ("csv", "tsv"):
        assert rows_of(open_rows(kind, str(tmp_path), "train", FIELDS, tmp_path / "cache")) == rows


# JSON that is no line per object


@pytest.mark.parametrize("name", ["train.json", "train.json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("many", [True, False])
def test_json_files_may_hold_a_list_or_one_object(name, indent, many, tmp_path):
    records = [{"text": f"document {i}", "short": "s"} for i in range(3 if many else 1)]
    content = json.dumps(records if many else records[0], indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = open_rows("jsonl", str(tmp_path), "train", FIELDS, tmp_path / "cache")
    assert rows_of(source) == [(record["text"], record["short"]) for record in records]


@pytest.mark.parametrize("content", [[{"text": "a"}], {"text": "a"}])
def test_objects_over_several_lines_of_jsonl_are_told(content, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(content, indent=1))
    message = r"x\.jsonl:1: not JSON \(.*\); it goes on in the next line: write each object in a line of its own; none"
    with pytest.raises(UserError, match=message):
        JsonlSource(tmp_path / "x.jsonl", FIELDS, tmp_path / "cache")


# Folders of files


def test_a_folder_of_texts(tmp_path):
    files = {
        "b.txt": "The second.\n",
        "b.summary.txt": "Two.\r\nMore.\r\n",
        "a.v1.txt": "\ufeffThe first.",
        "a.v1.summary.1.txt": "One.",
        "a.v1.summary.2.txt": "First.",
        "a.v1.query.TXT": "Which?",
        "lone.txt": "No summary.",
        "gone.summary.txt": "Of what?",
        "other.md": "Not read.",
    }
    (tmp_path / "train").mkdir()
    for name, text in files.items():
        (tmp_path / "train" / name).write_text(text)
    open_texts = lambda **options: open_rows("text", str(tmp_path), "train", Fields(**options), tmp_path / "cache")
    source = open_texts()
    assert [source[i] for i in range(len(source))] == [
        Row("a.v1", "The first.", "One.", ("One.", "First.")),
        Row("b", "The second.\n", "Two.\nMore."),
    ]
    empty, wrong, _ = source.notes
    assert "1 of 4 rows left out: empty document or summary (file lone.txt)" in empty
    assert "1 of 4 rows left out: they cannot be read (file gone.summary.txt)" in wrong
    assert wrong.endswith("gone.summary.txt: no gone.txt beside it, whose summary it would be")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/caf\xe9.txt")).write_text("No summary either.")
    assert "2 of 5 rows left out: empty" in open_texts().notes[0]  # its name is not UTF-8
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    (tmp_path / "train" / "b.summary.txt").write_text("Another.")
    assert open_texts()[1].summary == "Another." and open_texts().fingerprint != source.fingerprint
    (tmp_path / "train" / "b.txt").write_text("The second.", encoding="utf-16")
    assert "b.txt: not UTF-8 (it looks like UTF-16: save it as UTF-8)" in open_texts().notes[1]
    for number in range(3, 12):
        (tmp_path / "train" / f"a.v1.summary.{number}.txt").write_text(str(number))
    assert open_texts()[0].answers == ("One.", "First.", *map(str, range(3, 12)))  # by number, not by name
    for name in ("b", "lone"):
        (tmp_path / "train" / f"{name}.query.txt").write_text("Why?")
    assert open_texts(query="query")[0].query == "Which?"
    with pytest.raises(UserError, match=r"no dev/\*\.txt for the split 'dev'; there is cache, train"):
        open_rows("text", str(tmp_path), "dev", Fields(), tmp_path / "cache")


def test_other_names_of_splits_and_files(tmp_path):
    """As arXiv, SummScreen and others are published."""
    line = json.dumps({"text": "d", "short": "s"}) + "\n"
    opened = lambda split: open_rows("jsonl", str(tmp_path), split, FIELDS, tmp_path / "cache")
    for name in ("val.txt", "fd_dev.json", "valid.jsonl"):
        (tmp_path / name).write_text(line)
        assert rows_of(opened("validation")) == [("d", "s")]
        (tmp_path / name).unlink()
    (tmp_path / "fd_train.json").write_text(line)
    (tmp_path / "tms_train.json").write_text(line)
    with pytest.raises(
        UserError, match=r"no train\.jsonl or .* for the split 'train'; there is .*fd_train\.json, tms_tr"
    ):
        opened("train")  # which of the two
    (tmp_path / "test.json").write_text(
        json.dumps([{"text": "d", "short": "s"}, 3, {"text": "e", "short": "t"}], indent=1)
    )
    source = opened("test")
    assert rows_of(source) == [("d", "s"), ("e", "t")]
    assert "test.json row 1: a JSON int, expected an object" in source.notes[0]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "b.json").write_text(json.dumps({"text": "d", "short": "s"}, indent=1))
    (tmp_path / "raw" / "a.json").write_text("{")
    source = opened("raw")
    assert rows_of(source) == [("d", "s")] and "a.json: not JSON" in source.notes[0]
    assert open_rows("jsonl", str(tmp_path), "raw", Fields("text", "short"), tmp_path / "cache")[0].id == "b"


@given(st.lists(st.tuples(st.text(), st.text()), max_size=6))
@settings(deadline=None, max_examples=60)
def test_what_csv_writes_comes_back(rows):
    """Whatever the cells hold, in the rows that have both."""
    rows = [tuple(cell.encode("utf-8", "ignore").decode() for cell in row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(written(rows))
        kept = [row for row in rows if all(map(str.strip, row))]
        try:
            assert rows_of(CsvSource(path, FIELDS, Path(folder))) == kept
        except UserError as error:
            assert not kept and "no rows in it" in str(error)


def test_a_source_that_does_not_fit_the_files_says_what_to_set(tmp_path):
    (tmp_path / "train.csv").write_bytes(written([("a", "b")]))
    with pytest.raises(UserError, match=r"there is train\.csv \(config\.data\.source=csv reads CSV\)"):
        open_rows("jsonl", str(tmp_path), "train", FIELDS, tmp_path)
    (tmp_path / "train.csv").rename(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"there is .*train\.jsonl \(config\.data\.source=jsonl reads JSON lines\)"):
        open_rows("csv", str(tmp_path), "train", FIELDS, tmp_path)


# Whatever a file holds: rows, or one line that names it


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["document", "summary", "id", "evidence", "ids", "query", "document.text", "x"])
records = st.dictionaries(names, json_values | st.just([[0, 1]]) | st.just({"text": "a"}), max_size=6)
fields = st.sampled_from(
    [
        Fields(),
        Fields(document="document.text", query="query"),
        Fields(chunks="ids"),
        Fields(document="", chunks="ids", query="document.text"),
    ]
)


def assert_rows_or_one_line(kind, content, fields):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        try:
            source = kind(path, fields, Path(folder) / "cache")
            assert all(isinstance(source[i], Row) for i in range(len(source)))
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


@given(st.lists(records, max_size=4), fields)
@settings(deadline=None, max_examples=150)
def test_any_records_give_rows_or_one_line(records, fields):
    assert_rows_or_one_line(JsonlSource, "\n".join(map(json.dumps, records)).encode(), fields)


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"{", b'{"document": "', b"\\ud83d", b"[" * 50, b"\n"])))
@settings(deadline=None, max_examples=150)
def test_any_bytes_give_rows_or_one_line(parts):
    for kind in (JsonlSource, CsvSource):
        assert_rows_or_one_line(kind, b"".join(parts), FIELDS)


@given(st.lists(st.sampled_from([b'"', b",", b"\r", b"\n", b"text", b"short", b" ", b"\0", b"\xff"]), max_size=30))
@settings(deadline=None, max_examples=150)
def test_any_csv_gives_rows_or_one_line(parts):
    assert_rows_or_one_line(CsvSource, b"text,short\n" + b"".join(parts), FIELDS)


@pytest.mark.parametrize("depth", [500, 900, 5_000])
def test_deep_records_are_refused(depth):
    for name in ("id", "document", "evidence", "other"):
        record = f'{{"document": "d", "summary": "s", "{name}": {"[" * depth}{"]" * depth}}}'
        assert_rows_or_one_line(JsonlSource, record.encode(), Fields())
