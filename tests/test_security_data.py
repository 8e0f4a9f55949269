"""Data, documents and the state of a run from elsewhere run no code, and name no file outside their folder."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from helpers import PARITY
from hostile import DEEP, MARKUP, MODEL, Touch, refused
from hostile import marker as marker
from hostile import marking_module as marking_module
from hostile import model as model
from stand_in_hub import hub as hub

from jax_simcas.checkpoints.run_state import Checkpointer, load_params
from jax_simcas.common import files
from jax_simcas.common.errors import UserError
from jax_simcas.common.metric_log import read_metrics
from jax_simcas.data.documents import text_of
from jax_simcas.data.features import FeatureConfig, featurize
from jax_simcas.data.formats import open_rows
from jax_simcas.data.rows import Fields, Row
from jax_simcas.data.text_files import CsvSource, JsonlSource
from jax_simcas.data.tokenizer import load_tokenizer
from jax_simcas.evaluation.files import read_rows
from jax_simcas.evaluation.highlight import Shown, page
from jax_simcas.evaluation.summarizer import ReadTokens
from jax_simcas.run import workdir as workdir_lib
from jax_simcas.run.parity_cases import read_cases

# The state of a run


def sealed(body):
    """Metadata as a checkpoint has it: anyone can compute the digest."""
    text = json.dumps(body)
    return json.dumps({"json": text, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()})


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {"params/../../../../x": {"is": "float32[2]", "key": None, "digest": [0, 0]}}},
        {"arrays": {"params/w": {"is": "float32[2]", "key": "os:abort", "digest": [0, 0]}}},
        {"arrays": {"params/w": {"py/reduce": ["os.abort"]}}},
        {"best": ["loss", "os:abort"], "metrics": {"loss": "__import__('os').abort()"}},
        {"best": []},
        {"arrays": [1], "meta": 7},
    ],
    ids=str,
)
def test_metadata_of_a_checkpoint_names_nothing_outside_it(change, tmp_path):
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(1, {"params": {"w": jnp.arange(2.0)}}, {"loss": 1.0}, {"step": 1})
    place = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    body = json.loads(json.loads(place.read_text())["json"])
    place.write_text(sealed(body | change))
    try:
        params, _ = load_params(tmp_path / "checkpoints")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(params["w"], [0, 1])


def test_objects_in_arrays_are_never_read(tmp_path, marker, capsys):
    folder = tmp_path / "parity"
    shutil.copytree(PARITY, folder)
    for file in folder.glob("*.npz"):
        np.savez(file, a=np.array([Touch(marker)], object))
    refused(folder, "cannot be read", read_cases)
    manifest = json.loads((folder / "manifest.json").read_text())
    first, settings = next(iter(manifest.items()))
    (folder / "manifest.json").write_text(json.dumps({f"{first.split('_')[0]}_/../../x": settings}))
    refused(folder, "is of no known kind", read_cases)


def test_an_index_in_the_cache_with_objects_is_made_anew(tmp_path, marker):
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"document": "a b", "summary": "c"}\n')
    JsonlSource(rows, Fields(), tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "indexes").iterdir()
    names = np.load(index).files
    np.savez(index, **{name: np.array([Touch(marker)], object) for name in names})
    assert JsonlSource(rows, Fields(), tmp_path / "cache")[0].document == "a b"


def test_an_object_in_a_bucket_is_not_written_outside_the_copy(tmp_path, monkeypatch):
    bucket, disk = tmp_path / "bucket", LocalFileSystem(auto_mkdir=True)
    monkeypatch.setattr(fsspec_backend, "fs", lambda path: DirFileSystem(str(bucket), disk))
    (bucket / "gs:" / "b" / "run").mkdir(parents=True)
    (bucket / "gs:" / "b" / "run" / "config.json").write_text("{}")
    real = workdir_lib._files
    monkeypatch.setattr(workdir_lib, "_files", lambda path: (each.parent / ".." / each.name for each in real(path)))
    with pytest.raises(UserError, match=r"--workdir=gs://b/run: has \.\./config\.json, which would be written outside"):
        workdir_lib.Workdir.at("gs://b/run", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("config.json"))


# Data


def test_markup_in_rows_and_templates_is_text(tmp_path):
    """Braces, tags, formulas and shell words of a document reach the tokenizer as they are."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"document": MARKUP, "summary": MARKUP}) + "\n")
    (tmp_path / "a.csv").write_text('document,summary\n"{0}","{0}"\n'.replace("{0}", MARKUP))
    tokenizer = load_tokenizer(MODEL)
    for source in (JsonlSource, CsvSource):
        row = source(tmp_path / f"a.{source.label[:-6].lower()}", Fields(), tmp_path / "cache")[0]
        assert row.document == row.summary == MARKUP
    template = "{document.__class__} {query.__init__} {0} {document}"
    config = FeatureConfig(64, 256, 64, input_template=template)
    row = Row(id="1", document="Anna", summary="x")
    plain = tokenizer.backend_tokenizer.encode(template.replace("{document}", "Anna"), add_special_tokens=False).ids
    features = featurize(row, tokenizer, config)
    assert features["input_ids"][features["content_mask"]].tolist() == plain
    with pytest.raises(ValueError, match=r"expected '\{document\}' in it, once"):
        FeatureConfig(64, 256, 64, input_template="{document.__class__}")


def test_a_page_of_what_was_kept_holds_no_markup_of_a_document():
    read = ReadTokens(np.zeros((0, 2), int), np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(1)">' + MARKUP
    html = page(Shown(evil, evil, evil, read, query=evil, references=[evil], scores={evil: 1.0}))
    assert "<img" not in html and html.count("<script") == 2 and "'unsafe" not in html
    assert "default-src 'none'" in html


def test_too_deep_json_is_one_line_everywhere(tmp_path):
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "predictions.jsonl").write_text(DEEP + "\n")
    (tmp_path / "metrics.jsonl").write_text(DEEP + '\n{"step": 1, "split": "train"}\n')
    refused(tmp_path / "deep.json", "nested too deeply", lambda path: files.read_json(path, ""))
    refused(tmp_path, "nested too deeply", read_rows)
    refused(tmp_path / "predictions.jsonl", "nested too deeply", lambda path: JsonlSource(path, Fields(), tmp_path))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "split": "train"}]


def test_a_prepared_set_imports_no_other_library(tmp_path, marking_module):
    tfds = pytest.importorskip("tensorflow_datasets")
    name, mark = marking_module
    assert tfds.__version__
    folder = tmp_path / "data" / "someones" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "someones", "version": "1.0.0", "fileFormat": "array_record"}')
    inner = {"pythonClassName": f"{name}.Feature", "json": {"json": "{}"}}
    for features in (
        inner,
        {"type": f"{name}.Feature", "content": {}},
        {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
         "featuresDict": {"features": {"document": inner}}},
        {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
         "jsonFeature": {"json": json.dumps({"type": f"{name}.Feature"})}},
    ):  # fmt: skip
        (folder / "features.json").write_text(json.dumps(features))
        with pytest.raises(UserError, match=rf"features\.json: names the class '{name}\.Feature', which is none of"):
            open_rows("tfds:someones", str(tmp_path / "data"), "train", Fields(), tmp_path / "cache")
    (folder / "features.json").write_text(DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        open_rows("tfds:someones", str(tmp_path / "data"), "train", Fields(), tmp_path / "cache")
    assert not mark.exists()


def test_a_library_that_may_run_scripts_is_refused(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(
        UserError, match=r"needs datasets 4 or newer, as 3\.6\.0 may run code that comes with data: pip"
    ):
        open_rows(f"datasets:{tmp_path}", "", "train", Fields(), tmp_path / "cache")


# Documents


def docx(text, **more):
    """A DOCX whose main part is `text`, with further members."""
    out = io.BytesIO()
    from docx import Document

    Document().save(out)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(out.getvalue())) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, text if name == "word/document.xml" else old.read(name))
        for name, content in more.items():
            new.writestr(name.replace("_", "/"), content)
    return made.getvalue()


def test_a_docx_takes_nothing_from_outside_and_unpacks_nothing(tmp_path, monkeypatch):
    pytest.importorskip("docx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private").write_text("a secret")
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = f"<w:document {space}><w:body><w:p><w:r><w:t>words &x;</w:t></w:r></w:p></w:body></w:document>"
    head = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/private">]>'
    try:
        text = text_of(docx(head + body, **{".._.._unpacked": b"x", "_tmp_unpacked-by-a-test": b"x"}), "a.docx")
    except UserError as error:
        text = str(error)
    assert "secret" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"private"}
    assert not Path("/tmp/unpacked-by-a-test").exists()


def test_html_of_a_document_takes_nothing_from_outside(tmp_path):
    pytest.importorskip("inscriptis")
    (tmp_path / "private").write_text("a secret")
    head = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{tmp_path}/private">]>'
    html = f'{head}<html><body>words &x;<script>"ran"</script><iframe src="file://{tmp_path}/private"></iframe></body>'
    text = text_of(html.encode(), "a.html")
    assert "words" in text and "secret" not in text and "ran" not in text
