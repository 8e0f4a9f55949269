"""Pictures: their panels, labels and legends, of any values, without a trace in matplotlib."""

import json
import math
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_simcas.common import metric_log, plots
from jax_simcas.common.errors import UserError
from jax_simcas.common.plots import curves
from jax_simcas.common.plots.growth import Growth
from jax_simcas.evaluation import metrics
from jax_simcas.evaluation.bootstrap import Score

NAN = math.nan
WITHOUT_INTERVAL = Score(5.0, NAN, NAN, 1)


def size_of(path):
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def panels(figure):
    """Title -> axes."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def legend(owner):
    return [text.get_text() for text in owner.get_texts()]


def texts(figure):
    """Everything written on a figure."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def lines(axes):
    """Label -> (x, y) of the labelled lines."""
    found = ((line.get_label(), line.get_xdata(), line.get_ydata()) for line in axes.get_lines())
    return {label: (list(x), list(y)) for label, x, y in found if not label.startswith("_")}


# Curves


def rows_of(steps, every=5, **names):
    """Lines of metrics.jsonl: metric -> value of a step."""
    rows = [{"step": s, "split": "train"} | {n: f(s) for n, f in names.items()} for s in range(1, steps + 1)]
    return rows + [
        {"step": s, "split": "validation", "loss": 2 + 1 / s, "nll": 2.0} for s in range(every, steps + 1, every)
    ]


def write_run(workdir, rows):
    with metric_log.MetricsWriter(workdir) as writer:
        for row in rows:
            writer.write(row["step"], row["split"], {n: v for n, v in row.items() if n not in ("step", "split")})
    return workdir / "metrics.jsonl"


def test_curves_have_a_panel_per_metric_and_ticks_where_there_was_validation():
    figure = plots.training_figure(
        rows_of(20, loss=lambda s: 3 / s, nll=lambda s: 2 / s, learning_rate=lambda s: s, grad_norm=lambda s: 1), "mine"
    )
    assert figure.get_suptitle() == "mine"
    found = panels(figure)
    assert list(found) == [
        *("Loss", "Negative log-likelihood"),
        *("Learning rate of the transformer", "Gradient norm of the transformer"),
    ]
    assert found["Loss"].get_ylabel() == "nats per token, smoothed labels"
    assert all(list(axes.get_xticks()) == [5, 10, 15, 20] for axes in figure.axes)
    train, validation = lines(found["Loss"]).values()
    assert train == ([*range(1, 21)], [3 / s for s in range(1, 21)])
    assert validation[0] == [5, 10, 15, 20]


def test_kept_is_what_the_decoder_sees():
    """Also where the log is of a version that did not write it."""
    chosen = {"selection/kept": lambda s: 0.5, "selection/overflow": lambda s: 0.2}
    for more, value in (({}, 0.4), ({"kept": lambda s: 0.3}, 0.3)):
        found = panels(plots.training_figure(rows_of(3, **chosen, **more), "mine"))
        (train,) = lines(found["Kept: what the decoder sees"]).values()
        assert train[1] == pytest.approx([value] * 3)


def test_the_legend_says_which_policy_selects():
    figure = plots.training_figure(rows_of(10, loss=lambda s: 1.0), "mine")
    train, validation = legend(figure.legends[0])
    assert train.startswith("training (training policy: sampled") and "inference policy: greedy" in validation


def test_the_legend_says_on_how_many_documents_and_how_lines_are_drawn():
    rows = rows_of(10, loss=lambda s: 1.0)
    note = lambda rows: plots.training_figure(rows, "mine").legends[0].get_title().get_text()
    assert note(rows) == "no intervals. Thin lines: as logged; thick: moving average"
    counted = [row | ({"documents": 1_500.0} if row["split"] == "validation" else {}) for row in rows]
    assert note(counted).startswith("validation: means over 1,500 documents, at the ticks; no intervals")


def test_kept_is_what_was_selected_within_the_capacity():
    old = {"selection/kept": 0.5, "selection/overflow": 0.4}
    rows = [{"step": 1, "split": "train", **old}, {"step": 2, "split": "train", **old, "kept": 0.25}]
    found = panels(plots.training_figure(rows, "mine"))
    (line,) = lines(found["Kept: what the decoder sees"]).values()
    assert line == ([1, 2], [0.3, 0.25])
    assert found["Selected beyond the capacity, and dropped"].get_ylabel() == "share of the selected"


def test_noisy_metrics_are_smoothed_and_the_learning_rate_is_not():
    zigzag = lambda step: float(step % 2)
    rows = rows_of(200, loss=zigzag, learning_rate=zigzag)
    drawn = {
        title: next(iter(lines(axes).values()))[1] for title, axes in panels(plots.training_figure(rows, "m")).items()
    }
    assert drawn["Learning rate of the transformer"] == [zigzag(step) for step in range(1, 201)]
    assert min(drawn["Loss"]) > 0 and max(drawn["Loss"]) < 1


def test_equal_loss_and_nll_are_one_panel():
    same = [row | {"nll": row["loss"] * (1 + 1e-7)} for row in rows_of(10, loss=lambda s: 3 / s)]
    assert list(panels(plots.training_figure(same, "mine"))) == ["Loss = negative log-likelihood"]
    other = [*same, {"step": 11, "split": "train", "loss": 1.0, "nll": 1.1}]
    assert len(panels(plots.training_figure(other, "mine"))) == 2


@pytest.mark.parametrize("count", [1, 6, 7, 13, 100])
def test_ticks_are_few_evenly_spaced_and_end_at_the_last_validation(count):
    ticks = curves.step_ticks([10 * n for n in range(1, count + 1)])
    assert 1 <= len(ticks) <= curves.TICKS and ticks[-1] == 10 * count
    assert len(set(np.diff(ticks))) <= 1


def test_curves_are_written_together_and_alone(tmp_path):
    path = write_run(tmp_path, rows_of(60, loss=lambda s: 1 / s, nll=lambda s: 2 / s, **{"ppo/approx_kl": lambda s: s}))
    written = plots.plot_training(path, tmp_path / "plots")
    names = [file.relative_to(tmp_path / "plots").as_posix() for file in written]
    assert names == ["curves.png", "curves/loss.png", "curves/nll.png", "curves/kl.png"]
    assert all(width >= 700 and height >= 400 for width, height in map(size_of, written))
    assert not list((tmp_path / "plots").rglob("*.tmp"))
    before = written[0].read_bytes()
    assert plots.plot_training(str(path), str(tmp_path / "plots")) == written and written[0].read_bytes() == before


def test_metrics_that_are_missing_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "split": "train", "loss": None, "nll": None, "reward": "x"},
        {"step": 1, "split": "test", "loss": 2.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    assert [p.name for p in plots.plot_training(path, tmp_path)] == ["curves.png", "loss.png"]
    path.write_text("")
    assert plots.plot_training(path, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-1.0, 5.0], [1e-30, 1e30], [7.0] * 50, [1e-4, 1.0, 0.0]])
def test_any_values_can_be_drawn(tmp_path, values):
    rows = [{"step": step, "split": "train", "ppo/approx_kl": value} for step, value in enumerate(values)]
    (axes,) = plots.training_figure(rows, "mine").axes
    assert next(iter(lines(axes).values()))[0] == [*range(len(values))]
    _, kl = plots.plot_training(write_run(tmp_path, rows), tmp_path)
    assert size_of(kl)


def test_plotting_needs_metrics_and_a_place(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jsonl: cannot be read \(No such file"):
        plots.plot_training(tmp_path / "gone.jsonl", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"curves\.png: cannot be written"):
        plots.plot_training(write_run(tmp_path, rows_of(1, loss=lambda s: 1.0)), tmp_path / "file")


def test_plotting_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    plots.plot_training(write_run(tmp_path, rows_of(3, loss=lambda s: 1.0)), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_smoothing_stays_within_the_values(values):
    got = curves.smooth(np.array(values))
    assert got.shape == (len(values),)
    assert min(values) - 1e-6 <= got.min() and got.max() <= max(values) + 1e-6


def test_smoothing_by_hand():
    assert curves.smooth(np.array([1.0, 5.0])).tolist() == [1, 5]
    spike = np.zeros(40)
    spike[0], spike[20] = 6, 6
    assert curves.smooth(spike)[[0, 1, 2, 19, 20, 21]].tolist() == pytest.approx([3, 2, 0, 2, 2, 2])


# Scores


def test_comparison_has_words_units_and_the_number_of_documents(tmp_path):
    table = {
        "SimCAS": {"exact_match": Score(80.0, 70.0, 90.0, 50), "ratio": Score(math.inf, 3.0, math.inf, 50)},
        "one chunk": {"exact_match": Score(10.0, 5.0, 15.0, 50), "ratio": Score(NAN, NAN, NAN, 0)},
        "random": {"exact_match": Score(5.0, NAN, NAN, 50)},
    }
    figure = plots.comparison_figure(table, metrics.measure_of, "split: test")
    assert figure.get_suptitle() == "split: test"
    match, ratio = panels(figure).values()
    assert (match.get_title(loc="left"), match.get_xlabel()) == ("SQuAD exact match", "%")
    assert (ratio.get_title(loc="left"), ratio.get_xlabel()) == ("ratio", "")
    assert match.get_xlim() == (0, 100)  # no percentage is larger
    assert [bar.get_width() for bar in match.patches] == [80, 10, 5]
    assert [text.get_text() for text in match.get_yticklabels()] == list(table)
    assert "50 documents; whiskers: 95 % intervals" in texts(figure)
    assert [text.get_text() for text in ratio.texts] == ["inf", "–", "–"]
    assert size_of(plots.plot_comparison(table, tmp_path / "new" / "comparison.png", metrics.measure_of))


def test_comparison_says_that_all_scores_are_0():
    figure = plots.comparison_figure({"a": {"f1": Score(0.0, 0.0, 0.0, 2)}, "b": {"f1": Score(0.0, 0.0, 0.0, 3)}})
    assert "all scores are 0" in texts(figure) and "2 to 3 documents; whiskers: 95 % intervals" in texts(figure)
    with pytest.raises(ValueError, match="at least one variant"):
        plots.comparison_figure({})


def test_differences_name_both_runs_and_tell_apart_those_that_exclude_0(tmp_path):
    scores = {
        "rouge1": Score(0.2, -0.1, 0.5, 9),
        "rouge2": Score(0.2, 0.1, 0.5, 9),
        "rougeL": Score(-0.2, -0.5, -0.1, 9),
        "bleu": WITHOUT_INTERVAL,
        "f1": Score(NAN, NAN, NAN, 0),
    }
    figure = plots.differences_figure(scores, "runs/a", "runs/b", metrics.measure_of, {"rouge2": "p < 0.0002"})
    assert figure.get_suptitle() == "A: runs/a\nB: runs/b"
    (axes,) = figure.axes
    labels = ["ROUGE-1 F1", "ROUGE-2 F1", "ROUGE-L F1", "bleu", "SQuAD F1"]
    assert [text.get_text() for text in axes.get_yticklabels()] == labels
    assert axes.get_xlabel() == "A - B (%)" and "p < 0.0002" in texts(figure)
    points = {line.get_ydata()[0]: line for line in axes.get_lines() if line.get_marker() == "o"}
    assert {y: line.get_xdata()[0] for y, line in points.items()} == {0: 0.2, 1: 0.2, 2: -0.2, 3: 5.0}
    color = {y: line.get_color() for y, line in points.items()}
    assert color[0] == color[3] != color[1] == color[2]
    assert size_of(plots.plot_differences(scores, tmp_path / "new" / "differences.png", "a", "b"))


def test_lines_share_a_legend_and_have_intervals(tmp_path):
    score = lambda x: Score(x, x - 1, x + 1, 5)
    table = {
        "f1": {"SimCAS": {1000: score(9.0), 10: score(2.0)}, "one chunk": {10: WITHOUT_INTERVAL}},
        "nll": {"SimCAS": {10: score(3.0)}},
    }
    figure = plots.lines_figure(table, "training examples", metrics.measure_of, "length on embedded")
    assert figure.get_suptitle() == "length on embedded"
    first, second = figure.axes
    assert (first.get_xlabel(), first.get_xscale()) == ("training examples", "log")  # more than a decade
    assert [text.get_text() for text in first.get_xticklabels()] == ["10", "1,000"]
    assert (second.get_title(loc="left"), second.get_ylabel()) == ("Negative log-likelihood", "nats per token")
    assert lines(first) == {"SimCAS": ([10, 1000], [2.0, 9.0]), "one chunk": ([10], [5.0])}
    assert legend(figure.legends[0]) == ["SimCAS", "one chunk"]
    assert figure.legends[0].get_title().get_text() == "1 to 5 documents per point; shaded: 95 % intervals"
    assert size_of(plots.plot_lines(table, "training examples", tmp_path / "lines.png"))
    with pytest.raises(ValueError, match="at least one"):
        plots.lines_figure({}, "examples")


# Growth


def test_growth_has_readable_ticks_and_the_exponents_beside_slope_1(tmp_path):
    table = {
        "Time in seconds": {"encode": Growth(((2048, 1.0), (1024, 0.5), (4096, 2.0)), 1.0)},
        "Working memory in MiB": {
            "encode": Growth(((1024, 9.0), (4096, 10.0)), 0.08),
            "one": Growth(((1024, 7),), NAN),
        },
    }
    figure = plots.growth_figure(table, "two cores")
    seconds, memory = figure.axes
    figure.canvas.draw()
    assert [text.get_text() for text in seconds.get_xticklabels()] == ["1,024", "2,048", "4,096"]
    assert {"0.5", "1", "2"} <= {text.get_text() for text in seconds.get_yticklabels()}
    assert legend(seconds.get_legend()) == ["encode: exponent 1.00", "proportional: exponent 1"]
    assert legend(memory.get_legend()) == ["encode: exponent 0.08", "one", "proportional: exponent 1"]
    assert lines(seconds)["encode: exponent 1.00"] == ([1024, 2048, 4096], [0.5, 1.0, 2.0])
    assert lines(memory)["proportional: exponent 1"] == ([1024, 4096], [7, 28])
    assert any("two cores" in text for text in texts(figure))
    assert size_of(plots.plot_growth(table, tmp_path / "growth.png"))
