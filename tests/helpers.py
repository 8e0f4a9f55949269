"""Tiny models and documents that many tests share."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas import settings as settings_lib
from jax_simcas.bart.config import BartConfig
from jax_simcas.model import SimcasConfig, init_params
from jax_simcas.pretrained import load

CONFIGS = Path(__file__).parent.parent / "configs"
PARITY = Path(__file__).parent / "data" / "parity"
MANIFEST = json.loads((PARITY / "manifest.json").read_text())

TINY = BartConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    max_position_embeddings=32,
    dropout=0.0,
    init_std=0.3,
)


def read_config(name):
    """(settings, docstring) of configs/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return settings_lib.from_config(module.get_config()), module.__doc__


@cache
def parity_model():
    """(config, params) of the small BART that the parity arrays were computed with."""
    loaded = load(PARITY)
    return loaded.config, jax.tree.map(jnp.asarray, loaded.params)


@cache
def tiny_params(bart=TINY, simcas=None, seed=0):
    return init_params(jax.random.key(seed), bart, simcas or SimcasConfig())


def document(seed, chunks=3, chunk_length=8, tail=2, target=6, vocabulary=40, padding_chunks=0, target_padding=0):
    """One random document with `tail` PAD in its last chunk, plus chunks and targets of pure padding."""
    rng = np.random.default_rng(seed)
    total = chunks + padding_chunks
    ids = np.full((total, chunk_length), 1, np.int32)
    mask = np.zeros((total, chunk_length), bool)
    ids[:chunks] = rng.integers(4, vocabulary, (chunks, chunk_length))
    ids[:chunks, 0], ids[:chunks, -1], mask[:chunks] = 0, 2, True
    if tail:
        ids[chunks - 1, -1 - tail : -1] = 1
        mask[chunks - 1, -1 - tail : -1] = False
    targets = np.full(target + target_padding, 1, np.int32)
    targets[:target] = [2, 0, *rng.integers(4, vocabulary, target - 3), 2]
    return {
        "input_ids": jnp.asarray(ids),
        "token_mask": jnp.asarray(mask),
        "chunk_mask": jnp.asarray(mask.any(axis=1)),
        "target_ids": jnp.asarray(targets),
        "target_mask": jnp.asarray(targets != 1),
    }


def stack(*documents):
    return jax.tree.map(lambda *x: jnp.stack(x), *documents)
