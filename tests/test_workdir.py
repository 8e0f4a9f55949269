"""The folder of a run: whose it is, and how one in a bucket is kept."""

import errno
import shutil

import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from jax_simcas.common import files
from jax_simcas.common.errors import UserError
from jax_simcas.run import workdir as workdir_lib


def test_a_workdir_in_a_bucket_has_its_small_files_copied_both_ways(monkeypatch, tmp_path):
    """With the paths of the real library, which refuse in buckets some of what they do on disks."""
    bucket, disk = tmp_path / "bucket", LocalFileSystem(auto_mkdir=True)
    monkeypatch.setattr(fsspec_backend, "fs", lambda path: DirFileSystem(str(bucket), disk))
    here = workdir_lib.Workdir.at("gs://b/run/", tmp_path / "one")
    assert here.checkpoints == "gs://b/run/checkpoints"
    (here.local / "tokenizer").mkdir()
    (here.local / "tokenizer" / "vocab.json").write_text("{}")
    (here.local / "config.json").write_text("1")
    here.publish()
    (bucket / "gs:" / "b" / "run" / "checkpoints" / "1").mkdir(parents=True)
    (bucket / "gs:" / "b" / "run" / "checkpoints" / "1" / "large").write_text("x")
    there = workdir_lib.Workdir.at("gs://b/run", tmp_path / "two")
    found = sorted(str(path.relative_to(there.local)) for path in there.local.rglob("*") if path.is_file())
    assert found == ["config.json", "tokenizer/vocab.json"]
    # What is gone from the bucket is gone from the copy, or an emptied folder would seem to hold a run.
    (there.local / "metrics.jsonl").write_text("{}")
    there.publish()
    assert there.begun()
    shutil.rmtree(bucket)
    again = workdir_lib.Workdir.at("gs://b/run", tmp_path / "two")
    assert again.local == there.local and not again.begun() and not (again.local / "config.json").exists()
    assert workdir_lib.Workdir.at(tmp_path / "plain", tmp_path).checkpoints == str(tmp_path / "plain" / "checkpoints")


def test_a_bucket_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    def refuse(name):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(workdir_lib.epath, "Path", refuse)
    with pytest.raises(UserError, match=r"--workdir=gs://b/run: cannot be read \(no gcsfs\)"):
        workdir_lib.Workdir.at("gs://b/run", tmp_path)


def test_a_folder_belongs_to_one_training_at_a_time(tmp_path):
    one, other = (workdir_lib.Workdir.at(tmp_path / "run", tmp_path) for _ in range(2))
    with (
        one.held(),
        pytest.raises(UserError, match=f"--workdir={one.local}: another training is at work there"),
        other.held(),
    ):
        pass
    with other.held():
        pass


def test_a_file_system_without_locks_keeps_no_one_out(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    here = workdir_lib.Workdir.at(tmp_path / "run", tmp_path)
    with here.held(), here.held():
        pass
