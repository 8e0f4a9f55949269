"""Progress lines and bars on standard error."""

import io
from contextlib import redirect_stderr

import pytest

from jax_simcas.common import progress


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


def test_time_left_counts_no_compilation_and_expects_other_work(capsys):
    clock = Clock()
    with progress.Progress(5, interval=0, clock=clock) as bar:
        for seconds, compiling, validations in ((2, 0, 0), (302, 300, 0), (2, 0, 20), (42, 40, 10), (2, 0, 0)):
            clock.now += seconds
            bar.leave_out(compiling)
            bar.expect(validations)
            bar.update()
    assert [line.partition(", ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "",
        "",
        "0:06 left",
        "0:24 left",
        "0:12 left",
        "",
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
