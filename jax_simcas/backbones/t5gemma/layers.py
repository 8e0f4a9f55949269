"""T5Gemma's building blocks for one sequence: pure functions of the dicts that hold their parameters.

Heads of queries lie in groups, each of which shares one head of keys and values: R queries of a token are R rows of its
group, so that attention sees G heads with R T rows (row r T + t) and keys stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops.attention import Attend, attend_with_weights, attention, repeated
from jax_simcas.backbones.ops.layers import TRANSPOSED, activation, dropped, few_rows
from jax_simcas.backbones.ops.matmul import Dimensions, product
from jax_simcas.backbones.ops.memory import PRODUCT, SUM
from jax_simcas.backbones.t5gemma.config import StackConfig, T5GemmaConfig
from jax_simcas.common.trees import Params

Flag = Bool[Array, ""] | bool  # a Python value where the program has one layer after the other
ATTENTION_PLACES = 8  # of keys for dropout in a layer, after those of its sublayers
Angles = tuple[Float[Array, "T F"], Float[Array, "T F"]]  # cosines and sines


def dense(params: Params, x: Float[Array, "T I"], dtype: Any, dimensions: Dimensions) -> Float[Array, "T O"]:
    """x W, and a bias if there is one: operands in `dtype`, summed in float32, result in `dtype`."""
    x = x.astype(dtype)
    y = few_rows(x, params[TRANSPOSED]) if TRANSPOSED in params else product(x, params["kernel"], dimensions)
    if "bias" in params:
        y = y + params["bias"]
    return checkpoint_name(y.astype(dtype), PRODUCT)


def rms_norm(params: Params, x: Float[Array, "... D"], config: StackConfig, dtype: Any) -> Float[Array, "... D"]:
    """x / rms(x) (1 + w) in float32, result in `dtype`."""
    x = x.astype(jnp.float32)
    size = lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + config.rms_norm_eps)
    return (x * size * (1.0 + params["scale"])).astype(dtype)


def capped(x: Float[Array, ...], cap: float | None) -> Float[Array, ...]:
    """cap tanh(x / cap)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


# Rotary angles


def frequencies(config: StackConfig, theta: float, factor: float) -> Float[np.ndarray, " F"]:
    """Angles per token of each pair of numbers; made on the host, so that they are alike on every device."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    return (1.0 / np.float32(theta) ** exponents / np.float32(factor)).astype(np.float32)


def rotated(x: Float[Array, "... T Dh"], angles: Angles) -> Float[Array, "... T Dh"]:
    """Each pair (x_i, x_{i + Dh/2}) turned by its angle, in float32."""
    cosine, sine = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


# Windows: what a sliding layer sees


def encoder_window(config: T5GemmaConfig, length: int, sliding: Flag) -> Bool[Array, "S S"] | None:
    """What each token of a chunk may attend to by its distance; None: everything.

    A T5Gemma's layer sees the window on either side, itself not counted. That of a T5Gemma 2 sees half of it on either
    side, itself counted on the left: a chunk as long as the window is not seen whole.

    Source: `sliding_window_bidirectional_overlay` and T5Gemma 2's `sliding_window_mask_function` of transformers.
    """
    window = config.encoder.sliding_window
    if window is None or sliding is False:
        return None
    back, ahead = ((window + 1) // 2, window // 2 + 1) if config.merged else (window + 1, window + 1)
    if min(back, ahead) >= length:
        return None
    distance = jnp.arange(length)[:, None] - jnp.arange(length)
    return ((distance < back) & (-distance < ahead)) | ~jnp.asarray(sliding)


def decoder_window(config: T5GemmaConfig, back: Int[Array, "*T"], sliding: Flag) -> Bool[Array, "*T"]:
    """Whether a token sees one that stands `back` places before it: itself and the window less one."""
    window = config.decoder.sliding_window
    return (back >= 0) if window is None else (back >= 0) & ((back < window) | ~jnp.asarray(sliding))


# Attention


def in_rows(mask: Bool[Array, "#T C"], config: StackConfig) -> Bool[Array, "#R_T C"]:
    """The mask of all rows of a group."""
    return repeated(mask, mask.shape[0] * config.num_attention_heads // config.num_key_value_heads)


def heads_of(count: int, rest: str | None = "width") -> Dimensions:
    """What the dimensions of a kernel to so many heads mean on a mesh, which may not cut a head."""
    return rest, f"heads/{count}"


def queries(
    params: Params, x: Float[Array, "T D"], config: StackConfig, angles: Angles | None, dtype: Any
) -> Float[Array, "G R_T Dh"]:
    """The queries of each token, in groups."""
    y = dense(params["q_proj"], x, dtype, heads_of(config.num_attention_heads))
    y = y.reshape(x.shape[0], config.num_key_value_heads, -1, config.head_dim)
    if "q_norm" in params:
        y = rms_norm(params["q_norm"], y, config, dtype)
    y = y.transpose(1, 2, 0, 3)
    if angles is not None:
        y = rotated(y, angles)
    return y.reshape(config.num_key_value_heads, -1, config.head_dim)


def keys_values(
    params: Params, x: Float[Array, "C D"], config: StackConfig, angles: Angles | None, dtype: Any
) -> tuple[Float[Array, "G C Dh"], Float[Array, "G C Dh"]]:
    """Keys and values; without `angles`, as those of selected states, keys are not turned."""
    to_heads = heads_of(config.num_key_value_heads)
    split = lambda y: y.reshape(x.shape[0], -1, config.head_dim)
    key, value = (split(dense(params[name], x, dtype, to_heads)) for name in ("k_proj", "v_proj"))
    if "k_norm" in params:
        key = rms_norm(params["k_norm"], key, config, dtype)
    key, value = key.swapaxes(0, 1), value.swapaxes(0, 1)
    return (key if angles is None else rotated(key, angles)), value


def output(params: Params, context: Float[Array, "G R_T Dh"], config: StackConfig, dtype: Any) -> Float[Array, "T D"]:
    """The heads of each token side by side, times the output kernel."""
    groups = config.num_attention_heads // config.num_key_value_heads
    context = context.reshape(config.num_key_value_heads, groups, -1, config.head_dim).transpose(2, 0, 1, 3)
    joined = context.reshape(context.shape[0], -1)
    return dense(params["o_proj"], joined, dtype, heads_of(config.num_attention_heads)[::-1])


def weighted(weights: Float[Array, "G R_T C"], value: Float[Array, "G C Dh"]) -> Float[Array, "G R_T Dh"]:
    """The values by these weights."""
    sums = jnp.einsum("htc,hcd->htd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return sums.astype(value.dtype)


def feed_forward(
    params: Params, x: Float[Array, "T D"], config: StackConfig, dtype: Any, rate: float, key: Array | None
) -> Float[Array, "T D"]:
    """down(activation(gate(x)) up(x))."""
    gate, up = (dense(params[name], x, dtype, ("width", "inner")) for name in ("gate_proj", "up_proj"))
    inner = activation(gate, config.hidden_activation) * up
    return dense(params["down_proj"], dropped(inner, rate, key, 0), dtype, ("inner", "width"))


class Layer(NamedTuple):
    """One layer of `stack`, the encoder's or the decoder's, and what its sublayers share.

    key: for dropout; None switches it off.
    """

    params: Params
    config: T5GemmaConfig
    stack: StackConfig
    sliding: Flag
    dtype: Any
    attend: Attend
    key: Array | None

    @property
    def limits(self) -> dict[str, Any]:
        """Scale and cap of scores. transformers leaves the cap of a T5Gemma 2 unused."""
        cap = None if self.config.merged else self.stack.attn_logit_softcapping
        return {"scale": self.stack.query_pre_attn_scalar**-0.5, "cap": cap}

    def angles(self, positions: Int[Array, " T"]) -> Angles:
        """Cosines and sines at `positions`. Sliding layers of a T5Gemma 2 have a base of their own."""
        stack = self.stack
        full = frequencies(stack, stack.rope_theta, stack.rope_factor)
        local = frequencies(stack, stack.rope_local_base_freq, stack.rope_local_factor)
        turned = positions.astype(jnp.float32)[:, None] * jnp.where(self.sliding & self.config.merged, local, full)
        return jnp.cos(turned), jnp.sin(turned)

    def attended(
        self,
        query: Float[Array, "G R_T Dh"],
        key: Float[Array, "G C Dh"],
        value: Float[Array, "G C Dh"],
        mask: Bool[Array, "#T C"],
        place: int = 0,
        within_chunk: bool = False,
    ) -> Float[Array, "G R_T Dh"]:
        """softmax(q k^T) v; with dropout of the weights by a slower way, which keeps all of them."""
        scale, cap = self.limits["scale"], self.limits["cap"]
        if self.key is not None and self.config.attention_dropout:
            weights = attend_with_weights(query, key, value, in_rows(mask, self.stack), scale=scale, cap=cap)[1]
            return self.weighted(weights, value, place)
        if cap is None and self.attend is not attention:
            rescaled = query * (scale * query.shape[-1] ** 0.5)  # it divides by the root of the width
            return self.attend(rescaled, key, value, in_rows(mask, self.stack), within_chunk)
        # It repeats the mask within, and has a cap.
        return attention(query, key, value, mask, within_chunk, None, scale, cap)

    def weighted(
        self, weights: Float[Array, "G R_T C"], value: Float[Array, "G C Dh"], place: int = 0
    ) -> Float[Array, "G R_T Dh"]:
        """The values by these weights, some of which dropout takes; its key is that of `place` in the layer."""
        key = None if self.key is None else jax.random.fold_in(self.key, ATTENTION_PLACES + place)
        return weighted(dropped(weights, self.config.attention_dropout, key, 0), value)

    def sublayers(
        self, x: Float[Array, "T D"], attentions: Mapping[str, Callable[[Array], Array]]
    ) -> Float[Array, "T D"]:
        """x + dropout(post norm(f(pre norm(x)))) for each attention, by the name of its norms, then for feed-forward.

        A backward pass may save what the second norm takes in: the rest follows from it element by element.
        """
        rate = self.config.dropout_rate
        inner_key = None if self.key is None else jax.random.fold_in(self.key, 0)
        mlp = lambda y: feed_forward(self.params["mlp"], y, self.stack, self.dtype, rate, inner_key)
        for place, (name, function) in enumerate({**attentions, "feedforward": mlp}.items(), start=1):
            before, after = (self.params[f"{when}_{name}_layernorm"] for when in ("pre", "post"))
            inner = checkpoint_name(function(rms_norm(before, x, self.stack, self.dtype)), SUM)
            x = x + dropped(rms_norm(after, inner, self.stack, self.dtype), rate, self.key, place)
        return x


def embed(
    table: Params, config: T5GemmaConfig, ids: Int[Array, " T"], added: Float[Array, " D"] | None = None
) -> Float[Array, "T D"]:
    """The embeddings times sqrt(D), in float32; that of the end of an image is a row of its own."""
    x = table["embedding"][ids] * table["embedding"].shape[1] ** 0.5
    # PAD's embedding learns from the output head only, as PyTorch's `padding_idx` has it.
    x = jnp.where((ids == config.pad_token_id)[:, None], lax.stop_gradient(x), x)
    if "eoi_embedding" in table:
        x = jnp.where((ids == config.eoi_token_index)[:, None], table["eoi_embedding"], x)
    return x if added is None else x + added


# Fresh parameters


def init_attention(key: Array, config: StackConfig, states: int, norms: bool) -> Params:
    """Projections of one attention; `states` is the width of what it attends to."""
    sizes = {
        "q_proj": (config.hidden_size, config.queries),
        "k_proj": (states, config.keys),
        "v_proj": (states, config.keys),
        "o_proj": (config.queries, config.hidden_size),
    }
    params = init_denses(key, sizes, config.initializer_range)
    if config.attention_bias:
        params = {name: {**params[name], "bias": jnp.zeros(size[1])} for name, size in sizes.items()}
    if norms:
        params |= {name: {"scale": jnp.zeros(config.head_dim)} for name in ("q_norm", "k_norm")}
    return params


def init_denses(key: Array, sizes: dict[str, tuple[int, int]], std: float) -> Params:
    """Kernels of normal numbers."""
    keys = jax.random.split(key, len(sizes))
    draw = lambda key, size: {"kernel": std * jax.random.normal(key, size)}
    return {name: draw(key, size) for key, (name, size) in zip(keys, sizes.items(), strict=True)}


def init_layer(key: Array, config: StackConfig, cross: int | None, norms: bool) -> Params:
    """One layer; `cross` is the width of the states of its cross-attention, None without one."""
    self_key, cross_key, inner_key = jax.random.split(key, 3)
    names = ["self_attn", "feedforward"] if cross is None else ["self_attn", "cross_attn", "feedforward"]
    wide = (config.hidden_size, config.intermediate_size)
    sizes = {"gate_proj": wide, "up_proj": wide, "down_proj": wide[::-1]}
    params = {
        f"{when}_{name}_layernorm": {"scale": jnp.zeros(config.hidden_size)}
        for name in names
        for when in ("pre", "post")
    }
    params["self_attn"] = init_attention(self_key, config, config.hidden_size, norms)
    params["mlp"] = init_denses(inner_key, sizes, config.initializer_range)
    if cross is not None:
        params["cross_attn"] = init_attention(cross_key, config, cross, norms)
    return params


def init_stack(key: Array, config: StackConfig, cross: int | None, norms: bool) -> Params:
    """The layers and the closing norm of an encoder or decoder."""
    one = partial(init_layer, config=config, cross=cross, norms=norms)
    keys = jax.random.split(key, config.num_hidden_layers)
    layers = {str(i): one(key) for i, key in enumerate(keys)}
    return {"layers": layers, "norm": {"scale": jnp.zeros(config.hidden_size)}}


def init_table(key: Array, config: T5GemmaConfig, rows: int, width: int, std: float) -> Params:
    """A table of embeddings, in which PAD starts at zero."""
    table = {"embedding": (std * jax.random.normal(key, (rows, width))).at[config.pad_token_id].set(0.0)}
    return table | ({"eoi_embedding": jnp.zeros(width)} if config.merged else {})
