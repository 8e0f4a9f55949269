"""(sum, count) pairs against numbers worked out by hand."""

import math

import numpy as np

from jax_simcas.common import pairs


def test_pairs_add_and_divide():
    total = pairs.add(pairs.add((0.0, 0.0), (np.float32(3), np.int32(2))), (5, 2))
    assert total == (8.0, 4.0)
    assert pairs.mean(total) == 2.0
    assert math.isnan(pairs.mean((0, 0)))


def test_names_that_one_side_lacks_count_as_nothing():
    totals = pairs.add_named({"loss": (3.0, 2)}, {"loss": (np.float32(1), 2), "kl": (0.5, 1), "empty": (0.0, 0)})
    assert totals == {"loss": (4.0, 4.0), "kl": (0.5, 1.0), "empty": (0.0, 0.0)}
    assert pairs.means(totals) == {"loss": 1.0, "kl": 0.5}
    assert pairs.total([(1, 2), (3, 4)]) == (4.0, 6.0) and pairs.total([]) == (0.0, 0.0)
