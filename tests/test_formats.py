"""Small data sets in every format, written here and read through the real libraries; and their errors."""

import dataclasses
import gzip
import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import CONFIGS, read_config
from stored_sets import FIELDS, RECORDS, ROWS, rows

from jax_simcas.common.errors import UserError
from jax_simcas.data import formats, text_files, tokenizer
from jax_simcas.data.batches import make_iterator
from jax_simcas.data.formats import open_rows
from jax_simcas.data.rows import Fields, Row
from jax_simcas.run import build
from jax_simcas.run.config import DataConfig, Settings
from jax_simcas.run.method_config import SimcasConfig

# A row of each published data set as its library holds it, and what its config reads of it.
NARRATIVE = {
    "document": {"id": "x", "text": "a b", "summary": {"text": "p"}},
    "question": {"text": "q?"},
    "answers": [{"text": "c"}, {"text": "d"}],
}
PUBLISHED = {
    "arxiv": ({"article": "a b", "abstract": "c"}, Row("0", "a b", "c")),
    "pubmed": ({"article": "a b", "abstract": "c"}, Row("0", "a b", "c")),
    "govreport": ({"report": "a b", "summary": "c"}, Row("0", "a b", "c")),
    "summscreen": ({"Transcript": ["X: a", "Y: b"], "Recap": ["c", "d"]}, Row("0", "X: a\nY: b", "c", ("c", "d"))),
    "multinews": ({"document": "a|||||b", "summary": "c"}, Row("0", "a|||||b", "c")),
    "wcep": ({"document": "a</s>b", "summary": "c"}, Row("0", "a</s>b", "c")),
    "narrativeqa": (NARRATIVE, Row("0", "a b", "c", ("c", "d"), query="q?", context="p")),
}
CHUNKED = [
    {"input_ids": [[0, 5, 6, 2], [0, 7, 1, 2]], "input_texts": "five six seven", "output_texts": "five"},
    {"input_ids": [[0, 5, 2]], "input_texts": "five", "output_texts": ["five", "six"]},
]
CHUNKED_ROWS = [
    Row("0", "five six seven", "five", chunks=((0, 5, 6, 2), (0, 7, 1, 2))),
    Row("1", "five", "five", ("five", "six"), chunks=((0, 5, 2),)),
]


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries():
    datasets = pytest.importorskip("datasets", reason="the sources' libraries: pip install 'jax_simcas[data]'")
    pytest.importorskip("tensorflow_datasets", reason="the sources' libraries: pip install 'jax_simcas[data]'")
    datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def arrow(records):
    import datasets

    return datasets.Dataset.from_list(records)


def write_jsonl(folder, records):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(lines))
    return "jsonl", folder


def write_parquet(folder, records):
    folder.mkdir(exist_ok=True)
    arrow(records).to_parquet(str(folder / "train.parquet"), batch_size=2)
    return "parquet", folder


def write_parquet_shards(folder, records):
    folder.mkdir(exist_ok=True)
    middle = max(len(records) // 2, 1)
    for i, part in enumerate((records[:middle], records[middle:])):
        arrow(part or records[:0] or [records[0]]).to_parquet(str(folder / f"train-{i:05}-of-00002.parquet"))
    return "parquet", folder


def write_disk(folder, records):
    import datasets

    datasets.DatasetDict(train=arrow(records)).save_to_disk(str(folder))
    return f"datasets:{folder}", ""


def write_disk_of_one_split(folder, records):
    arrow(records).save_to_disk(str(folder))
    return f"datasets:{folder}", ""


def write_data_files(folder, records):
    """What a clone of a hub's repository looks like."""
    write_jsonl(folder, records)
    return f"datasets:{folder}", ""


def write_tfds(folder, records, features=None):
    """A set of a builder that reading does not know of, as array_record files."""
    import tensorflow_datasets as tfds

    f = tfds.features
    features = features or {"article": f.Text(), "abstract": f.Text(), "lines": f.Sequence(f.Text())}
    with tfds.core.registered.skip_registration():

        class HandMade(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

            def _split_generators(self, _):
                return {"train": self._generate_examples(records), "test": self._generate_examples(records[:1])}

            def _generate_examples(self, some):
                yield from enumerate(some)

    HandMade(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return "tfds:hand_made", folder


WRITERS = [
    write_jsonl,
    write_parquet,
    write_parquet_shards,
    write_disk,
    write_disk_of_one_split,
    write_data_files,
    write_tfds,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_rows(write, tmp_path, cache):
    source, folder = write(tmp_path / "data", RECORDS)
    opened = open_rows(source, str(folder), "train", FIELDS, cache)
    by_document = sorted(rows(opened), key=lambda row: row.document)  # tensorflow-datasets shuffles as it prepares
    assert [(row.document, row.summary) for row in by_document] == [(row.document, row.summary) for row in ROWS]
    if write is not write_jsonl:  # its ids are line numbers
        assert [row.id for row in rows(opened)] == list("01234")
    lines = open_rows(source, str(folder), "train", Fields(document="lines", summary="abstract"), cache)
    assert {row.document for row in rows(lines)} == {"a\nb"}
    with pytest.raises(IndexError):
        opened[5]


@pytest.mark.parametrize("write", WRITERS)
def test_travels_to_processes_and_is_scanned_once(write, tmp_path, cache, monkeypatch):
    source, folder = write(tmp_path / "data", [record | {"article": "long " * 50_000} for record in RECORDS])
    opened = open_rows(source, str(folder), "train", FIELDS, cache)
    sent = pickle.dumps(opened)
    assert len(sent) < 10_000
    assert rows(pickle.loads(sent)) == rows(opened)
    for store in (formats.Table, text_files.JsonlStore):
        monkeypatch.setattr(store, "places", lambda self: pytest.fail("the rows were read again"))
    again = open_rows(source, str(folder), "train", FIELDS, cache)
    assert rows(again) == rows(opened) and again.fingerprint == opened.fingerprint


@pytest.mark.parametrize("write", [write_parquet, write_disk, write_tfds])
def test_changed_data_are_read_anew(write, tmp_path, cache):
    first = open_rows(*map(str, write(tmp_path / "data", RECORDS)), "train", FIELDS, cache)
    assert len(first) == 5
    if write is not write_parquet:
        import shutil

        shutil.rmtree(tmp_path / "data")
    second = open_rows(*map(str, write(tmp_path / "data", RECORDS[:3])), "train", FIELDS, cache)
    assert len(second) == 3 and second.fingerprint != first.fingerprint


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_disk])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_records(write, name, tmp_path, cache):
    record, row = PUBLISHED[name]
    settings, _ = read_config(name)
    source, folder = write(tmp_path / "data", [record])
    (read,) = rows(open_rows(source, str(folder), "train", settings.data.fields, cache))
    assert (read.document, read.summary, read.answers) == (row.document, row.summary, row.answers)
    assert (read.query, read.context) == (row.query, row.context)


def test_tensorflow_datasets_values(tmp_path, cache):
    """Bytes, lists of objects, nested objects, numbers, arrays; without TensorFlow."""
    import tensorflow_datasets as tfds

    f = tfds.features
    features = {
        "document": {"text": f.Text()},
        "answers": f.Sequence({"text": f.Text()}),
        "id": f.Scalar(dtype=np.int64),
        "evidence": f.Tensor(shape=(2, 2), dtype=np.int64),
    }
    record = {
        "document": {"text": "Grüße"},
        "answers": [{"text": "c"}, {"text": "d"}],
        "id": 7,
        "evidence": np.array([[0, 2], [3, 5]]),
    }
    source, folder = write_tfds(tmp_path / "data", [record], features)
    fields = Fields(document="document.text", summary="answers.text")
    (row,) = rows(open_rows(source, str(folder), "train", fields, cache))
    assert row == Row("7", "Grüße", "c", ("c", "d"), evidence=((0, 2), (3, 5)))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_disk, write_data_files])
def test_chunked(write, tmp_path, cache):
    """One target as a text or several answers; the config's own field names do not matter."""
    for record, row in zip(CHUNKED, CHUNKED_ROWS, strict=True):
        source, folder = write(tmp_path / f"data-{row.id}", [record])
        source = f"chunked:{source.partition(':')[2]}".rstrip(":")
        (read,) = rows(open_rows(source, str(folder), "train", Fields("article", "abstract", "query"), cache))
        assert read.chunks == row.chunks and read.answers == row.answers
        assert (read.document, read.summary, read.query) == (row.document, row.summary, None)


def test_chunks_need_no_document(tmp_path, cache):
    source, folder = write_jsonl(tmp_path / "data", [{"ids": [[0, 5, 2]], "target": "t"}])
    fields = Fields(document="", summary="target", chunks="ids")
    assert rows(open_rows(source, str(folder), "train", fields, cache)) == [Row("1", "", "t", chunks=((0, 5, 2),))]
    for wrong in ([5, 6], "5 6", [["5"]], [[True]], [[5.0]], None):
        write_jsonl(tmp_path / "data", [{"ids": wrong, "target": "t"}])
        with pytest.raises(UserError, match=r":1: field 'ids' is .*, expected a list of chunks, each a list of token"):
            open_rows(source, str(folder), "train", fields, cache)


# What breaks


def fails(source, folder, cache, message, split="train", fields=FIELDS):
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        open_rows(source, str(folder), split, fields, cache)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_split(write, tmp_path, cache):
    source, folder = write(tmp_path / "data", RECORDS)
    if write is write_disk_of_one_split:  # a saved split has no name
        assert len(open_rows(source, str(folder), "valid", FIELDS, cache)) == 5
    else:
        fails(source, folder, cache, r"valid.*(train|there is)", split="valid")


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_field(write, tmp_path, cache):
    source, folder = write(tmp_path / "data", RECORDS)
    message = (
        r"(train|data).*( row 0|:1): no field 'text'; its fields are .*'article'.* \(set config\.data\.fields\.doc"
    )
    fails(source, folder, cache, message, fields=Fields("text", "abstract"))


@pytest.mark.parametrize("write", [writer for writer in WRITERS if writer is not write_tfds])
def test_a_wrong_type(write, tmp_path, cache):
    source, folder = write(tmp_path / "data", [{"article": 5, "abstract": "a"}] * 2)
    fails(source, folder, cache, r"( row 0|:1): field 'article' is int, expected text")


@pytest.mark.parametrize("write", WRITERS)
def test_empty_texts(write, tmp_path, cache):
    """As tensorflow-datasets' gov_report has them."""
    empty = [record | {"abstract": " "} for record in RECORDS]
    source, folder = write(tmp_path / "data", empty)
    fails(source, folder, cache, r"no rows in it; all 5 lack a document or summary")


def test_no_rows(tmp_path, cache):
    import datasets

    nothing = datasets.Dataset.from_dict({"article": [], "abstract": []})
    nothing.save_to_disk(str(tmp_path / "disk"))
    fails(f"datasets:{tmp_path / 'disk'}", "", cache, r"disk split 'train': .*; check config\.data\.source")
    (tmp_path / "data").mkdir()
    nothing.to_parquet(str(tmp_path / "data" / "train.parquet"))
    fails("parquet", tmp_path / "data", cache, r"train\.parquet: no rows in it; it is empty")


def test_damaged_files(tmp_path, cache):
    _, folder = write_parquet(tmp_path / "parquet", RECORDS)
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    fails("parquet", folder, cache, r"train\.parquet: .*; is it a whole Parquet file\?")
    source, _ = write_disk(tmp_path / "disk", RECORDS)
    (file,) = (tmp_path / "disk" / "train").glob("*.arrow")
    os.truncate(file, 100)
    fails(source, "", cache, r"disk split 'train': ")
    file.unlink()
    fails(source, "", cache, r"disk split 'train': .*No such file")


def test_folders(tmp_path, cache):
    (tmp_path / "hollow").mkdir()
    fails("jsonl", "", cache, r"config\.data\.data_dir is empty: pass --config\.data\.data_dir=FOLDER")
    fails("parquet", tmp_path / "gone", cache, r"config\.data\.data_dir=.*gone: no such folder")
    fails(
        "parquet",
        tmp_path / "hollow",
        cache,
        r"hollow: no train\.parquet or .* for the split 'train'; there is nothing",
    )
    fails("chunked", tmp_path / "hollow", cache, r"no train\.jsonl or train\.jsonl\.gz or train\.parquet")
    fails(f"datasets:{tmp_path / 'gone'}", "", cache, r"source=datasets:.*gone: no such folder")
    fails("datasets:./gone", "", cache, r"source=datasets:\./gone: no such folder")
    fails(f"datasets:{tmp_path / 'hollow'}", "", cache, r"hollow split 'train': .*doesn't contain any data files")
    _, folder = write_parquet(tmp_path / "parquet", RECORDS)
    fails("jsonl", folder, cache, r"there is train\.parquet \(config\.data\.source=parquet reads Parquet\)")


def test_no_code_is_run(tmp_path, cache):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    fails(f"datasets:{tmp_path / 'script'}", "", cache, r"scripts are no longer supported")
    assert not (tmp_path / "ran").exists()
    for source in (
        "tfds:user:name",
        "tfds:huggingface:squad",
        "tfds:x/a=1",
        "tfds:",
        "datasets:",
        "datasets",
        "xml",
        "",
    ):
        with pytest.raises(ValueError, match="expected"):
            formats.check_source(source)


def test_a_set_that_is_not_prepared(tmp_path, cache):
    what_to_do = r"python -c \"import tensorflow_datasets as tfds; tfds\.builder\('multi_news', data_dir='.*', file_for"
    fails("tfds:multi_news", tmp_path, cache, r"not prepared in .*multi_news/2\.1\.0; prepare it.*" + what_to_do)
    fails("tfds:no_such_set", tmp_path, cache, r"tfds:no_such_set: .*not found")
    fails("tfds:scientific_papers/x", tmp_path, cache, r"tfds:scientific_papers/x: .*x not found")


def test_a_set_that_is_prepared_for_tensorflow(tmp_path, cache):
    write_tfds(tmp_path / "data", RECORDS)
    info = tmp_path / "data" / "hand_made" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    fails(
        "tfds:hand_made",
        tmp_path / "data",
        cache,
        r"tfds:hand_made.*'tfrecord'.*; check the name .* is prepared again, into another",
    )


def test_without_a_network(tmp_path, cache, monkeypatch):
    """In seconds, not after minutes of retries; what the library has in its cache is read all the same."""
    import datasets
    from huggingface_hub import HfApi

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    message = r"some/set.* split 'train': .*the hub cannot be reached \(Name or service not known\): run once where"
    fails("datasets:some/set", "", cache, message)
    fails("chunked:some/set:large", "", cache, message)
    fails("datasets:not an id", "", cache, r"datasets:not an id: .*; expected a folder or an id of the hub")
    write_jsonl(tmp_path / "set", RECORDS)
    datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "hub"))
    (made,) = (tmp_path / "hub" / "set").iterdir()  # as if it had come from the hub
    made.rename(made.with_name("default"))
    (tmp_path / "hub" / "set").rename(tmp_path / "hub" / "some___set")
    assert rows(open_rows("datasets:some/set", "", "train", FIELDS, cache)) == ROWS
    assert datasets.config.HF_HUB_OFFLINE is bool(os.environ.get("HF_HUB_OFFLINE"))


@pytest.mark.parametrize("library", ["datasets", "tensorflow_datasets"])
def test_without_the_libraries(library, tmp_path, cache, monkeypatch):
    sources = {"datasets": ("parquet", f"datasets:{tmp_path}"), "tensorflow_datasets": ("tfds:multi_news",)}[library]
    (tmp_path / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, library, None)
    for source in sources:
        fails(source, tmp_path, cache, rf"needs {library}: pip install 'jax_simcas\[data\]'")


def test_jsonl_needs_no_library(tmp_path):
    write_jsonl(tmp_path / "data", RECORDS)
    data, cache = str(tmp_path / "data"), str(tmp_path / "cache")
    program = (
        "import sys; from pathlib import Path; from jax_simcas.data.rows import Fields; "
        "from jax_simcas.data.formats import open_rows; "
        f"open_rows('jsonl', {data!r}, 'train', Fields('article', 'abstract'), Path({cache!r})); "
        "assert not {'datasets', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_name_sources_that_can_be_opened(name):
    _, doc = read_config(name)
    named = re.findall(r"--config\.data\.source=([^\s,]+)", doc)
    assert any(source.startswith("chunked:JW-X/") for source in named), CONFIGS / name
    for source in named:
        formats.check_source(source)


def test_chunked_from_disk_to_batches(tmp_path, cache):
    """With the tokenizer that the set belongs to; to train one on token ids makes no sense."""
    records = [record | {"output_texts": ["five"]} for record in CHUNKED]
    source, _ = write_disk(tmp_path / "data", records)
    data = DataConfig(source=source.replace("datasets:", "chunked:"))
    simcas = SimcasConfig(chunk_length=4, max_input_len=16, max_target_len=8)
    settings = Settings(data=data, simcas=simcas)
    with pytest.raises(
        UserError, match=r"chunked:.* holds token ids: name the tokenizer that made them, --config\.data"
    ):
        build.make_tokenizer(settings, cache)
    tokenizer.word_level(["five", "six", "seven"], tmp_path / "tokenizer")
    settings = dataclasses.replace(settings, data=dataclasses.replace(data, tokenizer=str(tmp_path / "tokenizer")))
    batches = make_iterator(
        build.open_source(settings, "train", cache),
        build.make_tokenizer(settings, cache),
        build.pipeline_config(settings),
        training=False,
    )
    first, second = batches
    np.testing.assert_array_equal(first["input_ids"][0], [[0, 5, 6, 2], [0, 7, 1, 2]])
    np.testing.assert_array_equal(second["input_ids"][0], [[0, 5, 2, 1]])
    np.testing.assert_array_equal(second["target_ids"][0, :4], [2, 0, 5, 2])
