"""SimCAS (Chunk, Align, Select) in JAX and Flax: pretrained encoder-decoders on long documents.

The public names below are imported when they are first used, so that `import jax_simcas` alone does not load JAX.
docs/api.md shows how they fit together.
"""

from __future__ import annotations

import importlib
from typing import Any

from jax_simcas.common import moved

# Imports here stay light: programs answer --help, and name a package that is missing, before jax is imported.

__version__ = "0.2.0"
moved.register()

# Public name -> the module that defines it; `load` stands for `load_summarizer`.
_PUBLIC = {
    "Bart": "backbones.bart.backbone",
    "BartConfig": "backbones.bart.config",
    "T5": "backbones.t5.backbone",
    "T5Config": "backbones.t5.config",
    "T5Gemma": "backbones.t5gemma.backbone",
    "T5GemmaConfig": "backbones.t5gemma.config",
    "Backbone": "backbones.protocol",
    "backbone_for": "backbones.families",
    "Pretrained": "checkpoints.hub",
    "from_pretrained": "checkpoints.hub",
    "Alignment": "method.align",
    "chunk_mean": "method.align",
    "chunk_shift": "method.align",
    "GenerateConfig": "method.generate_config",
    "Generation": "method.beam_search",
    "generate": "method.beam_search",
    "chunk_sentences": "method.chunk",
    "chunk_tokens": "method.chunk",
    "Document": "method.document",
    "Example": "method.document",
    "Target": "method.document",
    "SimCAS": "method.model",
    "decode_selected": "method.model",
    "encode": "method.model",
    "encode_and_select": "method.model",
    "forward": "method.model",
    "init_params": "method.model",
    "inverse_sqrt": "method.optimizers",
    "PPOConfig": "method.ppo",
    "CrossAttention": "method.reward",
    "Likelihood": "method.reward",
    "POLICIES": "method.select",
    "Policy": "method.select",
    "compact": "method.select",
    "select": "method.select",
    "TrainState": "method.steps",
    "batch_loss": "method.steps",
    "init_state": "method.steps",
    "selector_step": "method.steps",
    "transformer_step": "method.steps",
    "load": "run.build",
}
_NAMES = {"load": "load_summarizer"}  # where the defining module calls it otherwise

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), _NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
