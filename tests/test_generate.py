"""Generation equals Hugging Face's, token for token, and behaves alone as in a batch."""

import dataclasses
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, model_of, tiny_params

from jax_simcas.method.beam_search import generate
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.logits_processors import ban_repeated_ngrams
from jax_simcas.method.select import Compacted

FORCED = dataclasses.replace(TINY, forced_eos_token_id=None)


def states(seed, documents=1, rows=7, width=TINY.d_model):
    keys = jax.random.split(jax.random.key(seed))
    mask = jnp.arange(rows) < jnp.asarray([rows - 2 * (d % 3) for d in range(documents)])[:, None]
    return jax.random.normal(keys[0], (documents, rows, width)), mask


@partial(jax.jit, static_argnames=("bart", "config"))
def run(params, selected, mask, bart, config):
    model = model_of(bart)
    return jax.vmap(lambda s, m: generate(params, model, config, compacted(s, m)))(selected, mask)


def compacted(states, mask):
    """States in rows 1.., as selection would give them."""
    return Compacted(states, mask, jnp.arange(len(mask) - 1), jnp.array(0))


def with_eos_bias(params, bias):
    return params | {"final_logits_bias": params["final_logits_bias"].at[0, TINY.eos_token_id].set(bias)}


def oracle(params):
    """transformers' PyTorch BART with our parameters."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BartConfig, BartForConditionalGeneration

        from jax_simcas.checkpoints.hub import to_state_dict

        fields = {k: v for k, v in FORCED.to_hf().items() if k not in ("architectures", "model_type")}
        model = BartForConditionalGeneration(BartConfig(**fields)).eval()
    model.generation_config.forced_eos_token_id = None
    weights = {k: torch.tensor(np.array(v)) for k, v in to_state_dict(params).items() if "agent" not in k}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in k or "lm_head" in k for k in missing)
    model.tie_weights()
    return model


def expected(model, selected, mask, config):
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    options = dataclasses.asdict(config)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(
            encoder_outputs=BaseModelOutput(torch.tensor(np.array(selected))),
            attention_mask=torch.tensor(np.array(mask)).long(),
            do_sample=False,
            **options,
        ).numpy()


def random_config(rng):
    max_length = int(rng.integers(4, 24))
    return GenerateConfig(
        num_beams=int(rng.integers(1, 9)),
        max_length=max_length,
        min_length=int(rng.integers(0, max_length)),
        length_penalty=float(rng.choice([0.0, 0.6, 1.0, 2.0, 5.0])),
        no_repeat_ngram_size=int(rng.choice([0, 2, 3])),
        early_stopping=[True, False, "never"][rng.integers(3)],
        forced_bos_token_id=[None, 0, 5][rng.integers(3)],
        forced_eos_token_id=[None, 2][rng.integers(2)],
    )


def compare(seeds, models):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        config = random_config(rng)
        params = with_eos_bias(tiny_params(seed=seed % models), float(rng.choice([0.0, 2.0, 4.0])))
        selected, mask = states(seed, documents=int(rng.integers(1, 5)))
        ours = run(params, selected, mask, FORCED, config)
        theirs = expected(oracle(params), selected, mask, config)
        padded = np.full(ours.sequence.shape, TINY.pad_token_id)
        padded[:, : theirs.shape[1]] = theirs
        np.testing.assert_array_equal(ours.sequence, padded, err_msg=f"seed {seed}: {config}")


def test_equals_transformers_in_a_few_random_settings():
    compare(range(4), models=2)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_equals_transformers_in_many_random_settings(block):
    compare(range(100 + 25 * block, 125 + 25 * block), models=7)
    jax.clear_caches()  # each program maps memory, of which a process may have so many pieces (vm.max_map_count)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_document_in_a_batch_gives_what_it_gives_alone(beams):
    config = GenerateConfig(num_beams=beams, max_length=16)
    params = with_eos_bias(tiny_params(), 2.0)
    selected, mask = states(3, documents=5)
    batch = run(params, selected, mask, TINY, config)
    for d in range(5):
        alone = run(params, selected[d : d + 1], mask[d : d + 1], TINY, config)
        np.testing.assert_array_equal(batch.sequence[d], alone.sequence[0])
        np.testing.assert_allclose(batch.score[d], alone.score[0], rtol=1e-5)
    assert len(set(np.asarray(batch.length).tolist())) > 1


def test_masked_states_are_never_looked_at():
    selected, mask = states(1)
    mask = mask.at[0, 4:].set(False)
    config = GenerateConfig(num_beams=2, max_length=12)
    other = selected.at[0, 4:].set(9.0)
    np.testing.assert_array_equal(
        run(tiny_params(), selected, mask, TINY, config).sequence,
        run(tiny_params(), other, mask, TINY, config).sequence,
    )


def test_repeated_ngrams_by_hand():
    scores = jnp.zeros((2, 8))
    sequences = jnp.array([[2, 4, 5, 4, 1, 1], [2, 3, 3, 3, 1, 1]])
    banned = np.isneginf(ban_repeated_ngrams(scores, sequences, jnp.array(4), 2))
    assert [set(np.flatnonzero(row)) for row in banned] == [{5}, {3}]
    banned = np.isneginf(ban_repeated_ngrams(scores, sequences, jnp.array(4), 1))
    assert [set(np.flatnonzero(row)) for row in banned] == [{2, 4, 5}, {2, 3}]
    assert not np.isneginf(ban_repeated_ngrams(scores, sequences, jnp.array(2), 3)).any()
    assert not np.isneginf(ban_repeated_ngrams(scores, sequences, jnp.array(4), 9)).any()


def test_bounds_on_the_length_hold():
    config = GenerateConfig(num_beams=3, max_length=10, min_length=8)
    selected, mask = states(0, documents=3)
    out = run(with_eos_bias(tiny_params(), 9.0), selected, mask, TINY, config)
    assert (out.length >= 9).all() and (out.length <= 10).all()
    assert (out.sequence[jnp.arange(3), out.length - 1] == TINY.eos_token_id).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"max_length": 1}, "max_length=1"),
        ({"min_length": 9, "max_length": 8}, "min_length=9 exceeds max_length=8"),
        ({"early_stopping": "sometimes"}, "early_stopping='sometimes'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**options)


def test_longer_than_the_position_table():
    selected, mask = states(0)
    with pytest.raises(ValueError, match="max_length=33 exceeds the model's 32 positions"):
        run(tiny_params(), selected, mask, TINY, GenerateConfig(max_length=33))
