"""What training warns of."""

import dataclasses

import pytest
from helpers import tiny_config

from jax_simcas.run import advice
from jax_simcas.run.plan import Intervals


def test_a_warmup_within_the_run_is_not_worth_a_word():
    settings = tiny_config()
    rate = settings.optimizer.learning_rate(50)
    assert advice.on_settings(settings, 50, rate) == [] and advice.on_settings(settings, 49, rate) != []


def test_intervals_at_which_few_steps_are_both_validated_and_saved():
    assert advice.on_intervals(Intervals(1, 50, 100)) == advice.on_intervals(Intervals(1, 100, 50)) == []
    (warning,) = advice.on_intervals(Intervals(1, 30, 100))
    assert "config.loop.eval_every=30 and checkpoint_every=100" in warning and "every 300th" in warning


@pytest.mark.parametrize(
    ("figures", "warned"),
    [
        ({"data/cut_tokens": 0.01}, "1 % of the documents are longer than config.simcas.max_input_len="),
        ({"data/cut_target": 1.0}, "100 % of the targets are longer than config.simcas.max_target_len="),
        ({"selection/overflow": 0.5}, "50 % of what the selector chooses finds no place in config.simcas.capacity="),
        ({"data/unknown": 0.5}, "50 % of the documents' tokens are not in the tokenizer's vocabulary"),
    ],
)
def test_figures_that_show_a_loss_are_warned_of(figures, warned):
    found = advice.on_figures({"loss": 1.0} | figures, tiny_config())
    assert found.keys() == figures.keys() and warned in found[next(iter(figures))]


def test_small_losses_are_not():
    assert not advice.on_figures(
        {"data/unknown": 0.02, "selection/overflow": 0.1, "data/cut_tokens": 0.0}, tiny_config()
    )


def test_buckets_are_suggested_once_batches_come_in_many_shapes():
    settings = tiny_config()
    free = dataclasses.replace(settings, data=dataclasses.replace(settings.data, chunk_buckets=(), target_buckets=()))
    shapes = [(1, 16), (2, 16), (4, 32), (16, 64)]
    assert advice.on_shapes(shapes[:3], free) == ""
    note = advice.on_shapes(shapes, free)
    assert "4 shapes" in note and "chunk_buckets=(2,16,)" in note and "target_buckets=(32,64,)" in note
    fixed = dataclasses.replace(free, data=dataclasses.replace(free.data, chunk_buckets=(16,)))
    assert "chunk_buckets" not in advice.on_shapes(shapes, fixed)
