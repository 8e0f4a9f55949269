"""What examples/ adds from outside: each trains a few steps, and does what it says."""

import dataclasses
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, TINY, document, model_of, slow_but, stack, tiny_config, tiny_params

from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.protocol import Backbone
from jax_simcas.method.align import align, chunk_mean
from jax_simcas.method.beam_search import generate
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import encode_and_select, forward, init_params
from jax_simcas.method.select import ALL, select
from jax_simcas.run import build
from jax_simcas.run.loop import train

EXAMPLES = {
    "align_gated_mean": {"simcas.align": "examples.align_gated_mean:gated_mean"},
    "policy_sentences": {"simcas.policy": "examples.policy_sentences:BART"},
    "reward_rouge": {"simcas.reward": "examples.reward_rouge:ROUGE"},
    "optimizer_adafactor": {
        "optimizer.algorithm": "examples.optimizer_adafactor:adafactor",
        "optimizer.schedule": "examples.optimizer_adafactor:cosine",
        "optimizer.max_lr": 3e-3,
    },
    "backbone_toy": {"backbone": "examples.backbone_toy:Toy"},
}


def example(name):
    return importlib.import_module(f"examples.{name}")


def test_every_example_is_tried_here_and_names_its_flags():
    assert set(EXAMPLES) == {path.stem for path in (ROOT / "examples").glob("*.py")}
    for name, changes in EXAMPLES.items():
        flags = dict(re.findall(r"--config\.([\w.]+)=(\S+)", example(name).__doc__))
        assert {field: str(value) for field, value in changes.items() if ":" in str(value)}.items() <= flags.items()


@pytest.mark.parametrize("name", slow_but(EXAMPLES, "align_gated_mean", "policy_sentences", "backbone_toy"))
def test_it_trains_both_sides_and_the_workdir_can_be_read(name, tmp_path):
    """Two steps of the transformer and of the selector, validation, and the model read back."""
    settings = tiny_config(**EXAMPLES[name], **{"loop.steps": 2, "loop.selector_every": 1})
    outcome = train(settings, tmp_path / "run", tmp_path / "cache", progress=False)
    assert outcome.step == 2 and np.isfinite(outcome.metrics["loss"])
    before = init_params(jax.random.key(0), build.load_model(str(tmp_path / "run")).settings.model())
    after = build.load_model(str(tmp_path / "run")).params
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after)
    assert any(jax.tree.leaves(moved["selector"]))
    assert any(jax.tree.leaves({k: v for k, v in moved.items() if k != "selector"}))


def test_the_gate_lies_between_the_mean_and_the_chunks_own_states():
    hidden, real = jax.random.normal(jax.random.key(0), (4, 5, 8)), jnp.ones(4, bool)
    over = lambda exchange: jax.vmap(lambda x, r: align(x, r, exchange, "c"), axis_name="c")(hidden, real)
    gated, mean = over(example("align_gated_mean").gated_mean), over(chunk_mean)
    share = (gated - hidden)[:, [0, -1]] / (mean - hidden)[:, [0, -1]]
    np.testing.assert_allclose(share, np.broadcast_to(share[..., :1], share.shape), rtol=1e-3)
    assert (share > 0).all() and (share < 1).all()


def test_sentences_are_kept_or_dropped_whole():
    selector = tiny_params()["selector"]
    selector = jax.tree.map(lambda x: x, selector)
    selector["actor"]["out_proj"]["kernel"] = selector["actor"]["out_proj"]["kernel"] * 300
    hidden = jax.random.normal(jax.random.key(2), (3, 12, 16))
    tokens = jnp.array([[0, 9, 9, 4, 9, 9, 4, 9, 4, 9, 9, 2]] * 3)
    mask, chunks = jnp.ones((3, 11), bool), jnp.ones(3, bool)
    policy = example("policy_sentences").BART
    out = select(selector, hidden, mask, chunks, policy=policy, tokens=tokens, fill_empty=False)
    sentences = np.split(np.asarray(out.action), [3, 6, 8], axis=1)
    assert all((part == part[:, :1]).all() for part in sentences)
    assert 0 < out.action.sum() < out.action.size


@pytest.mark.slow
def test_the_reward_is_rouge_less_the_likelihood():
    module = example("reward_rouge")
    one, model, params = document(0), model_of(policy="all"), tiny_params()
    summary = generate(params, model, GenerateConfig(num_beams=1, max_length=8), encoded(params, model, one).compacted)
    reward = module.GeneratedRouge(scale=100.0)
    out = forward(params, model, one)
    own = one._replace(target=one.target._replace(ids=summary.sequence, mask=jnp.ones(8, bool)))
    own_out = forward(params, model, own)
    perfect = 100 * (1 - float(reward.baseline(params, model, own, own_out)))
    np.testing.assert_allclose(reward(params, model, own, own_out), perfect, rtol=1e-5)
    assert float(reward(params, model, one, out)) < 100
    batch = jax.jit(jax.vmap(lambda e: reward(params, model, e, forward(params, model, e))))(stack(one, one))
    np.testing.assert_allclose(batch, [reward(params, model, one, out)] * 2, rtol=1e-4)


def encoded(params, model, one):
    return encode_and_select(params, model, one.document, policy=ALL)


def test_cosine_warms_up_and_ends_at_nothing():
    rate = example("optimizer_adafactor").cosine(0.1, 10, 50)
    assert rate(0) == 0 and rate(10) == pytest.approx(0.1) and rate(50) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(example("optimizer_adafactor").cosine(0.1, 100, 2)(1))  # a warmup longer than the run


def test_the_toy_is_a_backbone_of_forty_lines():
    module = example("backbone_toy")
    assert isinstance(module.Toy(BartConfig()), Backbone)
    source = (ROOT / "examples" / "backbone_toy.py").read_text()
    body = [line for line in source[source.index("class Toy") :].splitlines() if line.strip()]
    assert len(body) <= 42


@pytest.mark.parametrize("align_name", ["mean", "none"])
def test_the_toy_aligns_and_selects_as_any_backbone(align_name):
    """The method around it: padding chunks change nothing, alignment crosses chunks, generation ends in a row."""
    toy = example("backbone_toy").Toy(dataclasses.replace(TINY, encoder_layers=3))
    model = model_of(align=align_name).replace(backbone=toy)
    params = init_params(jax.random.key(0), model)
    one, padded = document(0), document(0, padding_chunks=2)
    alone, more = (forward(params, model, e) for e in (one, padded))
    np.testing.assert_allclose(more.logits, alone.logits, atol=1e-5)
    changed = one._replace(document=one.document._replace(input_ids=one.document.input_ids.at[0, 3].add(1)))
    gap = forward(params, model, changed).encoded.hidden[1:] - alone.encoded.hidden[1:]
    assert (np.abs(gap).max() > 1e-6) == (align_name == "mean")
    config = GenerateConfig(num_beams=3, max_length=6)
    assert generate(params, model, config, alone.encoded.compacted).sequence.shape == (6,)
