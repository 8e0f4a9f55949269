"""Model FLOPs of one document: 2 per multiply-add of the matrix products that the method requires.

Excludes elementwise work, softmax and gathers, and whatever a backward pass recomputes. Causal attention counts in
full, masked half included, as is customary.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax_simcas.backbones.bart.config import BartConfig

BACKWARD = 2  # a backward pass has two products for each one of the forward pass


@dataclass(frozen=True)
class DocumentShape:
    """One document: K chunks of S tokens, C selected states that the decoder reads, T target tokens."""

    chunks: int
    chunk_length: int
    selected: int
    target: int


def encoder(bart: BartConfig, shape: DocumentShape) -> int:
    """L K S (8 D^2 + 4 D F + 4 S D): four projections, two feed-forward products, scores and context."""
    d, s = bart.d_model, shape.chunk_length
    per_token = 8 * d**2 + 4 * d * bart.encoder_ffn_dim + 4 * s * d
    return bart.encoder_layers * shape.chunks * s * per_token


def decoder(bart: BartConfig, shape: DocumentShape) -> int:
    """L (T (12 D^2 + 4 D F + 4 T D + 4 C D) + 4 C D^2) + 2 T D V: teacher forcing, the output head included."""
    d, t = bart.d_model, shape.target
    per_token = 12 * d**2 + 4 * d * bart.decoder_ffn_dim + 4 * (t + shape.selected) * d
    return bart.decoder_layers * (t * per_token + cross_keys(bart, shape)) + head(bart, t)


def cross_keys(bart: BartConfig, shape: DocumentShape) -> int:
    """4 C D^2: keys and values of the selected states in one layer."""
    return 4 * shape.selected * bart.d_model**2


def head(bart: BartConfig, tokens: int) -> int:
    """2 T D V: logits."""
    return 2 * tokens * bart.d_model * bart.vocab_size


def policy(bart: BartConfig, shape: DocumentShape, outputs: int) -> int:
    """K ((S - 1) (12 D^2 + 4 D O) + 4 D^2): a selector's head, of hidden width 2 D, over all candidates."""
    d = bart.d_model
    return shape.chunks * ((shape.chunk_length - 1) * (12 * d**2 + 4 * d * outputs) + 4 * d**2)


def actor(bart: BartConfig, shape: DocumentShape) -> int:
    """Two logits per candidate, and 2 D for the running sum of the kept states."""
    return policy(bart, shape, 2) + 2 * shape.chunks * (shape.chunk_length - 1) * bart.d_model


def critic(bart: BartConfig, shape: DocumentShape) -> int:
    """One value per candidate."""
    return policy(bart, shape, 1)


def transformer_update(bart: BartConfig, shape: DocumentShape) -> int:
    """Three times the forward pass of encoder and decoder, and one of the actor, which samples but is not trained."""
    forward = encoder(bart, shape) + decoder(bart, shape)
    return (1 + BACKWARD) * forward + actor(bart, shape)


def selector_update(bart: BartConfig, shape: DocumentShape, epochs: int) -> int:
    """One forward pass of everything, and `epochs` training passes of actor and critic over all candidates."""
    rollout = encoder(bart, shape) + decoder(bart, shape) + actor(bart, shape) + critic(bart, shape)
    return rollout + epochs * (1 + BACKWARD) * (policy(bart, shape, 2) + policy(bart, shape, 1))


def generation(bart: BartConfig, shape: DocumentShape, beams: int) -> int:
    """Encoding, selection, and T - 1 decoder steps of `beams` rows; step t attends to t tokens, T / 2 on average."""
    d, steps = bart.d_model, shape.target - 1
    per_row = 12 * d**2 + 4 * d * bart.decoder_ffn_dim + 4 * (shape.target / 2 + shape.selected) * d
    layers = bart.decoder_layers * (steps * beams * per_row + cross_keys(bart, shape))
    return encoder(bart, shape) + actor(bart, shape) + int(layers) + head(bart, steps * beams)
