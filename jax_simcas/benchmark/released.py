"""The authors' released code, timed from the user's own clone, in the user's own environment for it.

Run as a file by that environment's Python (torch, transformers 4.42.4; neither JAX nor this package is needed there):

  PYTHON released.py TASK_AS_JSON CLONE

It drives the clone's classes and changes no file of it; the weights are random. Two hooks on its agent make the
comparison like with like: `encode` stops where selection begins, and training is given which half to select.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from worker import serve  # beside this file


class SelectionBegins(Exception):
    """Raised by the hook that ends `encode`."""


def document(task: SimpleNamespace, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Random chunks [1, K, S], BOS and EOS around each, and a target [1, T]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, config.vocab_size, (1, task.length // task.chunk_length, task.chunk_length))
    ids[..., 0], ids[..., -1] = config.bos_token_id, config.eos_token_id
    return torch.from_numpy(ids), torch.from_numpy(rng.integers(4, config.vocab_size, (1, task.target)))


def prepared(task: SimpleNamespace) -> Callable[[], Any]:
    """The stage, ready to run; a call runs it once."""
    from label_smoothing_loss import label_smoothing_loss  # the clone's
    from model import SimCAS
    from modeling_bart_ours import BartSimCAS
    from transformers import BartConfig
    from transformers.modeling_outputs import BaseModelOutput

    torch.manual_seed(0)
    config: Any = BartConfig(**task.bart)
    model = SimCAS.__new__(SimCAS)  # its constructor only knows how to load a checkpoint
    nn.Module.__init__(model)
    model.model, model.pad_token_id = BartSimCAS(config), config.pad_token_id
    encoder = model.model.model.encoder
    ids, target = document(task, config)
    precision = lambda: torch.autocast("cpu", torch.bfloat16, enabled=task.dtype == "bfloat16")
    if task.stage == "encode":

        def stop(*_: Any) -> None:
            raise SelectionBegins

        encoder.agent.get_action_and_value = stop
        model.eval()

        def encode() -> None:
            try:
                with torch.no_grad(), precision():
                    encoder(input_ids=ids, attention_mask=ids != config.pad_token_id, return_dict=True)
            except SelectionBegins:
                pass

        return encode
    if task.stage == "generate":
        model.eval()
        selected = torch.randn(1, task.selected, config.d_model)
        options = {"num_beams": 4, "max_length": task.target, "min_length": task.target, "do_sample": False}

        def generate() -> Any:
            with torch.no_grad(), precision():
                return model.generate(encoder_outputs=BaseModelOutput(selected), attention_mask=None, **options)

        return generate
    candidates = ids[0, :, 1:].numel()
    half = (torch.randperm(candidates) < candidates // 2).long().view(*ids[0, :, 1:].shape)
    agent, given = encoder.agent.get_action_and_value, iter(())

    def act(states: torch.Tensor, background: torch.Tensor, action: Any = None) -> Any:
        return agent(states, background, next(given)[None] if action is None else action)

    encoder.agent.get_action_and_value = act
    model.train()
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if "agent" not in name])
    loss_of = label_smoothing_loss(ignore_index=config.pad_token_id, epsilon=0.1)

    def step() -> torch.Tensor:
        nonlocal given
        given = iter(half)
        with precision():
            probs = model(ids, target)["probs"][:, :-1]
            loss = loss_of(probs.transpose(1, 2), target[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    given_task = SimpleNamespace(**json.loads(sys.argv[1]))
    serve(lambda: (prepared(given_task), 0.0))
