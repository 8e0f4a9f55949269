"""The stages timed on our side: each one on one random document, as a function to compile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas.backbones import families
from jax_simcas.backbones.bart.config import BART_BASE, BART_LARGE
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints import hub
from jax_simcas.compile_check import flops
from jax_simcas.compile_check.published import FLAN_T5_BASE, PUBLISHED
from jax_simcas.evaluation.predict import compact_batch, generate_batch
from jax_simcas.method.beam_search import generate
from jax_simcas.method.chunk import chunk_tokens
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, decode_selected, encode, encode_and_select, init_params
from jax_simcas.method.ppo import PPOConfig, Rollout, draw_orders, ppo_update
from jax_simcas.method.reward import Encoded, Forward
from jax_simcas.method.select import GREEDY, POLICIES, Compacted, Selection, select
from jax_simcas.method.steps import Metrics, TrainState, init_state, selector_step, transformer_step
from jax_simcas.run.method_config import ATTENTIONS, UpdateConfig

# By what --model names them: BART by its sizes, tiny models for a try, and the published ones without their owners.
MODELS: dict[str, BackboneConfig] = {
    "base": BART_BASE,
    "large": BART_LARGE,
    "tiny": replace(BART_BASE, d_model=128, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=512,
                    decoder_ffn_dim=512, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=8_192),
    "tiny-t5": replace(FLAN_T5_BASE, d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, num_decoder_layers=2,
                       vocab_size=8_192),
    **{name.partition("/")[2]: shape for name, shape in PUBLISHED.items()},
}  # fmt: skip


REMAT = "layer"  # in training steps: half the memory of "dots", for a tenth more time on a CPU
TRAINING_STAGES = ("transformer", "selector")  # (state, ...) -> (next state, metrics)
TRANSFORMER = UpdateConfig(accumulate_step=1).transformer(steps=1)
SELECTOR = UpdateConfig().selector()
DEVICES = ("cpu", "gpu")
RELEASED = "bart"  # the `model_type` of the authors' code


@dataclass(frozen=True)
class Task:
    """One measurement: `stage` of a model on a document of `length` tokens, specials included.

    size: which model, one of MODELS or a folder with a config.json; its weights are random.
    side: "jax" is our own code, "released" the authors' code, the others are the PyTorch peer: see PEERS. bfloat16 is
    autocast's in the released code, and in the peer unless its weights are.
    remat: what our own training steps recompute. attention: of our own side, a name of method_config.ATTENTIONS.
    device: "cpu" or "gpu".
    """

    stage: str
    side: str = "jax"
    size: str = "base"
    length: int = 16_384
    dtype: str = "float32"
    chunk_length: int = 512
    target: int = 256  # tokens of the summary
    selected: int = 2_048  # states that generation and decoding read
    remat: str = REMAT
    attention: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"side={self.side!r}: expected one of {', '.join(SIDES)}")
        if self.stage not in SIDES[self.side]:
            raise ValueError(f"stage={self.stage!r}: side {self.side} has {', '.join(SIDES[self.side])}")
        if self.side == "released" and self.shape.family != RELEASED:
            raise ValueError(f"size={self.size!r}: side released is {RELEASED}, and this is {self.shape.family}")
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device!r}: expected one of {', '.join(DEVICES)}")
        if self.length < self.chunk_length:
            raise ValueError(f"length={self.length}: expected at least one chunk of {self.chunk_length} tokens")

    @property
    def shape(self) -> BackboneConfig:
        return shape_of(self.size)

    @property
    def model(self) -> SimCAS:
        backbone = families.backbone_for(self.shape, ATTENTIONS[self.attention])
        return SimCAS(backbone, dtype=self.dtype, remat=self.remat)


@cache
def shape_of(name: str) -> BackboneConfig:
    """The model of that name, or in that folder, without dropout.

    Raises:
      UserError: no config.json in the folder, or one of a model that is not supported.
    """
    shape = MODELS[name] if name in MODELS else hub.read_config(Path(name))
    return families.replaced(shape, **dict.fromkeys(shape.rates, 0.0))


def example(task: Task) -> Example:
    """A batch of one random document of whole chunks, with a target."""
    rng, tokens = np.random.default_rng(0), task.shape.tokens
    special = {"bos": tokens.bos, "eos": tokens.eos, "pad": tokens.pad}
    words = task.length // task.chunk_length * (task.chunk_length - 2)
    chunks = chunk_tokens(rng.integers(4, task.shape.vocab_size, words), task.chunk_length, **special)
    target = rng.integers(4, task.model.backbone.vocab_size, task.target)
    row = lambda x: jnp.asarray(x)[None]
    document = Document(*map(row, (chunks.input_ids, chunks.token_mask, chunks.token_mask.any(axis=-1))))
    return Example(document, Target(row(target.astype(np.int32)), row(np.ones(task.target, bool))))


def alone(batch: Example) -> Example:
    """The one document of a batch."""
    return jax.tree.map(lambda x: x[0], batch)


def _encode(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    return lambda params, document: encode(params, task.model, document)[0], (params, alone(batch).document)


def _states(task: Task, batch: Example) -> jax.Array:
    shape = (*batch.document.input_ids.shape[1:], task.shape.width)
    return jax.random.normal(jax.random.key(1), shape, jnp.dtype(task.dtype))


def _select(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    def run(selector: Any, hidden: jax.Array, document: Document) -> Selection:
        return select(selector, hidden, document.token_mask[:, 1:], document.chunk_mask, policy=GREEDY)

    return run, (params["selector"], _states(task, batch), alone(batch).document)


def _decode(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    states = jax.random.normal(jax.random.key(1), (task.selected, task.shape.width), jnp.dtype(task.dtype))

    def run(params: Any, states: jax.Array, target: Target) -> Any:
        index = jnp.arange(len(states) - 1)
        compacted = Compacted(states, jnp.ones(len(states), bool), index, jnp.zeros((), jnp.int32))
        return decode_selected(params, task.model, compacted, target)

    return run, (params, states, alone(batch).target)


def _reward(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    logits = jax.random.normal(jax.random.key(1), (task.target, task.model.backbone.vocab_size))
    action = jnp.asarray(half_selected(task, batch)[0])
    index = jnp.flatnonzero(action)
    attention = jnp.full(len(index) + 1, 1.0 / (len(index) + 1))
    model = task.model

    def run(example: Example, logits: jax.Array, attention: jax.Array, index: jax.Array, action: jax.Array) -> Any:
        zeros, mask = jnp.zeros(action.shape), example.document.token_mask[:, 1:]
        selection = Selection(action, zeros, zeros, jnp.zeros((action.shape[0], 1)), mask)
        compacted = Compacted(jnp.zeros((len(attention), 1)), jnp.ones(len(attention), bool), index, jnp.array(0))
        encoded = Encoded(jnp.zeros((*example.document.input_ids.shape, 1)), selection, compacted)
        forward = Forward(encoded, logits, attention)
        return model.credit(model.reward(None, model, example, forward), forward)

    return run, (alone(batch), logits, attention, index, action)


def _generate(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    config = GenerateConfig(num_beams=4, max_length=task.target, min_length=task.target)
    hidden, mask = _states(task, batch), batch.document.token_mask[0, :, 1:]
    kept = jnp.arange(mask.size).reshape(mask.shape) < task.selected - 1
    zeros = jnp.zeros(mask.shape)
    state = jnp.zeros((mask.shape[0], task.shape.width))
    selection = jax.tree.map(lambda x: x[None], Selection(kept & mask, zeros, zeros, state, mask))

    def run(params: Any, hidden: jax.Array, chunk_mask: jax.Array, selection: Selection) -> jax.Array:
        compacted = compact_batch(hidden, chunk_mask, selection, capacity=task.selected)
        return generate_batch(params, compacted, model=task.model, config=config).sequence

    return run, (params, hidden[None], batch.document.chunk_mask, selection)


def _summarize(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    model = task.model.replace(policy=POLICIES["topk"], budget=task.selected - 1, capacity=task.selected)
    config = GenerateConfig(num_beams=4, max_length=task.target, min_length=task.target)

    def run(params: Any, document: Document) -> jax.Array:
        return generate(params, model, config, encode_and_select(params, model, document).compacted).sequence

    return run, (params, alone(batch).document)


def half_selected(task: Task, batch: Example) -> np.ndarray:
    """An action [1, K, N] that keeps a random half of the candidates, the same on both sides."""
    candidates = np.asarray(batch.document.token_mask)[:, :, 1:]
    rank = np.random.default_rng(2).permutation(candidates.size).reshape(candidates.shape)
    return candidates & (rank < candidates.size // 2)


def _state(task: Task, params: Any) -> TrainState:
    return init_state(task.model.backbone.stack(params), TRANSFORMER, SELECTOR, jax.random.key(0))


def _transformer(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    action = half_selected(task, batch)
    model = task.model.replace(capacity=int(action.sum()) + 1)

    def run(state: TrainState, batch: Example, action: jax.Array) -> tuple[TrainState, Metrics]:
        return transformer_step(state, batch, model=model, optimizer=TRANSFORMER, action=action)

    return run, (_state(task, params), batch, jnp.asarray(action))


def _selector(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    def run(state: TrainState, batch: Example) -> tuple[TrainState, Metrics]:
        return selector_step(state, batch, model=task.model, optimizer=SELECTOR, ppo=PPOConfig())

    return run, (_state(task, params), batch)


def _ppo(task: Task, params: Any, batch: Example) -> tuple[Callable, tuple]:
    """What `selector_step` does once it has drawn actions and rewarded them, on random ones."""
    selector, mask = params["selector"], batch.document.token_mask[:, :, 1:]
    numbers = lambda seed: jax.random.normal(jax.random.key(seed), mask.shape)
    states = _states(task, batch)[None]
    probability = jnp.full(mask.shape, jnp.log(0.5))
    action = jnp.asarray(half_selected(task, batch))
    random = Rollout(states, states[:, :, 0], action, probability, numbers(2), numbers(3), numbers(4), mask)

    def run(selector: Any, optimizer_state: Any, rollout: Rollout) -> Any:
        orders = draw_orders(jax.random.key(0), rollout.mask, PPOConfig())
        return ppo_update(selector, SELECTOR, optimizer_state, rollout, orders, PPOConfig())

    return run, (selector, SELECTOR.init(selector), random)


STAGES: dict[str, Callable[[Task, Any, Example], tuple[Callable, tuple]]] = {
    "encode": _encode,
    "select": _select,
    "decode": _decode,
    "reward": _reward,
    "transformer": _transformer,
    "selector": _selector,
    "ppo": _ppo,  # the part of `selector` that learns
    "generate": _generate,
    "summarize": _summarize,  # encode, select and generate in one program
}


class PeerChoices(NamedTuple):
    """How the PyTorch peer runs."""

    compiled: bool = False  # layers through torch.compile, generation with a static cache
    bfloat16_weights: bool = False  # in place of autocast: half the memory, and updates rounded to 8 bits


PEERS = {
    "torch": PeerChoices(),
    "torch-compile": PeerChoices(compiled=True),
    "torch-bf16": PeerChoices(bfloat16_weights=True),
    "torch-bf16-compile": PeerChoices(compiled=True, bfloat16_weights=True),
}
SIDES = {  # and the stages that can be timed apart on each
    "jax": tuple(STAGES),
    **dict.fromkeys(PEERS, ("encode", "select", "decode", "reward", "transformer", "selector", "generate")),
    "released": ("encode", "transformer", "generate"),
}


def flops_of(task: Task) -> int | None:
    """Model FLOPs of one run, as compile_check.flops counts them; None for a stage that is no matter of products."""
    shape, chunks = task.shape, task.length // task.chunk_length
    half = chunks * (task.chunk_length - 1) // 2 + 1
    read = flops.DocumentShape(chunks, task.chunk_length, task.selected, task.target)
    trained = flops.DocumentShape(chunks, task.chunk_length, half, task.target)
    summary = flops.generation(shape, read, beams=4)
    counts = {
        "encode": flops.encoder(shape, read),
        "select": flops.actor(shape, read),
        "decode": flops.decoder(shape, read),
        "transformer": flops.transformer_update(shape, trained),
        "selector": flops.selector_update(shape, trained, PPOConfig().epochs),
        "ppo": flops.ppo(shape, trained, PPOConfig().epochs),
        "generate": summary - flops.encoder(shape, read) - flops.actor(shape, read),
        "summarize": summary,
    }
    return counts.get(task.stage)


def fresh_params(task: Task) -> Any:
    """Random parameters: the same for both sides."""
    return jax.jit(init_params, static_argnums=1)(jax.random.key(0), task.model)


def prepare_task(task: Task) -> tuple[Callable, tuple]:
    """The stage as a function to jit, and its arguments, with fresh parameters."""
    return STAGES[task.stage](task, fresh_params(task), example(task))


def compiled(task: Task) -> tuple[Callable[[], Any], float]:
    """The compiled stage and the seconds of compilation; each call runs it once and waits for the result.

    What a stage on the GPU reads is made on the CPU, so that the peak of the GPU's memory is that of the runs.
    """
    on_gpu = task.device == "gpu"
    with jax.default_device(jax.devices("cpu")[0]) if on_gpu else contextlib.nullcontext():
        run, arguments = prepare_task(task)
        jax.block_until_ready(arguments)
    trains = task.stage in TRAINING_STAGES
    started = time.monotonic()
    shapes = jax.eval_shape(lambda *inputs: inputs, *arguments)
    executable = jax.jit(run, donate_argnums=0 if trains else ()).lower(*shapes).compile()
    seconds = time.monotonic() - started
    if on_gpu:
        arguments = jax.block_until_ready(jax.device_put(arguments, jax.local_devices()[0]))

    def once() -> Any:
        nonlocal arguments
        result = jax.block_until_ready(executable(*arguments))
        if trains:  # the old state is gone, as in training
            arguments = (result[0], *arguments[1:])
        return result

    return once, seconds
