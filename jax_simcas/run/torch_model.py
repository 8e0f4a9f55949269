"""An encoder-decoder of transformers as the method uses one, whatever its family. Needs the extra `torch`.

Chunks are encoded as one batch; hooks on the encoder's layers align the boundary states. The decoder reads selected
states as `encoder_outputs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from jax_simcas.backbones.families import FAMILIES, name_of
from jax_simcas.backbones.protocol import BackboneConfig

# The boundary states of all chunks, [K, 2, D] -> what takes their place.
Exchange = Callable[[torch.Tensor], torch.Tensor]


def chunk_mean(boundary: torch.Tensor) -> torch.Tensor:
    """The mean over chunks."""
    return boundary.mean(0, keepdim=True).expand_as(boundary)


def chunk_shift(boundary: torch.Tensor) -> torch.Tensor:
    """The first state of the chunk before, the last state of the chunk behind; in a circle."""
    return torch.stack([boundary[:, 0].roll(1, 0), boundary[:, 1].roll(-1, 0)], dim=1)


EXCHANGES: dict[str, Exchange | None] = {"mean": chunk_mean, "shift": chunk_shift, "none": None}


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its bars and tables: what is missing is told by its caller."""
    usual = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(usual)


def made(config: BackboneConfig, weights: Mapping[str, torch.Tensor]) -> Any:
    """The model of transformers with that config and those weights, which it ties as its family does.

    Parameters that nothing here computes with, such as those that see images, it has only where they are given.

    Raises:
      ValueError: weights that it lacks, or that are missing.
    """
    as_in_file = json.loads(json.dumps(config.to_hf()))  # lists, where ours are tuples, which its fields refuse
    fields = {name: value for name, value in as_in_file.items() if name != "architectures"}
    its_config = AutoConfig.for_model(**fields)
    kind: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(its_config)]
    with quiet():
        model, info = kind.from_pretrained(None, config=its_config, state_dict=dict(weights), output_loading_info=True)
    unused = FAMILIES[name_of(config)].passengers(dict.fromkeys(info["missing_keys"], np.empty(0)))
    found = {"missing": set(info["missing_keys"]) - set(unused), "unexpected": info["unexpected_keys"]}
    if wrong := {kind: sorted(names) for kind, names in found.items() if names}:
        raise ValueError(f"parameters do not fit: {wrong}")
    for name in unused:
        owner, _, own = name.rpartition(".")
        delattr(model.get_submodule(owner), own)
    # Loading forgets which tables are fixed, such as PEGASUS' sinusoids.
    with torch.device("meta"):
        learned = {name for name, value in kind(its_config).named_parameters() if value.requires_grad}
    for name, value in model.named_parameters():
        value.requires_grad_(name in learned)
    return model


def layers_of(encoder: Any) -> nn.ModuleList:
    """The layers of an encoder or a decoder, by whichever name its family has for them."""
    stack = getattr(encoder, "text_model", encoder)  # beside a vision tower
    layers: nn.ModuleList = stack.block if hasattr(stack, "block") else stack.layers
    return layers


def can_cache(model: Any) -> bool:
    """Whether `generate` may keep keys and values: transformers makes as many caches as the encoder has layers."""
    caches: int = model.config.get_text_config(decoder=True).num_hidden_layers
    return len(layers_of(model.get_decoder())) <= caches


@contextmanager
def aligned(model: Any, exchange: Exchange | None, length: int) -> Iterator[None]:
    """Replaces positions 0 and length - 1 of what every encoder layer but the last gives."""

    def hook(layer: nn.Module, arguments: Any, output: Any) -> Any:
        assert exchange is not None
        hidden = output[0] if isinstance(output, tuple) else output
        boundary = exchange(torch.stack([hidden[:, 0], hidden[:, length - 1]], dim=1))
        # LED fills its input to whole windows: then something follows.
        parts = [boundary[:, :1], hidden[:, 1 : length - 1], boundary[:, 1:], hidden[:, length:]]
        hidden = torch.cat(parts[: 3 + (hidden.shape[1] > length)], dim=1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layers = () if exchange is None else layers_of(model.get_encoder())[:-1]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def encode(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, exchange: Exchange | None = chunk_mean
) -> torch.Tensor:
    """[K, S] ids -> [K, S, D] states of the last layer.

    Args:
      mask: what may be attended to; None: everything, PAD as well.
    """
    mask = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    with aligned(model, exchange if len(ids) > 1 else None, ids.shape[1]):
        states: torch.Tensor = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    return states


def encoder_outputs(model: Any, states: torch.Tensor) -> dict[str, Any]:
    """The states [n, D] that the decoder is to read, as keyword arguments of the model and of its `generate`."""
    mask = torch.ones(1, len(states), dtype=torch.long, device=states.device)
    return {"encoder_outputs": BaseModelOutput(states[None].to(model.dtype)), "attention_mask": mask}


def decode(model: Any, states: torch.Tensor, target_ids: torch.Tensor, **options: Any) -> Any:
    """The model's output for a target [T] that begins with the decoder's start token; logits are [1, T, V]."""
    given = encoder_outputs(model, states)
    # Without a mask, some families hide targets that equal PAD, as T5's start token does.
    mask = torch.ones_like(target_ids)[None]
    return model(**given, decoder_input_ids=target_ids[None], decoder_attention_mask=mask, use_cache=False, **options)
