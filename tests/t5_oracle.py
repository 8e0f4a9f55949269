"""transformers' T5s with random weights, and the same model here."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

from jax_simcas.backbones.t5.backbone import T5
from jax_simcas.backbones.t5.config import CLASSES, T5Config
from jax_simcas.backbones.t5.weights import fitted, from_state_dict
from jax_simcas.common import trees
from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document
from jax_simcas.method.model import SimCAS, encode
from jax_simcas.method.select import Compacted

SIZES = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 36,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}


def torch_model(kind, seed=0, own_head=False, **changes):
    """A `kind` (t5, mt5, umt5) of transformers; `own_head`: with other weights than the embeddings."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**(SIZES | changes))
    model = getattr(transformers, f"{CLASSES[kind]}ForConditionalGeneration")(config).eval()
    for parameter in model.parameters():  # norms and biases of their own too
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif parameter.shape[1] == config.num_heads:
            parameter.data = torch.randn_like(parameter)
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn_like(model.lm_head.weight))
    return model


def state_dict(model):
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def same_model(model, **changes):
    """(backbone, parameters) of a model of transformers."""
    config = T5Config.from_hf(model.config.to_dict())
    flat = from_state_dict(state_dict(model), config)
    return T5(dataclasses.replace(fitted(config, flat), **changes)), jax.tree.map(jnp.asarray, trees.nest(flat))


def tokens(seed, shape, low=0, vocabulary=SIZES["vocab_size"]):
    return np.random.default_rng(seed).integers(low, vocabulary, shape)


def boundaries(exchange):
    """A hook on all but the last layer of transformers' encoder, which runs over the chunks of one document."""

    def hook(_module, _inputs, output):
        states, *rest = output if isinstance(output, tuple) else (output,)
        first, last = exchange(states[:, 0], states[:, -1])
        states = torch.cat([first[:, None], states[:, 1:-1], last[:, None]], dim=1)
        return (states, *rest) if isinstance(output, tuple) else states

    return hook


EXCHANGES = {
    "none": lambda first, last: (first, last),
    "mean": lambda first, last: (first.mean(0, keepdim=True).expand_as(first), last.mean(0).expand_as(last)),
    "shift": lambda first, last: (first.roll(1, 0), last.roll(-1, 0)),
}


def torch_states(model, ids, mask, align="none"):
    """Encoder states of chunks [K, S], whose boundary states are exchanged between layers."""
    hooks = [block.register_forward_hook(boundaries(EXCHANGES[align])) for block in model.encoder.block[:-1]]
    try:
        return model.encoder(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()


def torch_logits(model, states, mask, target):
    """Logits of one document, whose states [C, D] the decoder reads."""
    return model(
        encoder_outputs=BaseModelOutput(states[None]),
        attention_mask=torch.tensor(mask)[None].long(),
        decoder_input_ids=torch.tensor(target)[None],
    ).logits[0]


def torch_generated(model, states, mask, options):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            encoder_outputs=BaseModelOutput(states[None]),
            attention_mask=torch.tensor(mask)[None].long(),
            do_sample=False,
            use_cache=model.config.num_decoder_layers <= model.config.num_layers,  # theirs has no more layers
            **options,
        )
    return out[0].numpy()


def forward(params, backbone, alignment, document, target, **options):
    """States [K, S, D], logits [T, V] of a decoder that reads all of them, and its mean weights [K S]."""
    states, _ = encode(params, SimCAS(backbone, align=alignment, **options), document)
    flat, mask = states.reshape(-1, backbone.width), document.token_mask.ravel()
    logits, weights = backbone.decode(params, flat, mask, target, jnp.ones(len(target), bool))
    return states, logits, weights


def document_of(ids, mask):
    return Document(jnp.asarray(ids), jnp.asarray(mask), jnp.ones(len(ids), bool))


def our_tokens(params, backbone, states, mask, config):
    found = jax.jit(
        lambda params, states, mask: generate(
            params, SimCAS(backbone), config, Compacted(states, mask, jnp.arange(len(mask) - 1), jnp.array(0))
        )
    )(params, jnp.asarray(states), jnp.asarray(mask))
    return np.asarray(found.sequence)[: int(found.length)]


def relative(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
