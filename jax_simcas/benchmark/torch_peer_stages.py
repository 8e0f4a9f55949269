"""What is timed on the PyTorch peer's side: the same stages, on the same document with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from jax_simcas.benchmark.stages import Task, example, fresh_params, half_selected
from jax_simcas.benchmark.torch_peer import Peer
from jax_simcas.benchmark.torch_peer_ppo import experience, ppo_update, rewards
from jax_simcas.method.beam_search import GenerateConfig
from jax_simcas.method.ppo import PPOConfig

LEARNING_RATE = 1e-4  # any: it is the time of a step that counts


def prepared(task: Task) -> Callable[[], Any]:
    """The stage, ready to run; a call runs it once."""
    peer = Peer(task.bart, jax.device_get(fresh_params(task)), autocast=task.dtype == "bfloat16").eval()
    batch = example(task)
    ids = torch.from_numpy(np.array(batch.document.input_ids[0])).long()
    target = torch.from_numpy(np.array(batch.target.ids[0])).long()
    generator = torch.Generator().manual_seed(1)
    if task.stage == "encode":
        return lambda: _without_gradient(lambda: peer.encode(ids))
    if task.stage == "select":
        hidden = torch.randn(*ids.shape, task.bart.d_model, generator=generator)
        return lambda: _without_gradient(lambda: peer.select(hidden))
    if task.stage == "decode":
        states = torch.randn(task.selected, task.bart.d_model, generator=generator)
        return lambda: _without_gradient(lambda: peer.logits(states, target))
    if task.stage == "reward":
        action = torch.from_numpy(half_selected(task, batch)[0])
        logits = torch.randn(task.target, task.bart.vocab_size, generator=generator)
        attention = torch.full((int(action.sum()) + 1,), 1.0 / (int(action.sum()) + 1))
        return lambda: _without_gradient(lambda: rewards(logits, attention, action, target))
    if task.stage == "generate":
        config = GenerateConfig(num_beams=4, max_length=task.target, min_length=task.target)
        selected = torch.randn(task.selected, task.bart.d_model, generator=generator)
        return lambda: peer.generate(selected, config)
    if task.stage == "selector":
        return _selector(peer, ids, target, task.chunk_length - 1)
    optimizer = torch.optim.Adam(peer.bart.parameters(), lr=LEARNING_RATE)
    action = torch.from_numpy(half_selected(task, batch)[0])

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = peer.loss(ids, target, action)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _selector(peer: Peer, ids: torch.Tensor, target: torch.Tensor, candidates: int) -> Callable[[], torch.Tensor]:
    config, chunks = PPOConfig(), len(ids)
    optimizer = torch.optim.Adam([*peer.actor.parameters(), *peer.critic.parameters()], LEARNING_RATE)
    rounds = -(-candidates // config.minibatch_size)
    shuffled = lambda length, *shape: torch.rand(*shape, length).argsort(-1)

    def step() -> torch.Tensor:
        draws = torch.rand(chunks, candidates) < 0.5  # as a fresh actor's
        seen = experience(peer, ids, target, config, draws)
        orders = shuffled(candidates, config.epochs, chunks), shuffled(chunks, config.epochs, rounds)
        return ppo_update(peer, optimizer, seen, *orders, config)

    return step


def _without_gradient(run: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return run()
