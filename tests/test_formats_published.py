"""Sets as their authors publish them, and texts of the datasets library as they are written."""

import bz2
import dataclasses
import gzip
import json
import lzma
import pickle
import zipfile

import pytest
from helpers import read_config
from stored_sets import FIELDS, RECORDS, ROWS, rows

from jax_simcas.data.formats import open_rows
from jax_simcas.data.rows import Fields, Row
from jax_simcas.run import build


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries():
    datasets = pytest.importorskip("datasets", reason="the sources' libraries: pip install 'jax_simcas[data]'")
    pytest.importorskip("tensorflow_datasets", reason="the sources' libraries: pip install 'jax_simcas[data]'")
    datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


MEETING = {
    "topic_list": [{"topic": "t", "relevant_text_span": [["0", "1"]]}],
    "general_query_list": [{"query": "Summarize it.", "answer": "All."}],
    "specific_query_list": [
        {"query": "What of tea?", "answer": "Liked.", "relevant_text_span": [["1", "1"], ["2", "9"]]},
    ],
    "meeting_transcripts": [
        {"speaker": "Ann", "content": "Hello."},
        {"speaker": "Bob", "content": "Tea?"},
        {"speaker": "Ann", "content": "Yes."},
    ],
}


def test_qmsum_as_it_is_published(tmp_path, cache):
    """A line or a file per meeting; a row per query, with the turns that were marked as evidence."""
    (tmp_path / "val.jsonl").write_text(json.dumps(MEETING) + '\n{"topic_list": []}\n')
    source = open_rows("qmsum", str(tmp_path), "validation", Fields(), cache)
    document = "Ann: Hello.\nBob: Tea?\nAnn: Yes."
    assert rows(source) == [
        Row("1-0", document, "All.", query="Summarize it."),
        Row("1-1", document, "Liked.", query="What of tea?", evidence=((12, 21), (22, 31))),
    ]
    assert [document[start:end] for start, end in source[1].evidence] == ["Bob: Tea?", "Ann: Yes."]
    assert "val.jsonl:2: not a meeting as QMSum is published" in source.notes[0]
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "Bed004.json").write_text(json.dumps(MEETING, indent=1))
    again = open_rows("qmsum", str(tmp_path), "test", Fields(), cache)
    assert [row.id for row in rows(again)] == ["Bed004-0", "Bed004-1"]
    assert [dataclasses.replace(row, id="") for row in rows(again)] == [
        dataclasses.replace(row, id="") for row in rows(source)
    ]


# Published files that hold other fields than the libraries' versions of them.
RAW = {
    "arxiv": (
        "val.txt",
        {"article_id": "1", "article_text": ["a b .", "c ."], "abstract_text": ["<S> d . </S>", "<S> e . </S>"]},
        Row("1", "a b .\nc .", "d .\ne ."),
    ),
    "pubmed": (
        "val.txt",
        {"article_id": "1", "article_text": ["a b .", "c ."], "abstract_text": ["<S> d . </S>", "<S> e . </S>"]},
        Row("1", "a b .\nc .", "d .\ne ."),
    ),
    "summscreen": (
        "fd_dev.json",
        {"filename": "1", "Transcript": ["X : a", "Y : b"], "Recap": ["c", "d"]},
        Row("1", "X : a\nY : b", "c", ("c", "d")),
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_configs_read_what_the_authors_publish(name, tmp_path, cache):
    file, record, row = RAW[name]
    (tmp_path / file).write_text(json.dumps(record) + "\n")
    settings, _ = read_config(name)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, data_dir=str(tmp_path)))
    assert rows(build.open_source(settings, settings.data.validation_split, cache)) == [row]


# Values that the datasets library takes for dates, numbers or nothing.
DATES = ["2024-01-01", "2024-01-02"]
WRITTEN = [*DATES, "2024-01-01 10:00:00", "007", "1e5", "NA", "null", "true", "12:30"]


@pytest.mark.parametrize("written", [DATES, WRITTEN])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "tsv"])
def test_datasets_gives_texts_as_they_are_written(kind, written, tmp_path, cache):
    records = [{"id": text, "article": text, "abstract": text} for text in written]
    if kind == "json":
        content = json.dumps(records)
    elif kind in ("csv", "tsv"):
        tab = "\t" if kind == "tsv" else ","
        content = "\n".join(tab.join(record.values()) for record in [{name: name for name in records[0]}, *records])
    else:
        content = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "data").mkdir()
    data = content.encode()
    (tmp_path / "data" / f"train.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    source = open_rows(f"datasets:{tmp_path / 'data'}", "", "train", FIELDS, cache)
    assert rows(source) == [Row(text, text, text) for text in written]


@pytest.mark.parametrize("name", ["train.jsonl.bz2", "train.json.xz", "train.csv.bz2", "train.zip"])
def test_so_do_compressed_files(name, tmp_path, cache):
    records = [{"id": text, "article": text, "abstract": text} for text in DATES]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    cells = "".join(",".join(record.values()) + "\n" for record in records)
    content = {"json": json.dumps(records).encode(), "csv": f"id,article,abstract\n{cells}".encode()}
    data = content.get(name.split(".")[1], lines)
    (tmp_path / "data").mkdir()
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / "data" / name, "w") as file:
            file.writestr("part.jsonl", data)
    else:
        (tmp_path / "data" / name).write_bytes((lzma if name.endswith("xz") else bz2).compress(data))
    source = open_rows(f"datasets:{tmp_path / 'data'}", "", "train", FIELDS, cache)
    assert rows(source) == [Row(text, text, text) for text in DATES]


def test_the_hub_gives_texts_as_they_are_written_too(tmp_path, cache, monkeypatch):
    """With a folder in the place of the hub's repository."""
    import datasets
    from huggingface_hub import HfApi

    (tmp_path / "set").mkdir()
    lines = "".join(json.dumps({"id": text, "article": text, "abstract": text}) + "\n" for text in DATES)
    (tmp_path / "set" / "train.jsonl").write_text(lines)
    made = datasets.load_dataset_builder
    monkeypatch.setattr(HfApi, "dataset_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config=None: made(str(tmp_path / "set")))
    assert rows(open_rows("datasets:some/set", "", "train", FIELDS, cache)) == [Row(text, text, text) for text in DATES]


def test_files_that_name_options_of_their_own_are_the_librarys(tmp_path, cache):
    """As a set's README may: another separator, other names."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("article;abstract\na, b;c\n")
    options = "configs:\n- config_name: default\n  data_files: train.csv\n  sep: ;"
    (tmp_path / "data" / "README.md").write_text(f"---\n{options}\n---\n")
    assert rows(open_rows(f"datasets:{tmp_path / 'data'}", "", "train", FIELDS, cache)) == [Row("0", "a, b", "c")]


def test_datasets_reads_several_files_as_one(tmp_path, cache):
    (tmp_path / "data").mkdir()
    for number, record in enumerate(RECORDS):
        (tmp_path / "data" / f"train-{number}.jsonl").write_text(
            "\ufeff" * (number == 1) + json.dumps(record) + "\n{\n"
        )
    source = open_rows(f"datasets:{tmp_path / 'data'}", "", "train", FIELDS, cache)
    assert [row.document for row in rows(source)] == [row.document for row in ROWS]
    assert [row.id for row in rows(source)] == ["0", "2", "4", "6", "8"]
    assert pickle.loads(pickle.dumps(source))[4].document == ROWS[4].document
    assert "5 of 10 rows left out: they cannot be read (row 1, 3, 5, 7, 9); the first: " in source.notes[0]
    assert "train-0.jsonl:2: not JSON" in source.notes[0]
