"""Pictures: curves that can be read, of any values, and that leave matplotlib alone."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_simcas.common import metric_log, plots
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation.metrics import Score

NAN = math.nan
WITHOUT_INTERVAL = Score(5.0, NAN, NAN, 1)


def pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_color(image, color):
    return (image == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).any()


def write_run(workdir, steps, validation=True, names=("loss", "nll", "reward", "selection/kept", "ppo/approx_kl")):
    with metric_log.MetricsWriter(workdir) as writer:
        for step in range(1, steps + 1):
            writer.write(step, "train", dict.fromkeys(names, 1 + 1 / step) | {"learning_rate": 0.1})
            if validation and step % 5 == 0:
                writer.write(step, "validation", {"loss": 2 + 1 / step})
    return workdir / "metrics.jsonl"


def test_curves_are_images_of_the_run(tmp_path):
    written = plots.plot_training(write_run(tmp_path, 60), tmp_path / "plots")
    names = [path.relative_to(tmp_path / "plots").as_posix() for path in written]
    assert names == ["curves.png", *(f"curves/{n}.png" for n in ("loss", "nll", "reward", "kept", "kl"))]
    found = {name: pixels(path) for name, path in zip(names, written, strict=True)}
    for image in found.values():
        assert image.shape[0] >= 400 and image.shape[1] >= 700
        assert image.std() > 5 and has_color(image, plots._COLORS["train"])
    assert has_color(found["curves/loss.png"], plots._COLORS["validation"])
    assert not has_color(found["curves/nll.png"], plots._COLORS["validation"])
    assert not list((tmp_path / "plots").rglob("*.tmp"))
    again = plots.plot_training(tmp_path / "metrics.jsonl", tmp_path / "plots")
    assert again == written and (pixels(again[0]) == found["curves.png"]).all()


def test_figures_that_are_missing_are_left_out(tmp_path):
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
    with metric_log.MetricsWriter(tmp_path) as writer:
        for step, value in enumerate(values):
            writer.write(step, "train", {"ppo/approx_kl": value})
    _, kl = plots.plot_training(tmp_path / "metrics.jsonl", tmp_path)
    assert pixels(kl).std() > 0


def test_plotting_needs_metrics_and_a_place(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jsonl: cannot be read \(No such file"):
        plots.plot_training(tmp_path / "gone.jsonl", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"curves\.png: cannot be written"):
        plots.plot_training(write_run(tmp_path, 1, names=("loss",)), tmp_path / "file")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_smoothing_stays_within_the_values(values):
    got = plots.smooth(np.array(values))
    assert got.shape == (len(values),)
    assert min(values) - 1e-6 <= got.min() and got.max() <= max(values) + 1e-6


def test_smoothing_by_hand():
    assert plots.smooth(np.array([1.0, 5.0])).tolist() == [1, 5]
    spike = np.zeros(40)
    spike[0], spike[20] = 6, 6
    assert plots.smooth(spike)[[0, 1, 2, 19, 20, 21]].tolist() == pytest.approx([3, 2, 0, 2, 2, 2])


def test_comparison_is_an_image(tmp_path):
    table = {
        "SimCAS": {"exact match": Score(80.0, 70.0, 90.0, 50), "ratio": Score(math.inf, 3.0, math.inf, 50)},
        "one chunk": {"exact match": Score(10.0, 5.0, 15.0, 50), "ratio": Score(NAN, NAN, NAN, 0)},
        "random": {"exact match": WITHOUT_INTERVAL},
    }
    image = pixels(plots.plot_comparison(table, tmp_path / "new" / "comparison.png"))
    assert has_color(image, plots._COLORS["train"]) and has_color(image, plots._PLAIN_BAR)
    nothing = {"a": {"x": Score(0.0, 0.0, 0.0, 2)}}
    assert pixels(plots.plot_comparison(nothing, tmp_path / "zero.png")).std() > 0
    with pytest.raises(ValueError, match="at least one variant"):
        plots.plot_comparison({}, tmp_path / "empty.png")


def test_differences_are_an_image_and_sure_ones_stand_out(tmp_path):
    unsure = {"rouge1": Score(0.2, -0.1, 0.5, 9), "bleu": WITHOUT_INTERVAL, "f1": Score(NAN, NAN, NAN, 0)}
    image = pixels(plots.plot_differences(unsure, tmp_path / "new" / "unsure.png"))
    assert has_color(image, plots._PLAIN_BAR) and not has_color(image, plots._COLORS["train"])
    for sure in (Score(0.2, 0.1, 0.5, 9), Score(-0.2, -0.5, -0.1, 9)):
        image = pixels(plots.plot_differences(unsure | {"rouge2": sure}, tmp_path / "sure.png"))
        assert has_color(image, plots._PLAIN_BAR) and has_color(image, plots._COLORS["train"])


def test_plotting_leaves_matplotlib_as_it_was(tmp_path):
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    plots.plot_training(write_run(tmp_path, 3, names=("loss",)), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_paths_can_be_text(tmp_path):
    written = plots.plot_training(str(write_run(tmp_path, 2)), str(tmp_path))
    assert written[0] == tmp_path / "curves.png"


def test_lines_with_intervals_are_an_image(tmp_path):
    score = lambda x: Score(x, x - 1, x + 1, 5)
    panels = {"f1": {"SimCAS": {1000: score(9.0), 10: score(2.0)}, "one chunk": {10: WITHOUT_INTERVAL}}}
    image = pixels(plots.plot_lines(panels, "examples", tmp_path / "lines.png"))
    assert has_color(image, plots._COLORS["train"]) and has_color(image, plots._COLORS["validation"])
    with pytest.raises(ValueError, match="at least one"):
        plots.plot_lines({}, "examples", tmp_path / "none.png")


def test_growth_is_an_image(tmp_path):
    seconds, memory = plots.Growth(((2048, 1.0), (1024, 0.5)), 1.0), plots.Growth(((1024, 9.0), (2048, 10.0)), 0.15)
    panels = {"seconds": {"encode": seconds}, "memory": {"encode": memory}}
    assert pixels(plots.plot_growth(panels, tmp_path / "growth.png")).std() > 5
