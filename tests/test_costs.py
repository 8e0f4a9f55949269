"""What a run has cost and what the rest of it is expected to cost."""

import pytest

from jax_simcas.run.costs import SELECTOR, TRANSFORMER, VALIDATION, Costs, Rest, due

KINDS = {0: {False}, 1: {True}, 2: {False, True}, 50: {False}}  # of the first two steps


def timed(selector_every, plain=(), learning=()):
    programs = (TRANSFORMER, SELECTOR, VALIDATION)
    steps = {False: list(plain), True: list(learning)}
    return Costs(selector_every, 6.0, programs, frozenset(KINDS[selector_every]), steps)


@pytest.mark.parametrize(
    ("costs", "seconds"),
    [
        (timed(0, plain=[2.0]), 2.0),
        (timed(1, learning=[5.0]), 5.0),
        (timed(2, plain=[2.0], learning=[6.0]), 4.0),
        (timed(50, plain=[2.0]), 2.0),
    ],
)
def test_a_step_costs_the_mean_over_the_turns_of_the_selector(costs, seconds):
    assert costs.has_step and costs.step == seconds


def test_a_step_is_known_once_its_kinds_are():
    assert not timed(2, plain=[1.0]).has_step and not timed(2, learning=[1.0]).has_step and not timed(0).has_step


def test_a_validation_is_estimated_until_one_is_measured():
    costs = timed(0, plain=[2.0])
    assert costs.validation == pytest.approx(6 * 2 / 3)
    costs.validations += [1.0, 3.0]
    assert costs.validation == 2.0


def test_the_line_names_steps_validations_compilations_and_their_time():
    costs = timed(2, plain=[2.0], learning=[4.0])
    costs.compilations[TRANSFORMER].append(40.0)
    costs.compilations[SELECTOR].append(20.0)
    line = costs.line(12_345.0, Rest(steps=10, validations=2, shapes=2))
    # One more of each step's, and two validations' of which none is known: 40 + 20 + 2 * 30; 10 * 3; 2 * 4.
    assert line == (
        "a step takes 3 s (12.3k tokens/s); 10 more steps, 2 validations and up to 4 compilations take about 2:38"
    )
    costs.compilations[VALIDATION] += [1.0, 1.0]
    assert costs.left_to_compile(shapes=2) == (2, 60.0) and costs.left_to_compile(shapes=0) == (0, 0.0)
    assert "compilations" not in costs.line(1.0, Rest(10, 2, shapes=0))
    assert timed(50, plain=[2.0]).line(1.0, Rest(10, 1, 0)).endswith("take about 0:24, beside the selector's")


@pytest.mark.parametrize("every", [1, 3, 5, 7])
@pytest.mark.parametrize("done", [0, 3, 6])
def test_what_is_due_is_counted_as_the_loop_does_it(every, done):
    assert due(every, done, 7) == sum(step % every == 0 or step == 7 for step in range(done + 1, 8))
