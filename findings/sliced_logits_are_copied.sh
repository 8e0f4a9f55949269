#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1, on a CPU: a loss of `logits[:, :-1]` needs half as much memory again as one of moved labels.
#
# Expected: the logits at t predict token t + 1, so losses commonly drop the last position, `logits[:, :-1]` against
# `tokens[:, 1:]`. The compiler fuses a slice with what reads it, so that moving the tokens to the logits' places and
# dropping the last loss comes to the same. Seen: the slice, or the padding of its gradient, is an array of the logits'
# size, the largest of such a program: it holds three of them in place of two. Loss and gradients are equal.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages jax==0.10.2 jaxlib==0.10.2
check <<'PY'
import jax
import jax.numpy as jnp

texts, length, width, vocabulary = 8, 160, 128, 8192

def cross_entropy(logits, labels):
    gold = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - gold

def logits_sliced(logits, tokens):
    return cross_entropy(logits[:, :-1], tokens[:, 1:]).mean()

def labels_moved(logits, tokens):
    losses = cross_entropy(logits, jnp.roll(tokens, -1, axis=1))
    return losses[:, :-1].mean()

states = jax.random.normal(jax.random.key(0), (texts, length, width))
table = jax.random.normal(jax.random.key(1), (vocabulary, width)) / width
tokens = jax.random.randint(jax.random.key(2), (texts, length), 0, vocabulary)

def compiled(loss):
    both = jax.value_and_grad(lambda states, table: loss(states @ table.T, tokens), (0, 1))
    return jax.jit(both).lower(states, table).compile()

programs = {"logits sliced": compiled(logits_sliced), "labels moved": compiled(labels_moved)}
(loss, gradients), (same_loss, same_gradients) = (program(states, table) for program in programs.values())
assert jnp.allclose(loss, same_loss, rtol=1e-5), (loss, same_loss)
for one, other in zip(gradients, same_gradients, strict=True):
    assert jnp.allclose(one, other, rtol=1e-4, atol=1e-8)

array = texts * length * vocabulary * 4
seen = {name: program.memory_analysis().temp_size_in_bytes / array for name, program in programs.items()}
print(f"jax {jax.__version__}: arrays of the logits' size among the temporaries, expected 2 in both, seen {seen}")
assert seen["logits sliced"] > 2.9 and seen["labels moved"] < 2.1
PY
