"""The authors' released code, timed from the user's own clone, in the user's own environment for it.

Run as a file by that environment's Python (torch, transformers 4.42.4; neither JAX nor this package is needed there):

  PYTHON released.py TASK_AS_JSON CLONE

It drives the clone's classes and changes none of its files; the weights are random. Two hooks on its agent make the
comparison fair: `encode` stops where selection begins, and training is given the half to select.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from worker import ProcessMemory, TorchMemory, serve  # beside this file


class SelectionBegins(Exception):
    """Raised by the hook that ends `encode`."""


def document(task: SimpleNamespace, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Random chunks [1, K, S], each from BOS to EOS, and a target [1, T]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, config.vocab_size, (1, task.length // task.chunk_length, task.chunk_length))
    ids[..., 0], ids[..., -1] = config.bos_token_id, config.eos_token_id
    return torch.tensor(ids), torch.tensor(rng.integers(4, config.vocab_size, (1, task.target)))


def random_model(task: SimpleNamespace) -> tuple[Any, Any]:
    """The clone's model with random weights, and its config."""
    from model import SimCAS  # the clone's
    from modeling_bart_ours import BartSimCAS
    from transformers import BartConfig

    torch.manual_seed(0)
    config: Any = BartConfig(**task.bart)
    model: Any = SimCAS.__new__(SimCAS)  # its constructor can only load a checkpoint
    nn.Module.__init__(model)
    model.model, model.pad_token_id = BartSimCAS(config), config.pad_token_id
    return model, config


def precision(task: SimpleNamespace) -> Any:
    return torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=task.dtype == "bfloat16")


def prepare_encode(task: SimpleNamespace) -> Callable[[], Any]:
    """Encoding, up to where the agent is asked for the first time."""
    model, config = random_model(task)
    ids, _ = document(task, config)
    encoder = model.model.model.encoder
    model.eval()

    def stop(*_: Any) -> None:
        raise SelectionBegins

    encoder.agent.get_action_and_value = stop

    def encode() -> None:
        try:
            with torch.no_grad(), precision(task):
                encoder(input_ids=ids, attention_mask=ids != config.pad_token_id, return_dict=True)
        except SelectionBegins:
            pass

    return encode


def prepare_generate(task: SimpleNamespace) -> Callable[[], Any]:
    """Beam search over random selected states."""
    from transformers.modeling_outputs import BaseModelOutput

    model, config = random_model(task)
    model.eval()
    selected = torch.randn(1, task.selected, config.d_model)
    options = {"num_beams": 4, "max_length": task.target, "min_length": task.target, "do_sample": False}

    def generate() -> Any:
        with torch.no_grad(), precision(task):
            return model.generate(encoder_outputs=BaseModelOutput(selected), attention_mask=None, **options)

    return generate


def prepare_transformer(task: SimpleNamespace) -> Callable[[], Any]:
    """A training step of the transformer, with a random half of the candidates selected."""
    from label_smoothing_loss import label_smoothing_loss  # the clone's

    model, config = random_model(task)
    ids, target = document(task, config)
    model.train()
    agent = model.model.model.encoder.agent
    half = random_half(ids[0, :, 1:])
    given = GivenActions(agent.get_action_and_value)
    agent.get_action_and_value = given
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if "agent" not in name])
    loss_of = label_smoothing_loss(ignore_index=config.pad_token_id, epsilon=0.1)

    def step() -> torch.Tensor:
        given.actions = iter(half)
        with precision(task):
            probs = model(ids, target)["probs"][:, :-1]
            loss = loss_of(probs.transpose(1, 2), target[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def random_half(candidates: torch.Tensor) -> torch.Tensor:
    """Actions [K, N] that keep a random half."""
    count = candidates.numel()
    return (torch.randperm(count) < count // 2).long().view(*candidates.shape)


class GivenActions:
    """Stands in for the agent's method: evaluates the next of `actions` instead of sampling one."""

    def __init__(self, evaluate: Callable[..., Any]) -> None:
        self.evaluate = evaluate
        self.actions: Iterator[torch.Tensor] = iter(())

    def __call__(self, states: torch.Tensor, background: torch.Tensor, action: Any = None) -> Any:
        return self.evaluate(states, background, next(self.actions)[None] if action is None else action)


STAGES = {"encode": prepare_encode, "transformer": prepare_transformer, "generate": prepare_generate}


def prepare(task: SimpleNamespace) -> Callable[[], Any]:
    """The stage; each call runs it once and waits for the result."""
    if task.device == "cpu":
        return STAGES[task.stage](task)
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")
    run = STAGES[task.stage](task)

    def once() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return once


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    task_of_process = SimpleNamespace(**json.loads(sys.argv[1]))
    memory = TorchMemory() if task_of_process.device == "gpu" else ProcessMemory()
    serve(lambda: (prepare(task_of_process), 0.0), memory)
