"""Our code against the PyTorch peer, whose alignment is hooks on transformers' layers: several chunks of any family."""

import jax
import pytest

from jax_simcas.run import parity_cases

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from peer_arrays import FORWARD, Extent, write  # noqa: E402
from peer_models import model_of  # noqa: E402

from jax_simcas.checkpoints.hub import from_pretrained  # noqa: E402

# Of BART's relatives one with sinusoids and norms before sublayers, and one with a table of positions that is frozen.
MODELS = {
    "mean": ("bart", "t5", "t5gemma", "t5gemma2", "m2m_100"),
    "shift": ("bart", "t5", "t5gemma", "t5gemma2", "pegasus"),
}


def extent(align):
    """One chunk, and several with one kind of alignment, with PAD and without."""
    forward = tuple(row for row in FORWARD if row[1] == align or row[0] == "one_chunk")
    return Extent(forward, (align,), steps=(4, 1, 4, 1, 4, 1, 4, 1, 4, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own about generation settings
@pytest.mark.parametrize(("kind", "align"), [(kind, align) for align, kinds in MODELS.items() for kind in kinds])
def test_every_quantity_of_a_random_model_is_the_peers(kind, align, tmp_path):
    """Forward passes, PPO, ten training steps and generation."""
    seed = list(MODELS).index(align)
    model_of(kind, seed).save_pretrained(tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model", jax.random.key(seed))
    write(tmp_path / "arrays", loaded.config, loaded.params, seed, extent(align))
    cases = parity_cases.read_cases(tmp_path / "arrays")
    checks = [check for case in cases for check in parity_cases.compare_case(case)]
    assert len(checks) > 50
    assert [check for check in checks if not check.holds] == []
