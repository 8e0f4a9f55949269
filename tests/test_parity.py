"""Every number of the authors' PyTorch code that is not about generation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MANIFEST, largest_difference, parity_case, parity_model

from jax_simcas import model, reward, select, update
from jax_simcas.ppo import Orders, PPOConfig, Rollout, advantages, ppo_update
from jax_simcas.pretrained import from_state_dict

STATES, RELATIVE, PARAMETERS = 2e-5, 1e-5, 2e-4


def as_document(arrays, prefix=""):
    ids = jnp.asarray(arrays[f"{prefix}input_ids"][0], jnp.int32)
    target = jnp.asarray(arrays[f"{prefix}target_ids"][0], jnp.int32)
    return {
        "input_ids": ids,
        "token_mask": jnp.ones(ids.shape, bool),
        "chunk_mask": jnp.ones(ids.shape[0], bool),
        "target_ids": target,
        "target_mask": target != 1,
    }


@pytest.mark.parametrize("case", [name for name in MANIFEST if name.startswith("forward")])
def test_forward(case):
    arrays, simcas = parity_case(case)
    bart, params = parity_model()
    document = as_document(arrays)
    sampled = jnp.asarray(arrays["sampled_actions"], bool)
    inputs = (document["input_ids"], document["token_mask"], document["chunk_mask"])

    @jax.jit
    def run(params):
        _, layer_inputs = model.encode(params, bart, simcas, *inputs)
        out = update.forward(params, bart, simcas, document, action=sampled)
        value = jax.vmap(select.state_values, (None, 0, 0))(
            params["selector"], out.encoded.hidden[:, 1:], out.encoded.selection.state
        )
        return layer_inputs, out, value

    layer_inputs, out, value = run(params)
    _, selection, compacted = out.encoded
    for layer in range(bart.encoder_layers):
        np.testing.assert_allclose(layer_inputs[:, layer], arrays[f"encoder_states_{layer}"][0], atol=STATES)
    np.testing.assert_array_equal(selection.action, arrays["actions"].astype(bool))
    np.testing.assert_allclose(selection.state, arrays["state_before_chunk"][:, 0], atol=STATES)
    np.testing.assert_allclose(selection.log_prob, arrays["log_probs"], atol=STATES)
    np.testing.assert_allclose(value, arrays["values"], atol=STATES)
    rows = 1 + int(arrays["selected_count"])
    assert int(compacted.mask.sum()) == rows and int(compacted.overflow) == 0
    np.testing.assert_allclose(compacted.states[:rows], arrays["selected"][0], atol=STATES)
    np.testing.assert_allclose(out.logits, arrays["logits"][0], atol=STATES)
    np.testing.assert_allclose(out.cross_attention[:rows], arrays["mean_cross_attention"], atol=STATES)

    target = (document["target_ids"], document["target_mask"])
    total = reward.document_reward(out.logits, *target)
    rewards = reward.candidate_rewards(
        total, out.cross_attention, compacted.index, selection.action, selection.candidate_mask
    )
    kept = np.asarray(selection.action)
    np.testing.assert_allclose(np.asarray(rewards)[kept], arrays["select_rewards"], rtol=RELATIVE)
    np.testing.assert_allclose(np.asarray(rewards)[~kept], arrays["skip_reward"], rtol=RELATIVE)
    loss = update.smoothed_cross_entropy(out.logits, *target, 0.1)
    np.testing.assert_allclose(loss, arrays["smoothed_loss"], rtol=RELATIVE)


@pytest.mark.parametrize("case", ["ppo_shift", "ppo_mean"])
def test_ppo(case):
    arrays, simcas = parity_case(case)
    bart, params = parity_model()
    config = PPOConfig(minibatch_size=int(arrays["minibatch_size"]))
    batch = jax.tree.map(lambda x: x[None], as_document(arrays))
    action = jnp.asarray(arrays["actions"], bool)[None]
    keys = jax.random.split(jax.random.key(0), 1)
    experience, _, _ = update.rollout(params, batch, bart, simcas, config, keys, action=action)
    np.testing.assert_allclose(experience.value[0], arrays["values"], atol=STATES)
    np.testing.assert_allclose(experience.log_prob[0], arrays["log_probs"], atol=STATES)
    np.testing.assert_allclose(experience.advantage[0], arrays["advantages"], atol=STATES, rtol=RELATIVE)
    np.testing.assert_allclose(experience.returns[0], arrays["returns"], atol=STATES, rtol=RELATIVE)
    advantage, _ = advantages(
        jnp.asarray(arrays["rewards"]), jnp.asarray(arrays["values"]), experience.mask[0], 0.998, 0.95
    )
    np.testing.assert_allclose(advantage, arrays["advantages"], atol=STATES)

    epochs, chunks, per_chunk = arrays["token_orders"].shape
    rounds = -(-per_chunk // config.minibatch_size)
    fill = rounds * config.minibatch_size - per_chunk
    token = np.pad(arrays["token_orders"], ((0, 0), (0, 0), (0, fill)), constant_values=per_chunk)
    chunk = arrays["chunk_orders"].reshape(epochs, rounds, 1, chunks)
    orders = Orders(jnp.asarray(token[:, None], jnp.int32), jnp.asarray(chunk, jnp.int32))
    optimizer = optax.adam(1e-4)
    run = jax.jit(lambda s, r, o: ppo_update(s, optimizer, optimizer.init(s), r, o, config))
    selector, _, losses, taken = run(params["selector"], Rollout(*experience), orders)
    assert taken.all()
    measured = np.stack([np.asarray(x) for x in losses], axis=1)
    np.testing.assert_allclose(measured, arrays["losses"], rtol=RELATIVE, atol=2e-6)
    after = from_state_dict({k.removeprefix("after/"): v for k, v in arrays.items() if k.startswith("after/")})
    assert largest_difference(selector, after["selector"]) < PARAMETERS


@pytest.mark.parametrize("case", ["train_shift", "train_mean"])
def test_ten_steps_of_training(case):
    arrays, simcas = parity_case(case)
    bart, params = parity_model()
    settings = MANIFEST[case]
    config = update.UpdateConfig(max_lr=settings["max_lr"], warmup=settings["warmup_steps"], accumulate_step=1)
    rates = [float(update.learning_rate(config)(s)) for s in range(settings["steps"])]
    np.testing.assert_allclose(rates, arrays["learning_rates"], rtol=RELATIVE)
    state = update.init_state(params, config, jax.random.key(0))
    step = jax.jit(partial(update.transformer_step, bart=bart, simcas=simcas, config=config))
    losses = []
    for i in range(1, settings["steps"] + 1):
        batch = jax.tree.map(lambda x: x[None], as_document(arrays, f"step{i}/"))
        action = jnp.asarray(arrays[f"step{i}/sampled_actions"], bool)[None]
        state, metrics = step(state, batch, action=action)
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    np.testing.assert_allclose(losses, arrays["losses"], rtol=RELATIVE)
    after = from_state_dict({k.removeprefix("after/"): v for k, v in arrays.items() if k.startswith("after/")})
    transformer, selector = update.split_params(state.params)
    assert largest_difference(transformer, after) < PARAMETERS
    assert largest_difference(selector, params["selector"]) == 0.0
