"""Files that a killed run leaves, tables and progress lines."""

import errno
import io
import json
import math
import resource
import struct
from contextlib import redirect_stderr

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas.common import files, metric_log, progress, tables
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation.metrics import Score

NAN = math.nan
WITHOUT_INTERVAL = Score(5.0, NAN, NAN, 1)


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


# Writer


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
def test_figures_survive_exactly_and_json_stays_valid(tmp_path_factory, values):
    values = {name.encode("utf-8", "ignore").decode(): value for name, value in values.items()}
    folder = tmp_path_factory.mktemp("run")
    with metric_log.MetricsWriter(folder) as writer:
        writer.write(1, "train", values)
    text = (folder / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    expected = {name: value if math.isfinite(value) else None for name, value in values.items()}
    assert row == {"step": 1, "split": "train", **expected}


def test_resumed_run_has_no_figures_twice(tmp_path):
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


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(tmp_path):
    for _ in range(2):
        with metric_log.MetricsWriter(tmp_path, resume_step=0) as writer:
            writer.write(1, "train", {"loss": 1.0})
    assert len(lines(tmp_path)) == 1


def test_unwritable_workdir_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.metrics\.jsonl: cannot be written \(.*\); give a folder") as error:
        metric_log.MetricsWriter(tmp_path / "file").__enter__()
    assert "\n" not in str(error.value)
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be"), metric_log.MetricsWriter(tmp_path / "run"):
        pass


def test_full_disk_is_told_in_one_line(tmp_path):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    with metric_log.MetricsWriter(tmp_path) as writer:
        writer._file = Full()
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
            writer.write(1, "train", {"loss": 1.0})


def test_step_and_split_are_no_figures(tmp_path):
    with metric_log.MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="step"):
        writer.write(1, "train", {"step": 2.0})


def test_json_ready():
    value = {"a": [1.0, NAN, (math.inf, "x", None)], "b": Score(1.0, NAN, 2.0, 3)}
    assert files.json_ready(value) == {"a": [1.0, None, [None, "x", None]], "b": [1.0, None, 2.0, 3]}


# Tables


def test_format_score():
    assert tables.format_score(Score(12.34, 11.0, 13.46, 9)) == "12.3 [11.0, 13.5]"
    assert tables.format_score(Score(12.34, 11.0, 13.46, 9), digits=2) == "12.34 [11.00, 13.46]"
    assert tables.format_score(WITHOUT_INTERVAL) == "5.0"
    assert tables.format_score(Score(NAN, NAN, NAN, 0)) == "–"
    assert tables.format_score(Score(math.inf, 2.0, math.inf, 3)) == "inf [2.0, inf]"


def test_markdown_table():
    rows = [
        {"variant": "SimCAS", "f1": Score(12.34, 11.0, 13.46, 9), "s": 1.23456, "n": 7},
        {"variant": "a|b\nc", "f1": None, "s": NAN},
    ]
    assert tables.markdown_table(rows, ["variant", "f1", "s", "n"]) == (
        "| variant |                f1 |     s |   n |\n"
        "| ------- | ----------------: | ----: | --: |\n"
        "| SimCAS  | 12.3 [11.0, 13.5] | 1.235 |   7 |\n"
        "| a\\|b c  |                 – |     – |   – |"
    )
    assert tables.markdown_table([], ["a"]) == "| a   |\n| --- |"


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text(max_size=8) | st.floats() | st.none()), max_size=5))
def test_every_table_is_aligned(rows):
    lines = tables.markdown_table(rows, ["a", "b", "c"]).split("\n")
    assert len(lines) == 2 + len(rows)
    assert len({len(line) for line in lines}) == 1
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)


# Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def run_progress(clock, steps=30, seconds=2.0, **options):
    stream = io.StringIO()
    with redirect_stderr(stream), progress.Progress(steps, clock=clock, **options) as bar:
        for step in range(options.get("initial", 0), steps):
            clock.now += seconds
            bar.update()
            bar.show(
                {
                    "loss": 3.0 - step / 100,
                    "reward": 12.0,
                    "kept": 0.25,
                    "tokens_per_second": 12_345.0,
                }
            )
    return stream.getvalue()


def test_plain_lines_come_at_once_and_then_every_interval():
    text = run_progress(Clock())
    assert "\r" not in text
    got = text.splitlines()
    assert got[0] == "0/30 steps"
    assert got[1] == "5/30 steps, loss 2.970, reward 12, kept 25.0%, 12.3k tok/s, 0:50 left"
    assert [line.split("/")[0] for line in got] == ["0", "5", "10", "15", "20", "25", "30"]
    assert "left" not in got[-1]


def test_time_left_does_not_count_the_first_step_which_compiles(capsys):
    clock = Clock()
    with progress.Progress(10, initial=4, unit="documents", interval=0, clock=clock) as bar:
        for seconds in (300, 1, 1):
            clock.now += seconds
            bar.update(1)
    assert capsys.readouterr().err.splitlines() == [
        "4/10 documents",
        "5/10 documents",
        "6/10 documents, 0:04 left",
        "7/10 documents, 0:03 left",
    ]


def test_last_line_is_printed_once():
    assert run_progress(Clock(), steps=3, seconds=0.1).splitlines()[-1].startswith("3/3 steps")
    assert run_progress(Clock(), steps=0) == "0/0 steps\n"


def test_disabled_progress_is_silent():
    assert run_progress(Clock(), disable=True) == ""


def test_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with redirect_stderr(stream), progress.Progress(4, unit="documents") as bar:
        bar.show({"loss": 1.25, "other": 3.0})
        bar.update(3)
    text = stream.getvalue()
    assert "\r" in text and "3/4 documents" in text and "loss 1.250" in text and "other" not in text


def test_nothing_goes_to_standard_output(capsys):
    with progress.Progress(2):
        pass
    assert capsys.readouterr() == ("", "0/2 steps\n")


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61, "1:01"), (59.7, "1:00"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_half(tmp_path):
    path = tmp_path / "config.json"
    files.replace_file(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(UserError, match=rf"{path}: cannot be written \(File too large\)"):
            files.replace_file(path, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
