"""metrics.jsonl and TensorBoard: nothing written is lost, resumed runs have no line twice, errors are one line."""

import json
import math
import struct

import numpy as np
import pytest
from helpers import largest_file
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common import metric_log
from jax_simcas.common.errors import UserError


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Per file: (step, {tag: value}, is a restart) of every TensorBoard event, read from the bytes."""
    from tensorboardX.proto.event_pb2 import Event

    files = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, found = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            values = {v.tag: v.simple_value for v in event.summary.value}
            found.append((event.step, values, event.session_log.status == 1))
            data = data[12 + length + 4 :]
        files.append(found)
    return files


def test_writer_writes_a_line_and_an_event_at_once(tmp_path):
    with metric_log.MetricsWriter(tmp_path / "new" / "run") as writer:
        writer.write(5, "train", {"loss": np.float32(1.5), "selection/kept": 0.1, "reward": 3})
        # Not closed yet: a kill now loses nothing.
        assert lines(tmp_path / "new" / "run") == [
            {"step": 5, "split": "train", "loss": 1.5, "selection/kept": 0.1, "reward": 3.0}
        ]
        assert events(tmp_path / "new" / "run")[0][-1][0] == 5
        writer.write(5, "validation", {"loss": 2.0})
    found = events(tmp_path / "new" / "run")[0]
    assert found[-1][1] == {"validation/loss": 2.0}
    assert found[-2][1] == pytest.approx({"train/loss": 1.5, "train/selection/kept": 0.1, "train/reward": 3.0})


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.text(max_size=5).filter(lambda n: n not in ("step", "split")), st.floats()))
def test_numbers_survive_exactly_and_json_stays_valid(tmp_path_factory, values):
    values = {name.encode("utf-8", "ignore").decode(): value for name, value in values.items()}
    folder = tmp_path_factory.mktemp("run")
    with metric_log.MetricsWriter(folder) as writer:
        writer.write(1, "train", values)
    text = (folder / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    expected = {name: value if math.isfinite(value) else None for name, value in values.items()}
    assert row == {"step": 1, "split": "train", **expected}


def test_a_resumed_run_has_no_line_twice(tmp_path):
    with metric_log.MetricsWriter(tmp_path, resume_step=0) as writer:
        for step in range(1, 8):
            writer.write(step, "train", {"loss": step / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "split": "tr')  # killed while writing
    with metric_log.MetricsWriter(tmp_path, resume_step=5) as writer:
        for step in range(6, 10):
            writer.write(step, "train", {"loss": step / 3})
    assert lines(tmp_path) == [{"step": s, "split": "train", "loss": s / 3} for s in range(1, 10)]
    before, after = events(tmp_path)
    assert [step for step, values, _ in before if values] == list(range(1, 8))
    # TensorBoard drops what it has from the step of a restart on.
    assert after[1] == (6, {}, True)
    assert [step for step, values, _ in after if values] == [6, 7, 8, 9]


def test_without_a_resume_step_everything_whole_is_kept(tmp_path):
    good = '{"step": 3, "split": "train", "loss": null}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good.encode() + b'[1]\n{"step": 4}\n\xff\xfe\n\n{"ste')
    with metric_log.MetricsWriter(tmp_path) as writer:
        writer.write(4, "train", {})
    assert lines(tmp_path) == [
        {"step": 3, "split": "train", "loss": None},
        {"step": 4, "split": "train"},
    ]


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    for _ in range(2):
        with metric_log.MetricsWriter(tmp_path, resume_step=0) as writer:
            writer.write(1, "train", {"loss": 1.0})
    assert len(lines(tmp_path)) == 1


def test_unwritable_workdir_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.metrics\.jsonl: cannot be written \(.*\); give a folder") as error:
        metric_log.MetricsWriter(tmp_path / "file").__enter__()
    assert "\n" not in str(error.value)
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be"), metric_log.MetricsWriter(tmp_path / "run"):
        pass


def test_a_full_disk_is_one_line_and_leaves_no_half_of_one(tmp_path):
    with metric_log.MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1.0})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        with (
            largest_file(size + 20),
            pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left"),
        ):
            writer.write(2, "train", {"loss": 2.0})
        assert [row["step"] for row in lines(tmp_path)] == [1]
        writer.write(2, "train", {"loss": 2.0})
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_step_and_split_are_no_metrics(tmp_path):
    with metric_log.MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="step"):
        writer.write(1, "train", {"step": 2.0})
