"""The stages timed on the PyTorch peer's side, on the same document and with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from jax_simcas.benchmark.stages import PEERS, Task, example, fresh_params, half_selected
from jax_simcas.benchmark.torch_peer import Peer
from jax_simcas.benchmark.torch_peer_ppo import experience, rewards, torch_ppo_update
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.ppo import PPOConfig

LEARNING_RATE = 1e-4  # any value: only the time of a step matters


class PeerInputs(NamedTuple):
    """A task's model and document."""

    task: Task
    peer: Peer
    ids: torch.Tensor  # [K, S]
    target: torch.Tensor  # [T]
    action: torch.Tensor  # [K, N]: a random half
    generator: torch.Generator

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)


def inputs_of(task: Task) -> PeerInputs:
    """The same parameters and document as on our side."""
    choices, half = PEERS[task.side], task.dtype == "bfloat16"
    peer = Peer(
        task.shape,
        jax.device_get(fresh_params(task)),
        autocast=half and not choices.bfloat16_weights,
        static_cache=choices.compiled,
    ).eval()
    if half and choices.bfloat16_weights:
        peer.backbone.bfloat16()
    if choices.compiled and task.stage != "generate":  # which transformers alone could compile
        peer.compile_layers(decoder=task.stage != "selector")  # whose attention weights come through hooks
    batch = example(task)
    ids, target = (
        torch.tensor(np.array(array[0]), dtype=torch.long) for array in (batch.document.input_ids, batch.target.ids)
    )
    action = torch.tensor(half_selected(task, batch)[0])
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    return PeerInputs(task, peer.to(torch.get_default_device()), ids, target, action, generator)


def prepared(task: Task) -> Callable[[], Any]:
    """The stage, ready to run; each call runs it once and waits for the result."""
    if task.device == "cpu":
        return STAGES[task.stage](inputs_of(task))
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")  # TF32, which is also XLA's default
    run = STAGES[task.stage](inputs_of(task))

    def once() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return once


def _encode(inputs: PeerInputs) -> Callable[[], Any]:
    return lambda: inputs.peer.encode(inputs.ids)


def _select(inputs: PeerInputs) -> Callable[[], Any]:
    hidden = inputs.random(*inputs.ids.shape, inputs.task.shape.width)
    return lambda: inputs.peer.select(hidden)


def _decode(inputs: PeerInputs) -> Callable[[], Any]:
    states = inputs.random(inputs.task.selected, inputs.task.shape.width)
    return lambda: inputs.peer.logits(states, inputs.target)


def _reward(inputs: PeerInputs) -> Callable[[], Any]:
    logits = inputs.random(inputs.task.target, inputs.task.model.backbone.vocab_size)
    count = int(inputs.action.sum()) + 1
    attention = torch.full((count,), 1.0 / count)
    return lambda: rewards(logits, attention, inputs.action, inputs.target)


def _generate(inputs: PeerInputs) -> Callable[[], Any]:
    task = inputs.task
    config = GenerateConfig(num_beams=4, max_length=task.target, min_length=task.target)
    selected = inputs.random(task.selected, task.shape.width)
    return lambda: inputs.peer.generate(selected, config)


def _transformer(inputs: PeerInputs) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.Adam(inputs.peer.backbone.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = inputs.peer.loss(inputs.ids, inputs.target, inputs.action)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _selector(inputs: PeerInputs) -> Callable[[], torch.Tensor]:
    peer, config = inputs.peer, PPOConfig()
    chunks, candidates = inputs.action.shape
    optimizer = torch.optim.Adam([*peer.actor.parameters(), *peer.critic.parameters()], LEARNING_RATE, fused=True)
    rounds = -(-candidates // config.minibatch_size)

    def orders(length: int, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, length).argsort(-1)

    def step() -> torch.Tensor:
        sampled = torch.rand(chunks, candidates) < 0.5  # as from a fresh actor
        seen = experience(peer, inputs.ids, inputs.target, config, sampled)
        token_orders = orders(candidates, config.epochs, chunks)
        chunk_orders = orders(chunks, config.epochs, rounds)
        return torch_ppo_update(peer, optimizer, seen, token_orders, chunk_orders, config)

    return step


def _without_gradient(prepare: Callable[[PeerInputs], Callable[[], Any]]) -> Callable[[PeerInputs], Callable[[], Any]]:
    """The stage with every run under torch.no_grad."""
    return lambda inputs: torch.no_grad()(prepare(inputs))


STAGES: dict[str, Callable[[PeerInputs], Callable[[], Any]]] = {
    "encode": _without_gradient(_encode),
    "select": _without_gradient(_select),
    "decode": _without_gradient(_decode),
    "reward": _without_gradient(_reward),
    "generate": _generate,
    "transformer": _transformer,
    "selector": _selector,
}
