"""Our code against the PyTorch peer, whose alignment is hooks on transformers' layers: several chunks of any family."""

import jax
import numpy as np
import pytest

from jax_simcas.run import parity_cases

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from peer_arrays import write  # noqa: E402

from jax_simcas.checkpoints.hub import from_pretrained  # noqa: E402


def bart(rng):
    return {
        "d_model": int(rng.choice([24, 40])),
        "encoder_layers": int(rng.integers(2, 4)),
        "decoder_layers": int(rng.integers(1, 3)),
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 36,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "init_std": 0.15,
        "activation_function": str(rng.choice(["gelu", "relu"])),
    }


def t5(rng):
    return {
        "d_model": int(rng.choice([24, 40])),
        "d_kv": int(rng.choice([6, 10])),
        "num_heads": int(rng.choice([2, 3])),
        "d_ff": 36,
        "num_layers": int(rng.integers(2, 4)),
        "num_decoder_layers": int(rng.integers(1, 4)),
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": str(rng.choice(["relu", "gated-gelu"])),
        "tie_word_embeddings": bool(rng.integers(2)),
        "decoder_start_token_id": 0,
    }


FAMILIES = {"bart": bart, "t5": t5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own about generation settings
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_quantity_of_a_random_model_is_the_peers(kind, seed, tmp_path):
    """Forward passes, PPO, ten training steps and generation, with mean and shift alignment."""
    torch.manual_seed(seed)
    settings = FAMILIES[kind](np.random.default_rng(seed))
    config = transformers.AutoConfig.for_model(kind, vocab_size=90, **settings)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model", jax.random.key(seed))
    write(tmp_path / "arrays", loaded.config, loaded.params, seed)
    cases = parity_cases.read_cases(tmp_path / "arrays")
    checks = [check for case in cases for check in parity_cases.compare_case(case)]
    assert len(checks) > 100
    assert [check for check in checks if not check.holds] == []
