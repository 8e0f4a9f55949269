"""Sizes of published checkpoints, for programs that are compiled and not run: nothing is fetched for them."""

from __future__ import annotations

from dataclasses import replace

from jax_simcas.backbones.bart.config import BART_BASE, BART_LARGE, BartConfig
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.backbones.t5gemma.config import T5GEMMA2_1B, T5GEMMA2_270M

FLAN_T5_BASE = T5Config()
FLAN_T5_LARGE = T5Config(d_model=1024, d_ff=2816, num_layers=24, num_decoder_layers=24, num_heads=16)
FLAN_T5_XL = replace(FLAN_T5_LARGE, d_model=2048, d_ff=5120, num_heads=32)
PEGASUS_LARGE = BartConfig.from_hf(
    {
        "model_type": "pegasus",
        "vocab_size": 96_103,
        "d_model": 1024,
        **{f"{side}_layers": 16 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 16 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 4096 for side in ("encoder", "decoder")},
        "max_position_embeddings": 1024,
        "activation_function": "relu",
        "scale_embedding": True,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "forced_eos_token_id": 1,
    }
)
LED_BASE = replace(BART_BASE, model_type="led", max_position_embeddings=16_384, max_decoder_position_embeddings=1024)

# By hub id.
PUBLISHED: dict[str, BackboneConfig] = {
    "facebook/bart-base": BART_BASE,
    "facebook/bart-large": BART_LARGE,
    "google/flan-t5-base": FLAN_T5_BASE,
    "google/flan-t5-large": FLAN_T5_LARGE,
    "google/flan-t5-xl": FLAN_T5_XL,
    "google/pegasus-large": PEGASUS_LARGE,
    "allenai/led-base-16384": LED_BASE,
    "google/t5gemma-2-270m-270m": T5GEMMA2_270M,
    "google/t5gemma-2-1b-1b": T5GEMMA2_1B,
}
