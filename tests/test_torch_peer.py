"""The PyTorch peer is held to the same arrays as our own code."""

import numpy as np
import pytest
from helpers import PARITY, slow_but

torch = pytest.importorskip("torch")

from jax_simcas.benchmark.torch_peer import Peer  # noqa: E402
from jax_simcas.benchmark.torch_peer_ppo import experience, torch_ppo_update  # noqa: E402
from jax_simcas.method.beam_search import GenerateConfig  # noqa: E402
from jax_simcas.method.ppo import PPOConfig  # noqa: E402
from jax_simcas.run.parity_cases import SELECTOR_LR, after_training, read_cases  # noqa: E402

STATES = 2e-5
CASES = {case.name: case for case in read_cases(PARITY)}


def peer_of(case):
    return Peer(case.shape, case.params, align=case.settings["align"])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("forward")])
def test_forward(name):
    arrays, peer = CASES[name].arrays, peer_of(CASES[name]).eval()
    ids, target = torch.tensor(arrays["input_ids"][0]), torch.tensor(arrays["target_ids"][0])
    draws = torch.tensor(arrays["sampled_actions"]).bool()
    with torch.no_grad():
        selected = peer.select(peer.encode(ids), draws)
        logits = peer.logits(selected.states, target)
        loss = peer.loss(ids, target, draws)
    np.testing.assert_array_equal(selected.action, arrays["actions"].astype(bool))
    np.testing.assert_allclose(selected.states, arrays["selected"][0], atol=STATES)
    np.testing.assert_allclose(selected.state, arrays["state_before_chunk"][:, 0], atol=STATES)
    np.testing.assert_allclose(selected.log_prob, arrays["log_probs"], atol=STATES)
    np.testing.assert_allclose(logits, arrays["logits"][0], atol=STATES)
    np.testing.assert_allclose(loss, arrays["smoothed_loss"].reshape(()), rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # transformers' own about generation settings in a model's config
@pytest.mark.parametrize("name", slow_but([name for name in CASES if name.startswith("generate")], "generate_mean"))
def test_generation(name):
    arrays, peer = CASES[name].arrays, peer_of(CASES[name]).eval()
    for i, options in enumerate(CASES[name].settings["settings"]):
        with torch.no_grad():
            hidden = peer.encode(torch.tensor(arrays[f"{i}/input_ids"][0]))
            selected = peer.select(hidden, torch.tensor(arrays[f"{i}/sampled_actions"]).bool())
        sequence = peer.generate(selected.states, GenerateConfig(**options))
        np.testing.assert_array_equal(sequence, arrays[f"{i}/sequences"][0])


def test_one_step_of_training():
    arrays, peer = CASES["train_mean"].arrays, peer_of(CASES["train_mean"]).train()
    ids, target = torch.tensor(arrays["step1/input_ids"][0]), torch.tensor(arrays["step1/target_ids"][0])
    loss = peer.loss(ids, target, torch.tensor(arrays["step1/sampled_actions"]).bool())
    loss.backward()
    np.testing.assert_allclose(loss.detach(), arrays["losses"][0], rtol=1e-5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in peer.backbone.parameters())
    assert all(p.grad is None for p in peer.actor.parameters())


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ppo")])
def test_ppo(name):
    case, peer = CASES[name], peer_of(CASES[name]).eval()
    arrays = case.arrays
    ids, target = torch.tensor(arrays["input_ids"][0]), torch.tensor(arrays["target_ids"][0])
    epochs, chunks, _ = arrays["token_orders"].shape
    config = PPOConfig(epochs=epochs, minibatch_size=int(arrays["minibatch_size"]))
    seen = experience(peer, ids, target, config, torch.tensor(arrays["actions"]).bool())
    np.testing.assert_allclose(seen.reward, arrays["rewards"], rtol=1e-4)
    np.testing.assert_allclose(seen.value, arrays["values"], atol=STATES)
    np.testing.assert_allclose(seen.selected.log_prob, arrays["log_probs"], atol=STATES)
    np.testing.assert_allclose(seen.advantage, arrays["advantages"], rtol=1e-4, atol=STATES)
    np.testing.assert_allclose(seen.returns, arrays["returns"], rtol=1e-4, atol=STATES)
    optimizer = torch.optim.Adam([*peer.actor.parameters(), *peer.critic.parameters()], SELECTOR_LR)
    orders = arrays["token_orders"], arrays["chunk_orders"].reshape(epochs, -1, chunks)
    losses = torch_ppo_update(peer, optimizer, seen, *(torch.tensor(x) for x in orders), config)
    np.testing.assert_allclose(losses, arrays["losses"], rtol=1e-4, atol=2e-6)
    after = after_training(case)["selector"]["actor"]["dense_1"]["kernel"]
    np.testing.assert_allclose(peer.actor.dense_1.weight.detach().T, after, atol=2e-4)
