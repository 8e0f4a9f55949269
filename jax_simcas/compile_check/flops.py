"""Model FLOPs of one document: 2 for every multiply-add of a matrix product that the method asks for.

Elementwise work, softmax and gathers are left out, and so is what a backward pass recomputes. Causal attention counts
in full, masked half included, as is the custom.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax_simcas.backbones.bart.config import BartConfig

BACKWARD = 2  # a backward pass has two products for each of the forward pass


@dataclass(frozen=True)
class Sizes:
    """Of one document: K chunks of S tokens, C selected states that the decoder reads, T target tokens."""

    chunks: int
    chunk_length: int
    selected: int
    target: int


def encoder(bart: BartConfig, sizes: Sizes) -> int:
    """L K S (8 D^2 + 4 D F + 4 S D): four projections, two feed-forward products, scores and context."""
    d, s = bart.d_model, sizes.chunk_length
    a_token = 8 * d**2 + 4 * d * bart.encoder_ffn_dim + 4 * s * d
    return bart.encoder_layers * sizes.chunks * s * a_token


def decoder(bart: BartConfig, sizes: Sizes) -> int:
    """L (T (12 D^2 + 4 D F + 4 T D + 4 C D) + 4 C D^2) + 2 T D V: teacher forcing, the output head included."""
    d, t = bart.d_model, sizes.target
    a_token = 12 * d**2 + 4 * d * bart.decoder_ffn_dim + 4 * (t + sizes.selected) * d
    return bart.decoder_layers * (t * a_token + cross_keys(bart, sizes)) + head(bart, t)


def cross_keys(bart: BartConfig, sizes: Sizes) -> int:
    """4 C D^2: keys and values of the selected states in one layer."""
    return 4 * sizes.selected * bart.d_model**2


def head(bart: BartConfig, tokens: int) -> int:
    """2 T D V: logits."""
    return 2 * tokens * bart.d_model * bart.vocab_size


def policy(bart: BartConfig, sizes: Sizes, outputs: int) -> int:
    """K ((S - 1) (12 D^2 + 4 D O) + 4 D^2): a selector's head, of hidden width 2 D, over all candidates."""
    d = bart.d_model
    return sizes.chunks * ((sizes.chunk_length - 1) * (12 * d**2 + 4 * d * outputs) + 4 * d**2)


def actor(bart: BartConfig, sizes: Sizes) -> int:
    """Two logits a candidate, and 2 D of it for the running sum of what was kept."""
    return policy(bart, sizes, 2) + 2 * sizes.chunks * (sizes.chunk_length - 1) * bart.d_model


def critic(bart: BartConfig, sizes: Sizes) -> int:
    """One value a candidate."""
    return policy(bart, sizes, 1)


def transformer_step(bart: BartConfig, sizes: Sizes) -> int:
    """Three forward passes of encoder and decoder, one of the actor, which draws but does not learn."""
    forward = encoder(bart, sizes) + decoder(bart, sizes)
    return (1 + BACKWARD) * forward + actor(bart, sizes)


def selector_step(bart: BartConfig, sizes: Sizes, epochs: int) -> int:
    """One forward pass of everything, then `epochs` training passes of actor and critic over all candidates."""
    rollout = encoder(bart, sizes) + decoder(bart, sizes) + actor(bart, sizes) + critic(bart, sizes)
    return rollout + epochs * (1 + BACKWARD) * (policy(bart, sizes, 2) + policy(bart, sizes, 1))


def generate(bart: BartConfig, sizes: Sizes, beams: int) -> int:
    """Encode, select, then T - 1 steps of `beams` rows; a step at t attends to t tokens: T / 2 on average."""
    d, steps = bart.d_model, sizes.target - 1
    a_row = 12 * d**2 + 4 * d * bart.decoder_ffn_dim + 4 * (sizes.target / 2 + sizes.selected) * d
    layers = bart.decoder_layers * (steps * beams * a_row + cross_keys(bart, sizes))
    return encoder(bart, sizes) + actor(bart, sizes) + int(layers) + head(bart, steps * beams)
