"""Names in a config become values: one of ours, or `package.module:name` of one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, document, tiny_params

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.ops.attention import attend_with_weights, attention
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.backbones.t5gemma.config import StackConfig, T5GemmaConfig
from jax_simcas.common.errors import UserError
from jax_simcas.method.align import ALIGNMENTS, chunk_mean
from jax_simcas.method.chunk_position import Learned, Sinusoidal
from jax_simcas.method.model import SimCAS, encode, forward, init_params
from jax_simcas.method.reward import CrossAttention, Likelihood
from jax_simcas.method.select import GREEDY, POLICIES, Policy
from jax_simcas.run.method_config import SimcasConfig, UpdateConfig, backbone_of, policy_of, resolve


def plain_attention(query, key, value, mask, within_chunk):
    """One's own attention: with all scores in memory."""
    return attend_with_weights(query, key, value, mask)[0]


def even(reward, forward):
    """One's own credit: the same for every candidate."""
    return jnp.full(forward.encoded.selection.action.shape, reward)


def first_alone(reward, forward):
    return reward


def a_share(params, model, example, forward):
    """One's own reward: that may be a whole number."""
    return (forward.logits.argmax(axis=-1)[:-1] == example.target.ids[1:]).sum()


def keep_first_half(view):
    return jnp.arange(len(view.mask)) < len(view.mask) // 2


NOT_A_FUNCTION = 7


def here(name):
    return f"{__name__}:{name}"


def test_ours_are_found_by_name():
    model = SimcasConfig(align="shift", policy="topk", budget=4).model(Bart(TINY))
    assert model.align is ALIGNMENTS["shift"] and model.policy is POLICIES["topk"] and model.budget == 4
    assert SimcasConfig().model(Bart(TINY)) == SimcasConfig().model(Bart(TINY))  # one compilation serves both
    assert hash(SimcasConfig().model(Bart(TINY))) == hash(SimcasConfig().model(Bart(TINY)))


def test_numbers_of_the_config_reach_the_values():
    config = SimcasConfig(reward_scale=5.0, hyper_length=7, empty_chunk="none", chunk_position="learned", max_chunks=9)
    model = config.model(Bart(TINY))
    assert model.reward == Likelihood(5.0) and model.credit == CrossAttention(7)
    assert not model.fill_empty and model.chunk_position == Learned(9)
    assert SimcasConfig(chunk_position="sinusoidal").model(Bart(TINY)).chunk_position == Sinusoidal()


def test_ones_own_are_taken_as_they_are():
    own = {"reward": here("a_share"), "credit": here("even"), "policy": here("keep_first_half")}
    model = SimcasConfig(**own).model(Bart(TINY))
    assert model.reward is a_share and model.credit is even and model.policy == Policy(keep_first_half)
    assert policy_of("greedy", "--policy") is GREEDY


def test_ones_own_attention_gives_what_ours_does():
    ours = SimcasConfig().model(backbone_of("bart", TINY))
    own = SimcasConfig().model(backbone_of("bart", TINY, here("plain_attention")))
    assert ours.backbone.attend is attention and own.backbone.attend is plain_attention
    states = [jax.jit(lambda p, m=m: encode(p, m, document(0).document)[0])(tiny_params()) for m in (ours, own)]
    np.testing.assert_allclose(*states, atol=1e-5)


STACK = StackConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)
UNUSUAL = dataclasses.replace(STACK, attn_logit_softcapping=None, query_pre_attn_scalar=40)  # scores by sqrt(40)
OTHERS = {
    "t5": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2),
    "t5gemma": T5GemmaConfig(encoder=UNUSUAL, decoder=UNUSUAL, vocab_size=40),
}


@pytest.mark.parametrize("family", OTHERS)
def test_ones_own_attention_serves_every_family(family):
    example, found = document(0), []
    for attend in ("auto", here("plain_attention")):
        model = SimCAS(backbone_of(family, OTHERS[family], attend), policy=POLICIES["all"])
        params = init_params(jax.random.key(0), model)
        found.append(jax.jit(lambda p, m=model: forward(p, m, example, with_weights=False).logits)(params))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_schedule_and_algorithm_are_ones_own():
    config = UpdateConfig(
        max_lr=0.1,
        warmup=2,
        schedule="examples.optimizer_adafactor:cosine",
        algorithm="examples.optimizer_adafactor:adafactor",
    )
    assert config.learning_rate(10)(2) == pytest.approx(0.1)
    adam = UpdateConfig(accumulate_step=1).transformer(10).init({"w": jnp.zeros((64, 64))})
    factored = dataclasses.replace(config, accumulate_step=1).transformer(10).init({"w": jnp.zeros((64, 64))})
    size = lambda state: sum(leaf.size for leaf in jax.tree.leaves(state))
    assert size(factored) < size(adam) / 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("middle", r"config.simcas.align='middle': expected one of mean, shift, none, or package.module:name"),
        ("no.such.module:f", r"cannot be imported \(ModuleNotFoundError"),
        ("jax_simcas.method.align:nothing", r"cannot be imported \(AttributeError"),
        (":f", "expected one of mean"),
        ("jax_simcas:", "expected one of mean"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as raised:
        resolve(name, ALIGNMENTS, "config.simcas.align")
    assert "\n" not in str(raised.value)


def test_what_is_named_must_be_callable():
    with pytest.raises(UserError, match="expected a function, or an object that can be called"):
        resolve(here("NOT_A_FUNCTION"), ALIGNMENTS, "config.simcas.align")


def test_the_mean_is_the_default():
    assert SimcasConfig().model(Bart(TINY)).align is chunk_mean


def two_arguments(view, more):
    return view.mask


def probabilities(view):
    return view.keep_prob


def another_shape(boundary, real, axis_name):
    return boundary[0]


def gives_nothing(max_lr, warmup, steps):
    return nothing


def no_optimizer(schedule):
    return 7


def no_reward(params, model, example):
    return 1.0


def a_reward_for_each_token(params, model, example, forward):
    return forward.logits[:, 0]


def nothing(*_):
    return None


def through_the_host(params, model, example, forward):
    """Cannot be mapped over documents."""
    return jax.pure_callback(lambda: jnp.float32(1), jax.ShapeDtypeStruct((), jnp.float32), forward.logits)


class Unhashable:
    __hash__ = None

    def __call__(self, params, model, example, forward):
        return 1.0


UNHASHABLE = Unhashable()


@pytest.mark.parametrize(
    ("field", "name", "message"),
    [
        ("reward", "no_reward", r"raised TypeError: .*; expected \(params, model, example, forward\) -> a number"),
        ("reward", "a_reward_for_each_token", r"returned float32\[2, 32\], expected numbers\[2\] of \(params, model"),
        ("reward", "nothing", "returned None, expected numbers"),
        ("reward", "through_the_host", "raised "),
        ("reward", "UNHASHABLE", "unhashable type: 'Unhashable', which jit needs it to be; give a function of a mod"),
        ("align", "UNHASHABLE", "unhashable type: 'Unhashable', which jit"),
        ("credit", "no_reward", r"raised TypeError: .*; expected \(reward, forward\) -> a number for each candidate"),
        ("credit", "first_alone", r"returned float32\[2\], expected numbers\[2, 2, 31\] of \(reward, forward\)"),
        ("policy", "two_arguments", "raised TypeError: .*missing 1 required positional argument"),
        ("policy", "probabilities", r"returned float32\[4\], expected bool\[4\]"),
        ("align", "another_shape", r"returned float32\[2, 4\], expected float32\[2, 2, 4\]"),
        ("align", "keep_first_half", "raised TypeError"),
    ],
)
def test_a_function_of_another_signature_is_one_line_before_anything_is_written(field, name, message):
    with pytest.raises(UserError, match=f"config.simcas.{field}='{here(name)}': {message}") as raised:
        SimcasConfig(**{field: here(name)}).model(Bart(TINY))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": here("no_optimizer")}, "returned 7, expected an optax.GradientTransformation"),
        ({"algorithm": "os:getcwd"}, "config.optimizer.algorithm='os:getcwd': raised TypeError"),
        ({"schedule": "os:getcwd"}, "config.optimizer.schedule='os:getcwd': raised TypeError"),
        (
            {"schedule": here("a_number")},
            r"schedule='.*': returned 7, expected \(max_lr, warmup, steps\) -> a f",
        ),
        ({"schedule": here("gives_nothing")}, r"schedule='.*': returned None, expected numbers\[\] of \(max_lr, "),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        UpdateConfig(**settings).transformer(10)


def lengthless(query, key, value, mask):
    return query


def a_number(*_):
    return 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lengthless", r"raised TypeError: .*; expected \(query \[H, T, Dh\], "),
        ("a_number", r"returned int32\[2\], expected floats\[2, 2, 32, 8\] of \(query"),
    ],
)
def test_an_attention_of_another_signature_is_one_line(name, message):
    with pytest.raises(UserError, match=f"config.simcas.attention='{here(name)}': {message}"):
        backbone_of("bart", TINY, here(name))


class HalfABackbone:
    """Lacks all that comes after its sizes."""

    def __init__(self, config, attend):
        self.width, self.vocab_size, self.positions = config.d_model, config.vocab_size, None


def test_a_backbone_that_lacks_something_is_one_line():
    with pytest.raises(UserError, match=rf"config\.backbone='{here('HalfABackbone')}': returned .*, expected a "):
        backbone_of(here("HalfABackbone"), TINY)


class AnotherSignature(Bart):
    def embed(self, params, ids):
        return params


def test_a_backbone_of_another_signature_is_one_line():
    with pytest.raises(UserError, match=r"config\.backbone='AnotherSignature': raised TypeError: .*embed"):
        SimcasConfig().model(AnotherSignature(TINY))


def test_a_backbone_that_cannot_be_made_is_one_line():
    with pytest.raises(UserError, match=r"config\.backbone='os:getcwd': raised TypeError"):
        backbone_of("os:getcwd", TINY)
