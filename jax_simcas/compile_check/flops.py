"""Model FLOPs of one document: 2 per multiply-add of the matrix products that the method requires.

Excludes elementwise work, softmax and gathers, and whatever a backward pass recomputes. Causal attention counts in
full, masked half included, as is customary.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax_simcas.backbones.protocol import BackboneConfig

BACKWARD = 2  # a backward pass has two products for each one of the forward pass


@dataclass(frozen=True)
class DocumentShape:
    """One document: K chunks of S tokens, C selected states that the decoder reads, T target tokens."""

    chunks: int
    chunk_length: int
    selected: int
    target: int


def encoder(model: BackboneConfig, shape: DocumentShape) -> int:
    """All layers over all chunks, PAD included."""
    s, per = shape.chunk_length, model.flops
    return shape.chunks * s * (per.encoder_token + s * per.encoder_pair)


def decoder(model: BackboneConfig, shape: DocumentShape) -> int:
    """Teacher forcing over the target, keys and values of the selected states, logits."""
    t, per = shape.target, model.flops
    layers = t * (per.decoder_token + t * per.decoder_pair + shape.selected * per.cross_pair)
    return layers + cross_keys(model, shape) + head(model, t)


def cross_keys(model: BackboneConfig, shape: DocumentShape) -> int:
    """Cross-attention keys and values of the selected states, in all layers."""
    return shape.selected * model.flops.selected_state


def head(model: BackboneConfig, tokens: int) -> int:
    """Logits of so many tokens."""
    return tokens * model.flops.logit


def policy(model: BackboneConfig, shape: DocumentShape, outputs: int) -> int:
    """K ((S - 1) (12 D^2 + 4 D O) + 4 D^2): a selector's head, of hidden width 2 D, over all candidates."""
    d = model.width
    return shape.chunks * ((shape.chunk_length - 1) * (12 * d**2 + 4 * d * outputs) + 4 * d**2)


def actor(model: BackboneConfig, shape: DocumentShape) -> int:
    """Two logits per candidate, and 2 D for the running sum of the kept states."""
    return policy(model, shape, 2) + 2 * shape.chunks * (shape.chunk_length - 1) * model.width


def critic(model: BackboneConfig, shape: DocumentShape) -> int:
    """One value per candidate."""
    return policy(model, shape, 1)


def transformer_update(model: BackboneConfig, shape: DocumentShape) -> int:
    """Three times the forward pass of encoder and decoder, and one of the actor, which samples but is not trained."""
    forward = encoder(model, shape) + decoder(model, shape)
    return (1 + BACKWARD) * forward + actor(model, shape)


def selector_update(model: BackboneConfig, shape: DocumentShape, epochs: int) -> int:
    """One forward pass of everything, and `ppo`."""
    rollout = encoder(model, shape) + decoder(model, shape) + actor(model, shape) + critic(model, shape)
    return rollout + ppo(model, shape, epochs)


def ppo(model: BackboneConfig, shape: DocumentShape, epochs: int) -> int:
    """`epochs` training passes of actor and critic over all candidates."""
    return epochs * (1 + BACKWARD) * (policy(model, shape, 2) + policy(model, shape, 1))


def generation(model: BackboneConfig, shape: DocumentShape, beams: int) -> int:
    """Encode, select, and a search of `shape.target` - 1 steps by so many beams; half a summary is attended to."""
    steps, per = shape.target - 1, model.flops
    per_row = per.decoder_token + shape.target / 2 * per.decoder_pair + shape.selected * per.cross_pair
    search = int(steps * beams * per_row) + cross_keys(model, shape) + head(model, steps * beams)
    return encoder(model, shape) + actor(model, shape) + search
