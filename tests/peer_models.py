"""Small models of transformers with random sizes, rules and weights, of any type."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import transformers


class Sizes(NamedTuple):
    """Of which each model draws its own."""

    vocabulary: int = 90
    widths: tuple[int, ...] = (24, 40)
    encoder_layers: tuple[int, ...] = (2, 3)
    decoder_layers: tuple[int, ...] = (1, 2, 3)
    inner: int = 36


USUAL = Sizes()
TINY = Sizes(40, (16,), (2,), (1,), 16)


def bart(rng, sizes):
    """Of BART and its relatives."""
    return {
        "vocab_size": sizes.vocabulary,
        "d_model": int(rng.choice(sizes.widths)),
        "encoder_layers": int(rng.choice(sizes.encoder_layers)),
        "decoder_layers": int(rng.choice(sizes.decoder_layers)),
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": sizes.inner,
        "decoder_ffn_dim": sizes.inner + 12,
        "max_position_embeddings": 64,
        "init_std": 0.15,
        "activation_function": str(rng.choice(["gelu", "relu"])),
        "scale_embedding": bool(rng.integers(2)),
    }


def t5(rng, sizes):
    return {
        "vocab_size": sizes.vocabulary,
        "d_model": int(rng.choice(sizes.widths)),
        "d_kv": int(rng.choice([6, 10])),
        "num_heads": int(rng.choice([2, 3])),
        "d_ff": sizes.inner,
        "num_layers": int(rng.choice(sizes.encoder_layers)),
        "num_decoder_layers": int(rng.choice(sizes.decoder_layers)),
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": str(rng.choice(["relu", "gated-gelu"])),
        "tie_word_embeddings": bool(rng.integers(2)),
        "decoder_start_token_id": 0,
    }


def stack(rng, sizes, width, layers):
    """The encoder or the decoder of T5Gemma: shared heads, windows, soft caps small enough to be felt."""
    heads, shared = [(4, 2), (4, 1), (2, 2)][rng.integers(3)]
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": int(rng.choice(layers)),
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": int(rng.choice([6, 10])),
        "query_pre_attn_scalar": int(rng.choice([6, 16])),
        "sliding_window": int(rng.integers(5, 20)),
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": [None, 3.0][rng.integers(2)],
    }


def with_windows(rng, stack):
    """Each layer sees everything, or a window."""
    kinds = ("sliding_attention", "full_attention")
    return stack | {"layer_types": [kinds[rng.integers(2)] for _ in range(stack["num_hidden_layers"])]}


def t5gemma(rng, sizes):
    width = int(rng.choice(sizes.widths))
    stacks = [stack(rng, sizes, width, layers) for layers in (sizes.encoder_layers, sizes.decoder_layers)]
    encoder, decoder = (with_windows(rng, made) for made in stacks)
    tied = bool(rng.integers(2))
    return {"encoder": encoder, "decoder": decoder, "vocab_size": sizes.vocabulary, "tie_word_embeddings": tied}


def t5gemma2(rng, sizes):
    """With a vision tower of one layer, and no cap on scores, which its sdpa has not."""
    text = stack(rng, sizes, int(rng.choice(sizes.widths)), sizes.encoder_layers) | {"attn_logit_softcapping": None}
    decoder = text | {"num_hidden_layers": int(rng.choice(sizes.decoder_layers))}
    vision = {"hidden_size": 8, "intermediate_size": 8, "image_size": 16, "patch_size": 8}
    vision |= {"num_attention_heads": 1, "num_hidden_layers": 1}
    last = sizes.vocabulary - 1
    image = {"eoi_token_index": last - 2, "boi_token_index": last - 1, "image_token_index": last}
    encoder = {"text_config": with_windows(rng, text), "vision_config": vision, "mm_tokens_per_image": 4, **image}
    return {"encoder": encoder, "decoder": with_windows(rng, decoder), "image_token_index": last}


SETTINGS = dict.fromkeys(("bart", "mbart", "pegasus", "m2m_100", "marian", "plbart", "mvp", "blenderbot"), bart)
SETTINGS |= {"t5": t5, "mt5": t5, "umt5": t5, "t5gemma": t5gemma, "t5gemma2": t5gemma2}


def model_of(kind, seed, sizes=USUAL):
    """A random model of a type of transformers; no parameter that learns is 0 or 1."""
    settings = SETTINGS[kind](np.random.default_rng(seed), sizes)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(kind, **settings)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += (0.1 if value.ndim == 1 else 0.5 * value.shape[-1] ** -0.5) * torch.randn(value.shape)
    return model
