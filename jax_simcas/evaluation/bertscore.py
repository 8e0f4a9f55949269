"""BERTScore: similarity of the tokens of two texts in a pretrained encoder. Needs the extra `bertscore` (PyTorch).

Source: Zhang et al., "BERTScore: Evaluating Text Generation with BERT", ICLR 2020, without idf and rescaling.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jax_simcas.common.errors import UserError, first_line
from jax_simcas.evaluation.metrics import BERTSCORE

# The layers that correlate best with human judgement on WMT16, from the list of the paper's authors.
LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "roberta-base": 10,
    "roberta-large": 17,
    "distilroberta-base": 5,
    "bart-base": 6,
    "bart-large": 10,
    "deberta-large-mnli": 18,
    "deberta-xlarge-mnli": 40,
    "longformer-large-4096": 14,
    "scibert_scivocab_uncased": 8,
}
BATCH = 16  # texts


class Match(NamedTuple):
    """Precision, recall and their harmonic mean, each at most 1."""

    precision: float
    recall: float
    f1: float


class States(NamedTuple):
    """Unit vectors of a text's tokens; `counts` is False for special tokens."""

    vectors: Float[np.ndarray, "n d"]
    counts: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder and the hidden layer to use; reads at most `limit` tokens per text."""

    name: str
    layer: int
    limit: int
    model: Any
    tokenizer: Any

    @property
    def score_name(self) -> str:
        """The name of this encoder's scores in files and tables."""
        return f"{BERTSCORE}{self.name}@{self.layer}"


def match(prediction: States, reference: States) -> Match:
    """Greedy matching: precision = mean over the prediction's tokens of max over the reference's of the cosine.

    Recall swaps the two sides. As in the authors' tool, special tokens can be matched but do not count themselves.
    If no token counts on one side, all three are 0.
    """
    if not (prediction.counts.any() and reference.counts.any()):
        return Match(0.0, 0.0, 0.0)
    cosine = prediction.vectors @ reference.vectors.T
    precision = float(cosine.max(axis=1)[prediction.counts].mean())
    recall = float(cosine.max(axis=0)[reference.counts].mean())
    both = precision + recall
    return Match(precision, recall, 2 * precision * recall / both if both > 0 else 0.0)


def load_encoder(choice: str) -> Encoder:
    """The encoder of `MODEL` or `MODEL@LAYER`; MODEL is a folder or a hub id; code in it is never run.

    Raises:
      UserError: PyTorch is missing; no such model; missing weights; a layer that it lacks, or no known best layer.
    """
    asked = re.fullmatch(r"(?!@)(.+?)(?:@(\d+))?", choice)
    source, number = asked.groups() if asked else ("", None)
    if not source:
        raise UserError(f"{choice}: expected MODEL or MODEL@LAYER, such as roberta-large@17")
    try:
        import torch
    except ImportError:
        raise UserError(f"{choice}: needs PyTorch; pip install 'jax_simcas[bertscore]'") from None
    tokenizer, model = _read(choice, source)
    if not tokenizer.is_fast:
        needed = "expected one of the tokenizers library"
        raise UserError(f"--bertscore={choice}: its tokenizer is written in Python; {needed}")
    config = model.config
    if config.is_encoder_decoder:
        model = model.get_encoder()
    name = os.path.basename(os.path.normpath(source)) if os.path.isdir(source) else source
    layer = int(number) if number else LAYERS.get(name.split("/")[-1])
    layers = config.num_hidden_layers
    if layer is None or not 0 < layer <= layers:
        why = "no layer is known to be best for it" if layer is None else f"it has {layers} layers"
        raise UserError(f"{choice}: {why}; give {source}@LAYER, 1 to {layers}")
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Encoder(name, layer, _limit(tokenizer, config), model, tokenizer)


def _read(choice: str, source: str) -> tuple[Any, Any]:
    """The tokenizer and the model of a folder or hub id.

    Raises:
      UserError: it cannot be loaded, or weights are missing.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    where = "expected a hub id that can be reached, or a folder with config.json, tokenizer and weights"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, found = AutoModel.from_pretrained(
            source, trust_remote_code=False, weights_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # the libraries raise all kinds of errors for missing or damaged files
        raise UserError(f"{choice}: cannot be loaded ({first_line(error)}); {where}") from None
    # The library initialises missing weights randomly. The pooler comes after the layers and is not used.
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        raise UserError(f"{choice}: {len(missing)} weights are missing, the first is {missing[0]}; {where}")
    return tokenizer, model


def _limit(tokenizer: Any, config: Any) -> int:
    """Tokens that fit; a tokenizer without a limit reports 1e30, which its own backend rejects."""
    positions = getattr(config, "max_position_embeddings", None) or 1 << 20
    if re.search("roberta|longformer|camembert", config.model_type):
        positions -= config.pad_token_id + 1  # the table's first rows are no positions
    return min(int(tokenizer.model_max_length), positions)


def _encode(encoder: Encoder, texts: Sequence[str]) -> list[States]:
    """The states of a batch of texts."""
    import torch

    # Byte-level vocabularies encode the first word of a text differently from the same word later on.
    byte_level = "ByteLevel" in str(encoder.tokenizer.backend_tokenizer.pre_tokenizer)
    batch = encoder.tokenizer(
        [(" " * byte_level + text.strip()).rstrip() for text in texts],
        padding=True,
        truncation=True,
        max_length=encoder.limit,
        return_tensors="pt",
        return_special_tokens_mask=True,
    )
    real, special = batch["attention_mask"].bool().numpy(), batch["special_tokens_mask"].bool().numpy()
    inputs = {name: batch[name].to(encoder.model.device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = encoder.model(**inputs, output_hidden_states=True).hidden_states[encoder.layer]
    vectors = torch.nn.functional.normalize(hidden, dim=-1).cpu().numpy()
    return [States(v[r], ~s[r]) for v, r, s in zip(vectors, real, special, strict=True)]


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> dict[str, States]:
    """The states of each distinct text, batched by similar length."""
    ordered = sorted(dict.fromkeys(texts), key=len)
    batches = (ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH))
    return {text: states for batch in batches for text, states in zip(batch, _encode(encoder, batch), strict=True)}


def bertscore(encoder: Encoder, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Match]:
    """The match of each prediction with the one of its references that gives the highest F1.

    Raises:
      ValueError: different numbers of predictions and references; a prediction without references.
    """
    every = list(zip(predictions, references, strict=True))
    matches = []
    for start in range(0, len(every), 4 * BATCH):  # in parts, to limit memory
        pairs = every[start : start + 4 * BATCH]
        states = encode_texts(encoder, [text for prediction, given in pairs for text in (prediction, *given)])
        for prediction, given in pairs:
            best = (match(states[prediction], states[reference]) for reference in given)
            matches.append(max(best, key=lambda found: found.f1))
    return matches
