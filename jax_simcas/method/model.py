"""One document through SimCAS: encode with alignment, select, decode. `vmap` makes batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_simcas.backbones.ops.memory import row_major
from jax_simcas.backbones.ops.stacks import checkpointed, each_chunk, scan_layers
from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common.sharding import ShardingRule, check_chunks, constrain
from jax_simcas.common.trees import Params
from jax_simcas.method import select as select_lib
from jax_simcas.method.align import Alignment, align, chunk_mean
from jax_simcas.method.chunk_position import ChunkPosition
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.reward import CROSS_ATTENTION, LIKELIHOOD, Credit, Encoded, Forward, Reward
from jax_simcas.method.select import ALL, GREEDY, POLICIES, SAMPLE, Compacted, Policy

CHUNK_AXIS = "chunk"
SHARDING_RULES: tuple[ShardingRule, ...] = ((r"chunk_positions/embedding", (None, "width")), *select_lib.SHARDING_RULES)


@dataclass(frozen=True)
class SimCAS:
    """A backbone and every choice of the method as a value: all that is static. Hashable, for `jit`.

    align: what boundary states exchange between layers; None: nothing.
    policy: at inference. train_policy: while the transformer trains.
    reward, credit: the reward of a document, and of each of its candidates.
    chunk_position: what is added to the tokens of chunk k before layer 0; None: nothing.
    mask_padding: PAD is neither attended to nor selectable; False: it is both, as in the released code.
    capacity: C, rows that the decoder may attend to, the document state included; None: all that are selected.
    budget: candidates per document, for policies that spend one.
    threshold: keep-probability above which the policy `threshold` keeps.
    fill_empty: a chunk of which nothing was kept keeps everything.
    dtype: compute type of products and states; parameters, softmax, norms and losses stay float32.
    remat: what the backward pass saves, from most memory to least: "none" (everything), "dots", "sums", "layer".
    unroll: the layers of the encoder stand one after the other in the program, in place of a loop.
    """

    backbone: Backbone
    align: Alignment | None = chunk_mean
    policy: Policy = GREEDY
    train_policy: Policy = SAMPLE
    reward: Reward = LIKELIHOOD
    credit: Credit = CROSS_ATTENTION
    chunk_position: ChunkPosition | None = None
    mask_padding: bool = True
    capacity: int | None = None
    budget: int | None = None
    threshold: float = 0.5
    fill_empty: bool = True
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False

    @property
    def sharding_rules(self) -> tuple[ShardingRule, ...]:
        """A rule for every parameter of backbone and selector."""
        return (*self.backbone.sharding_rules, *SHARDING_RULES)

    def replace(self, **changes: Any) -> SimCAS:
        return dataclasses.replace(self, **changes)

    def without_selector(self) -> SimCAS:
        """The model whose transformer trains on every state or, beyond `capacity`, on evenly spread ones.

        With `train_policy=ALL` an actor that may be untrained would decide which states fit the capacity.
        """
        if self.capacity is None:
            return self.replace(train_policy=ALL)
        return self.replace(train_policy=POLICIES["spaced"], budget=self.capacity - 1)


def init_params(key: Array, model: SimCAS) -> Params:
    """Fresh parameters of backbone and selector (float32): the tree of the backbone, and `selector`."""
    _, _, _, selector_key, position_key = jax.random.split(key, 5)  # the backbone draws from the first three
    params = model.backbone.init(key)
    if model.chunk_position is not None:
        encoder = encoder_of(params, model.backbone)
        encoder.update(model.chunk_position.init(position_key, model.backbone))
    return {**params, "selector": select_lib.init_selector(selector_key, model.backbone.width)}


def encoder_of(params: Params, backbone: Backbone) -> Params:
    """The encoder's dict within the tree."""
    for name in backbone.encoder_path:
        params = params[name]
    return params


def encode_chunks(
    params: Params,
    backbone: Backbone,
    input_ids: Int[Array, "K S"],
    visible: Bool[Array, "K S"],
    between: Callable[[Array, Array], Array],
    *,
    added: Float[Array, "K D"] | None = None,
    key: Array | None = None,
    dtype: Any = jnp.float32,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[Float[Array, "K S D"], Float[Array, "L K S D"]]:
    """Runs the encoder over chunks side by side, each at positions 0..S-1.

    Args:
      visible: what may be attended to.
      between: (states [K, S, D], is_inner) -> states, applied after every layer; is_inner is False after the last.
      added: one vector per chunk, added to all its embedded tokens before layer 0 (the position of the chunk).
      key: for dropout, folded with the number of the chunk; None switches dropout off.
      remat, unroll: as of SimCAS.

    Returns:
      the last layer's states, and the input of every layer (for parity tests; XLA removes it when unused).
    """
    depth = backbone.encoder_depth
    layer_keys = start_keys = None
    if key is not None:
        keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(input_ids.shape[0]))
        split = jax.vmap(lambda key: jax.random.split(key, depth + 1), out_axes=1)(keys)
        layer_keys, start_keys = split[:-1], split[-1]

    def start(ids: Array, added: Array | None, key: Array | None) -> Array:
        return backbone.embed(params, ids, added, dtype, key)

    def one_chunk(layer: Params, x: Array, mask: Array, key: Array | None) -> Array:
        return backbone.encoder_layer(layer, x, mask, dtype, key)

    def every_chunk(layer: Params, x: Array, key: Array | None) -> Array:
        run = checkpointed(partial(one_chunk, layer), remat)  # chunks that take turns are recomputed in turn
        return each_chunk(run, x, visible, key)

    def step(x: Array, inputs: tuple) -> tuple[Array, Array]:
        layer, index, key = inputs
        # Once more, around the branches of `each_chunk`: `scan` would stack their residuals, the layer's weights too.
        x_next = constrain(checkpointed(every_chunk, remat)(layer, x, key), "chunks", None, None)
        return row_major(between(row_major(x_next), index < depth - 1)), x

    x = constrain(jax.vmap(start)(input_ids, added, start_keys), "chunks", None, None)
    inputs = (backbone.encoder_layers(params), jnp.arange(depth), layer_keys)
    x, layer_inputs = scan_layers(step, x, inputs, unroll)
    return constrain(backbone.encoder_end(params, x, dtype), "chunks", None, None), layer_inputs


@jax.named_scope("encode")
def encode(
    params: Params, model: SimCAS, document: Document, key: Array | None = None
) -> tuple[Float[Array, "K S D"], Float[Array, "L K S D"]]:
    """Encodes the chunks side by side; boundary states are exchanged between layers, over the axis "chunk".

    Source: docs/method.md, "Encode and align".

    Args:
      key: for dropout; None switches it off.

    Returns:
      the last layer's states, and the inputs of all layers (XLA removes them when unused).

    Raises:
      ValueError: chunks that the mesh axis "chunk" does not divide.
    """
    input_ids, _, chunk_mask = document
    check_chunks(input_ids.shape[0])
    visible = visible_tokens(model, document)
    added = None
    if model.chunk_position is not None:
        added = model.chunk_position(encoder_of(params, model.backbone), model.backbone, input_ids.shape[0])

    def between(hidden: Array, inner: Array) -> Array:
        wide = hidden.dtype != jnp.dtype(model.dtype)
        one_chunk = lambda x, real: align(x, real, model.align, CHUNK_AXIS, enabled=inner, wide=wide)
        return jax.vmap(one_chunk, axis_name=CHUNK_AXIS)(hidden, chunk_mask)

    return encode_chunks(
        params,
        model.backbone,
        input_ids,
        visible,
        between,
        added=added,
        key=key,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        unroll=model.unroll,
    )


def visible_tokens(model: SimCAS, document: Document) -> Bool[Array, "K S"]:
    """What may be attended to: real tokens or, with `mask_padding=False` as in the released code, PAD as well.

    That code does not pad a document of one chunk, so that PAD is masked there in either case.
    """
    if model.mask_padding:
        return document.token_mask
    padded = document.chunk_mask[:, None] & (document.chunk_mask.sum() > 1)
    return document.token_mask | padded


def candidates(model: SimCAS, document: Document) -> Bool[Array, "K N"]:
    """Which of positions 1..S-1 may be selected: those that may be attended to."""
    return visible_tokens(model, document)[:, 1:]


def select_document(
    selector: Params,
    model: SimCAS,
    hidden: Float[Array, "K S D"],
    document: Document,
    *,
    policy: Policy | None = None,
    key: Array | None = None,
    budget: Int[Array, ""] | int | None = None,
    action: Bool[Array, "K N"] | None = None,
) -> select_lib.Selection:
    """`method.select.select` with the choices of `model`; `policy` and `budget` in place of its own."""
    return select_lib.select(
        selector,
        hidden,
        candidates(model, document),
        document.chunk_mask,
        policy=policy or model.policy,
        key=key,
        budget=model.budget if budget is None else budget,
        threshold=model.threshold,
        fill_empty=model.fill_empty,
        tokens=document.input_ids,
        action=action,
    )


def encode_and_select(
    params: Params,
    model: SimCAS,
    document: Document,
    *,
    policy: Policy | None = None,
    select_key: Array | None = None,
    dropout_key: Array | None = None,
    budget: Int[Array, ""] | int | None = None,
    action: Bool[Array, "K N"] | None = None,
) -> Encoded:
    """encode, select, compact. No gradient flows to the selector.

    Args:
      policy, budget: in place of the model's.
      action: given actions, before the keep-everything rule.
    """
    hidden, _ = encode(params, model, document, dropout_key)
    selection = select_document(
        lax.stop_gradient(params["selector"]),
        model,
        lax.stop_gradient(hidden),
        document,
        policy=policy,
        key=select_key,
        budget=budget,
        action=action,
    )
    return Encoded(hidden, selection, select_lib.compact(hidden, document.chunk_mask, selection, model.capacity))


@jax.named_scope("decode")
def decode_selected(
    params: Params,
    model: SimCAS,
    compacted: Compacted,
    target: Target,
    dropout_key: Array | None = None,
    with_weights: bool = True,
) -> tuple[Float[Array, "T V"], Float[Array, " C"] | None]:
    """Teacher-forced logits, and (`with_weights`) the mean cross-attention weight of every selected state."""
    return model.backbone.decode(
        params,
        compacted.states,
        compacted.mask,
        target.ids,
        target.mask,
        key=dropout_key,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        with_weights=with_weights,
    )


def forward(
    params: Params,
    model: SimCAS,
    example: Example,
    *,
    policy: Policy | None = None,
    select_key: Array | None = None,
    dropout_key: Array | None = None,
    action: Bool[Array, "K N"] | None = None,
    with_weights: bool = True,
) -> Forward:
    """Encodes, selects and decodes ONE document with teacher forcing."""
    encoder_key, decoder_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    encoded = encode_and_select(
        params,
        model,
        example.document,
        policy=policy,
        select_key=select_key,
        dropout_key=encoder_key,
        action=action,
    )
    logits, attention = decode_selected(
        params, model, encoded.compacted, example.target, decoder_key, with_weights=with_weights
    )
    return Forward(encoded, logits, attention)
