"""Rows from files: random access, what is left out, and one-line errors that name file, line and field."""

import gzip
import json
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import read_config

from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import Fields, First, ListSource, Row, as_printed
from jax_simcas.data.synthetic import SyntheticConfig, SyntheticSource
from jax_simcas.data.text_files import JsonlSource

ROWS = [
    {"id": "a", "document": "One. Two.", "summary": "One."},
    {"id": 7, "document": "Grüße 😀", "summary": ["first", "second"], "evidence": [[0, 5]], "other": None},
    {"document": "No id.", "summary": "None.", "query": "what?", "evidence": []},
]


def write(path, rows, compress=False):
    lines = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(lines) if compress else lines)
    return path


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz"])
def source(request, tmp_path):
    path = write(tmp_path / request.param, ROWS, request.param.endswith("gz"))
    return JsonlSource(path, Fields(), tmp_path / "cache")


def test_rows(source):
    assert len(source) == 3
    (note,) = source.notes
    assert note.endswith(
        "lists under 'summary' are several references (1 of 3 rows have one); "
        "config.data.fields.summary_list=sentences joins them to one"
    )
    assert as_printed((note, "9 rows left out")) == [note, "warning: 9 rows left out"]
    assert source[0] == Row("a", "One. Two.", "One.")
    assert source[1] == Row("7", "Grüße 😀", "first", ("first", "second"), evidence=((0, 5),))
    assert source[2] == Row("3", "No id.", "None.", evidence=())  # its line for an id; queries are not asked for
    with pytest.raises(IndexError):
        source[3]


def test_travels_to_threads_and_processes(source):
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(3, size=200).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.__getitem__, order)) == [source[i] for i in order]


def test_no_row_is_held(tmp_path):
    path = write(tmp_path / "big.jsonl", [{"document": "word " * 20_000, "summary": "s"}] * 20)
    assert len(pickle.dumps(JsonlSource(path, Fields(), tmp_path))) < 5_000 < path.stat().st_size


def test_fields(tmp_path):
    rows = [{"article": "d", "highlights": "s", "question": "q", "name": "n", "spans": [[0, 1]]}]
    path = write(tmp_path / "x.jsonl", rows)
    fields = Fields("article", "highlights", "question", "name", "spans")
    assert JsonlSource(path, fields, tmp_path)[0] == Row("n", "d", "s", query="q", evidence=((0, 1),))
    without = Fields("article", "highlights", evidence="", id="")
    assert JsonlSource(path, without, tmp_path)[0] == Row("1", "d", "s")


# A row of each published data set, in the shape that it is published in, and what its config reads of it.
PUBLISHED = {
    "arxiv": ({"article": "a b", "abstract": "c"}, Row("1", "a b", "c")),
    "govreport": ({"id": "GAO", "report": "a b", "summary": "c"}, Row("GAO", "a b", "c")),
    "summscreen": ({"Transcript": ["X: a", "Y: b"], "Recap": ["c", "d"]}, Row("1", "X: a\nY: b", "c", ("c", "d"))),
    "multinews": ({"document": "a|||||b", "summary": "c"}, Row("1", "a|||||b", "c")),
    "wcep": ({"document": "a</s>b", "summary": "c"}, Row("1", "a</s>b", "c")),
    "narrativeqa": (
        {
            "document": {"id": "x", "text": "a b", "summary": {"text": "p"}},
            "question": {"text": "q?"},
            "answers": [{"text": "c"}, {"text": "d"}],
        },
        Row("1", "a b", "c", ("c", "d"), query="q?", context="p"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows(name, tmp_path):
    record, row = PUBLISHED[name]
    settings, _ = read_config(name)
    assert JsonlSource(write(tmp_path / "rows.jsonl", [record]), settings.data.fields, tmp_path)[0] == row


def test_fields_within_fields(tmp_path):
    fields = Fields(document="a.b", summary="c.d")
    record = {"a.b": "first", "a": {"b": "second"}, "c": {"d": "e"}}
    assert JsonlSource(write(tmp_path / "rows.jsonl", [record]), fields, tmp_path)[0] == Row("1", "first", "e")
    for wrong, message in (
        (
            {"a": {"x": 1}, "c": {"d": "e"}},
            r"no field 'a\.b'; its fields are 'x' \(set config\.data\.fields\.document\)",
        ),
        ({"a": "text", "c": {"d": "e"}}, r"no field 'a\.b'; its fields are 'a', 'c'"),
        ({"a": {"b": ["x", 1]}, "c": {"d": "e"}}, r"field 'a\.b' is a list with 1 in it, expected texts"),
        (
            {"a": {"b": "x"}, "c": {"d": [{"no": "e"}]}},
            r"'c\.d' is a list with an object with no in it, expected texts",
        ),
    ):
        with pytest.raises(UserError, match=message):
            JsonlSource(write(tmp_path / "wrong.jsonl", [wrong]), fields, tmp_path)


def overwrite_in_secret(path):
    """Other content of the same size and time."""
    stat = path.stat()
    path.write_bytes(b"\0" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_pass_over_the_rows_is_kept_by_content(source, tmp_path):
    again = lambda **fields: JsonlSource(source.path, Fields(**fields), tmp_path / "cache")
    before = sorted(path.name for path in (tmp_path / "cache").rglob("*"))
    content = source.path.read_bytes()
    overwrite_in_secret(source.path)
    assert again().fingerprint == source.fingerprint  # the file was not read again
    source.path.write_bytes(content)
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == before
    assert again(query="").fingerprint == source.fingerprint
    assert again(evidence="").fingerprint != source.fingerprint
    next((tmp_path / "cache" / "indexes").iterdir()).write_bytes(b"damaged")
    assert again()[1] == source[1]
    write(source.path, ROWS[:2], source.path.suffix == ".gz")
    assert len(again()) == 2 and again().fingerprint != source.fingerprint


def test_a_cache_is_no_need_without_gz(tmp_path):
    (tmp_path / "file").touch()
    path = write(tmp_path / "x.jsonl", ROWS)
    assert len(JsonlSource(path, Fields(), tmp_path / "file")) == 3
    path = write(tmp_path / "x.jsonl.gz", ROWS, compress=True)
    with pytest.raises(UserError, match=r"file/unpacked: cannot be written .* but .*x\.jsonl\.gz"):
        JsonlSource(path, Fields(), tmp_path / "file")


def test_lines(tmp_path):
    """Blank lines, a byte order mark, CRLF, no newline at the end, half a surrogate pair."""
    row = json.dumps(ROWS[0]).encode()
    half = b'{"document": "a\\ud83d b", "summary": "s", "evidence": [[3, 4]]}'
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\n   \n" + row + b"\n" + half)
    source = JsonlSource(path, Fields(id=""), tmp_path)
    assert [source[i].id for i in range(3)] == ["1", "4", "5"]
    assert source[2].document == "a\ufffd b" and source[2].evidence == ((3, 4),)


def test_empty_rows_are_left_out_and_noted(tmp_path):
    empty = [{"document": " \n", "summary": "s"}, {"document": "d", "summary": ""}, {"document": "d", "summary": [" "]}]
    path = write(tmp_path / "x.jsonl", [empty[0], ROWS[0], empty[1], ROWS[2], empty[2]])
    source = JsonlSource(path, Fields(), tmp_path)
    assert [source[i].id for i in range(len(source))] == ["a", "4"]
    assert source.notes == (f"{path}: 3 of 5 rows left out: empty document or summary (line 1, 3, 5)",)
    assert JsonlSource(path, Fields(), tmp_path).notes == source.notes
    with pytest.raises(UserError, match=r"no rows in it; all 3 lack a document or summary"):
        JsonlSource(write(path, empty), Fields(), tmp_path)
    many = JsonlSource(write(path, [empty[0]] * 50 + ROWS), Fields(), tmp_path)
    assert many.notes[0].endswith("(line 1, 2, 3, 4, 5, ...)")
    with pytest.raises(
        UserError, match=r"empty document or summary \(line 1, 2, 3, 4, 5, \.\.\.\); 50 rows are left out, more"
    ):
        JsonlSource(path, Fields(), tmp_path, max_bad_rows=49)


NULLS = [
    {"document": None, "summary": "s"},
    {"document": "d", "summary": None},
    {"document": float("nan"), "summary": "s"},
    {"document": [None, ""], "summary": "s"},
    {"document": "d", "summary": [None]},
]


@pytest.mark.parametrize("record", NULLS)
def test_null_is_an_empty_text(record, tmp_path):
    source = JsonlSource(write(tmp_path / "x.jsonl", [ROWS[0], record]), Fields(), tmp_path)
    assert len(source) == 1 and "1 of 2 rows left out: empty document or summary (line 2)" in source.notes[0]


def test_a_null_query_is_no_query(tmp_path):
    rows = [ROWS[2], ROWS[2] | {"query": None}]
    source = JsonlSource(write(tmp_path / "x.jsonl", rows), Fields(query="query"), tmp_path)
    assert len(source) == 1 and source.notes[0].endswith(
        "field 'query' is NoneType, expected text (config.data.fields.query)"
    )


def test_nulls_in_lists_are_passed_over(tmp_path):
    record = {"id": "x", "document": ["a", None, "b"], "summary": [None, "c", None, "d"]}
    source = JsonlSource(write(tmp_path / "x.jsonl", [record]), Fields(), tmp_path)
    assert source[0] == Row("x", "a\nb", "c", ("c", "d"))


def test_rows_without_a_reference_can_be_predicted(tmp_path):
    rows = [{"document": "a"}, {"document": "b", "summary": None}, {"document": "c", "summary": " "}, {"summary": "s"}]
    path = write(tmp_path / "x.jsonl", [*rows, {"document": "d", "summary": "s"}])
    source = JsonlSource(path, Fields(), tmp_path, need_reference=False)
    assert [source[i].document for i in range(len(source))] == ["a", "b", "c", "d"]
    assert [bool(source[i].summary.strip()) for i in range(4)] == [False, False, False, True]
    assert "1 of 5 rows left out: they cannot be read (line 4)" in source.notes[0]
    learned = JsonlSource(path, Fields(), tmp_path)  # a model learns from the others alone
    assert [learned[0].document, len(learned)] == ["d", 1]


# Lists under one name


def test_a_list_is_several_references_or_the_sentences_of_one(tmp_path):
    tagged = ["<S> first sentence . </S>", "<S> second ; a<S>b . </S>"]
    path = write(tmp_path / "x.jsonl", [{"document": "d", "summary": tagged}, {"document": "d", "summary": "whole"}])
    several, one = (JsonlSource(path, Fields(summary_list=each), tmp_path) for each in ("references", "sentences"))
    assert several[0].answers == tuple(tagged) and several[0].summary == tagged[0]
    assert one[0] == Row("1", "d", "first sentence .\nsecond ; a<S>b .") and one[1] == Row("2", "d", "whole")
    assert "lists under 'summary' are several references (1 of 2 rows" in several.notes[0]
    assert "are the sentences of one text (1 of 2 rows have one); config.data.fields.summary_list=ref" in one.notes[0]
    with pytest.raises(ValueError, match="summary_list='words': expected"):
        Fields(summary_list="words")


def test_turns_of_a_conversation_name_their_speaker(tmp_path):
    turns = [
        {"speaker": "Ann", "content": "Shall we?"},
        {"speaker": "Bob", "text": "Yes."},
        {"text": "(noise)"},
        {"speaker": None, "utterance": "Who?"},
        "A line.",
    ]
    source = JsonlSource(write(tmp_path / "x.jsonl", [{"document": turns, "summary": "s"}]), Fields(), tmp_path)
    assert source[0].document == "Ann: Shall we?\nBob: Yes.\n(noise)\nWho?\nA line."


def test_the_first_of_several_names_that_a_record_has(tmp_path):
    records = [{"b": "1", "summary": "s"}, {"a": "2", "b": "x", "summary": "s"}, {"c": {"d": "3"}, "summary": "s"}]
    source = JsonlSource(write(tmp_path / "x.jsonl", records), Fields(document="a|b|c.d"), tmp_path)
    assert [source[i].document for i in range(3)] == ["1", "2", "3"]


GOOD = json.dumps(ROWS[0]).encode()
BAD = {
    "not JSON": (b"{'document': 1}", r":2: not JSON \(Expecting property name"),
    "cut": (GOOD[:-3], r":2: not JSON"),
    "no object": (b"[1]", r":2: a JSON list, expected an object"),
    "deep": (b"[" * 100_000, r":2: not JSON"),
    "not UTF-8": (b'{"document": "\xff", "summary": ""}', r":2: not UTF-8 \(byte 14 of the line\)"),
    "field": (
        b'{"text": "", "summary": ""}',
        r":2: no field 'document'; its fields are 'text', 'summary' \(set config",
    ),
    "no fields": (b"{}", r":2: no field 'document'; its fields are none"),
    "type": (b'{"document": 5, "summary": ""}', r":2: field 'document' is int, expected text"),
    "answers": (b'{"document": "a", "summary": ["", 3]}', r":2: field 'summary' is a list with 3 in it, expected"),
    "query": (b'{"document": "a", "summary": "b"}', r":2: no field 'query'"),
    "spans": (
        b'{"document": "a", "summary": "b", "query": "", "evidence": 3}',
        r":2: field 'evidence' is int, expected",
    ),
    "span": (
        b'{"document": "abc", "summary": "b", "query": "", "evidence": [[0, 1], [2, 4]]}',
        r":2: field 'evidence' has \[2, 4\], expected \[start, end\] in the document's 3 characters",
    ),
    "true": (
        b'{"document": "abc", "summary": "b", "query": "", "evidence": [[true, 2]]}',
        r"evidence' has \[true, 2\]",
    ),
    "reversed": (b'{"document": "abc", "summary": "b", "query": "", "evidence": [[2, 1]]}', r"evidence' has \[2, 1\]"),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_lines(name, compress, tmp_path):
    line, message = BAD[name]
    path = write(tmp_path / f"x.jsonl{'.gz' * compress}", [GOOD, line], compress)
    fields = Fields(query="query" if "query" in line.decode("latin-1") or name == "query" else "")
    if fields.query:
        write(path, [b'{"query": "q", ' + GOOD[1:], line], compress)
    with pytest.raises(UserError, match=message) as error:
        JsonlSource(path, fields, tmp_path / "cache", max_bad_rows=0)
    assert str(error.value).startswith(f"{path}:2: ") and "\n" not in str(error.value)
    assert str(error.value).endswith("; a row is left out, more than config.data.max_bad_rows=0")
    source = JsonlSource(path, fields, tmp_path / "cache")
    assert len(source) == 1 and source[0].document == "One. Two."
    assert f"{path}: 1 of 2 rows left out: they cannot be read (line 2); the first: {path}:2: " in source.notes[0]
    with pytest.raises(UserError, match=message):  # the index knows
        JsonlSource(path, fields, tmp_path / "cache", max_bad_rows=0)


def test_a_set_of_which_nothing_can_be_read_is_one_error(tmp_path):
    rows = [{"text": "", "summary": ""}] * 500
    with pytest.raises(UserError, match=r"x\.jsonl:1: no field 'document'.*; none of the first 100 rows can be read$"):
        JsonlSource(write(tmp_path / "x.jsonl", rows), Fields(), tmp_path)
    with pytest.raises(UserError, match=r"x\.jsonl:1: no field 'document'.*; none of its 2 rows can be used$"):
        JsonlSource(write(tmp_path / "x.jsonl", [rows[0], {"document": "", "summary": ""}]), Fields(), tmp_path)


def test_bad_files(tmp_path):
    def fails(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            JsonlSource(tmp_path / name, Fields(), tmp_path / "cache")
        assert name in str(error.value) and "\n" not in str(error.value)

    whole = gzip.compress(random.Random(0).randbytes(50_000).hex().encode(), mtime=0)
    plain = gzip.compress(GOOD, mtime=0)
    fails("empty.jsonl", b"", "no rows in it; it is empty")
    fails("empty.jsonl.gz", gzip.compress(b""), "no rows in it")
    fails("nothing.jsonl.gz", b"", "no rows in it")
    fails("blank.jsonl", b"\n \n", "no rows in it")
    fails("plain.jsonl.gz", GOOD, "not a gzip file")
    fails("longer.jsonl.gz", gzip.compress(GOOD) + b"and more", "not gzip behind its content")
    fails("truncated.jsonl.gz", whole[:10_000], "truncated gzip file")
    fails("damaged.jsonl.gz", whole[:10_000] + b"\0" * 500 + whole[10_500:], "a damaged gzip file")
    fails("checksum.jsonl.gz", plain[:-8] + b"\0" * 4 + plain[-4:], "a damaged gzip file")
    fails("length.jsonl.gz", plain[:-4] + b"\0" * 4, "a damaged gzip file")
    fails("checksum of nothing.jsonl.gz", gzip.compress(b"", mtime=0)[:-8] + b"\1" * 8, "a damaged gzip file")
    fails("zipped.jsonl", whole, "looks like gzip")
    assert [path for path in (tmp_path / "cache" / "unpacked").iterdir() if path.suffix != ".jsonl"] == []
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        JsonlSource(tmp_path / "gone.jsonl", Fields(), tmp_path)


def test_a_source_is_recorded_as_in_earlier_evaluations(tmp_path):
    """Experiments compare it between seeds that may have been evaluated by different versions."""
    path = write(tmp_path / "x.jsonl", ROWS)
    source = JsonlSource(path, Fields(), tmp_path)
    assert repr(source) == f"JsonlSource('{path}')" and repr(First(source, 2)) == f"First({source!r}, 2)"
    synthetic = SyntheticSource("test", SyntheticConfig(seed=3))
    assert repr(synthetic).startswith("EmbeddedSource('test', EmbeddedConfig(seed=3, rows=100000, ")


def test_first(source):
    first = First(source, 2)
    assert [row.id for row in first] == ["a", "7"]
    assert len(First(source, 99)) == 3
    assert first.fingerprint not in (None, source.fingerprint, First(source, 1).fingerprint)
    assert First(ListSource([Row("1", "d", "s")]), 1).fingerprint is None


def test_rows_in_memory():
    rows = [Row("1", "d", "s"), Row("2", "e", "t")]
    source = ListSource(rows)
    assert list(source) == rows and len(source) == 2 and source.notes == ()
