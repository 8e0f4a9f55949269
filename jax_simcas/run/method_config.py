"""The method's sections of a config: names and numbers, and how they become the values that `method` works with."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_simcas.backbones.families import FAMILIES
from jax_simcas.backbones.ops.attention import Attend, attention, fused_attention, has_cudnn
from jax_simcas.backbones.ops.stacks import REMAT
from jax_simcas.backbones.protocol import Backbone, BackboneConfig
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError, kind_and_line
from jax_simcas.common.sharding import mesh_in_use
from jax_simcas.method.align import ALIGNMENTS, Alignment
from jax_simcas.method.chunk_position import ChunkPosition, Learned, Sinusoidal
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.model import SimCAS, forward, init_params
from jax_simcas.method.optimizers import ALGORITHMS, FACTORS, SCHEDULES, accumulated
from jax_simcas.method.ppo import PPOConfig
from jax_simcas.method.reward import HYPER_LENGTH, REWARD_SCALE, CrossAttention, Forward, Likelihood
from jax_simcas.method.select import ALL, POLICIES, SAMPLE, ChunkView, Policy

ATTENTIONS: dict[str, Attend] = {"auto": attention, "xla": attention, "cudnn": fused_attention}
TRAIN_POLICIES = {"sample": SAMPLE, "all": ALL}
REWARDS = {"likelihood": Likelihood}  # name -> (scale) -> Reward
CREDITS = {"cross_attention": CrossAttention}  # name -> (hyper_length) -> Credit
BUDGETED = tuple(name for name, policy in POLICIES.items() if policy.budgeted)
PEAK_LR = 1e-4  # that of the published settings: 1e-2 / sqrt(10,000)
LONGEST_WARMUP = 1_000
SOME_STEPS = 1_000  # of a run whose length is not known yet
# What one's own are called with, and give.
ALIGN = "(boundary [2, D], real, axis_name) -> [2, D]"
CHOOSE = "(view) -> bool [N]"
REWARD = "(params, model, example, forward) -> a number, []"
CREDIT = "(reward, forward) -> a number for each candidate, [K, N]"
ATTEND = "(query [H, T, Dh], key [H, C, Dh], value [H, C, Dh], mask [#T, C], within_chunk) -> [H, T, Dh]"
SCHEDULE = "(max_lr, warmup, steps) -> a function of the step that gives the rate"
TRIED_CHUNKS, TRIED_DOCUMENTS, TRIED_LENGTH = 2, 2, 512
CHUNK_POSITIONS = ("none", "sinusoidal", "learned")
# name -> (config, attention) -> Backbone
BACKBONES = {name: family.backbone for name, family in FAMILIES.items()}


def resolve(name: str, table: Mapping[str, Any], where: str) -> Any:
    """The value of that name in `table` or, written `package.module:name`, the one that can be imported.

    Raises:
      UserError: neither; `where` is the field of the config.
    """
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise UserError(f"{where}={name!r}: expected one of {', '.join(table)}, or package.module:name of your own")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the import of a user's module raises
        raise UserError(f"{where}={name!r}: cannot be imported ({kind_and_line(error)})") from None
    if not callable(value) and not isinstance(value, Policy):
        raise UserError(f"{where}={name!r}: {value!r}; expected a function, or an object that can be called")
    return _hashable(where, name, value)


def _hashable(where: str, name: str, value: Any) -> Any:
    """The value, which is to be a static argument of `jit`."""
    try:
        hash(value)
    except TypeError as error:
        hint = "give a function of a module, or an object of a frozen dataclass"
        raise UserError(f"{where}={name!r}: {error}, which jit needs it to be; {hint}") from None
    return value


def _call(where: str, name: str, function: Callable, *arguments: Any, expected: str = "") -> Any:
    """The result of a function that `where` names; what it raises becomes one line, with the signature `expected`."""
    try:
        return function(*arguments)
    except Exception as error:
        hint = f"; expected {expected}" if expected else ""
        raise UserError(f"{where}={name!r}: raised {kind_and_line(error)}{hint}") from None


def _try(
    where: str, name: str, function: Callable, arguments: tuple, shape: tuple[int, ...], dtype: Any, signature: str
) -> None:
    """Traces a function of the user's own once, so that one of another signature is known before anything is written.

    Args:
      arguments: of the function: arrays, or their shapes.
      dtype: what it is to return, or a kind of numbers such as `jnp.number`.

    Raises:
      UserError: it raises, or gives something else than an array of this shape and dtype.
    """
    out = _call(where, name, lambda: jax.eval_shape(function, *arguments), expected=signature)
    if getattr(out, "shape", None) != shape or not jnp.issubdtype(out.dtype, dtype):
        shown = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else repr(out)
        kind = {jnp.number: "numbers", jnp.floating: "floats"}.get(dtype) or jnp.dtype(dtype)
        raise UserError(f"{where}={name!r}: returned {shown}, expected {kind}{list(shape)} of {signature}")


def alignment_of(name: str) -> Alignment | None:
    """An alignment by name, tried on two chunks where it is not one of ours.

    Raises:
      UserError: no such alignment, or one of another signature.
    """
    where = "config.simcas.align"
    exchange = resolve(name, ALIGNMENTS, where)
    if name not in ALIGNMENTS:
        boundary, real = jnp.zeros((2, 2, 4)), jnp.ones(2, bool)
        both = jax.vmap(lambda boundary, real: exchange(boundary, real, "chunk"), axis_name="chunk")
        _try(where, name, both, (boundary, real), boundary.shape, jnp.float32, ALIGN)
    return exchange


@dataclass(frozen=True)
class SimcasConfig:
    """Every choice that docs/method.md leaves open.

    Functions (align, policy, reward, credit, attention) are named: one of ours, or `package.module:name` of your own,
    see docs/extending.md.
    """

    chunk_length: int = 512  # tokens, both special ones included
    # the token that begins, and the one that ends, each of several chunks, by text or id; both are without content, as
    # alignment exchanges their states; None: what the tokenizer puts around a text, else BOS, else EOS
    chunk_start: int | str | None = None
    chunk_end: int | str | None = None  # the same at the end of each
    chunking: str = "fixed"  # "fixed", or "sentences": no chunk ends within a sentence
    max_input_len: int = 16_384  # tokens of a document that are read
    max_target_len: int = 1_024  # tokens
    mask_padding: bool = True  # False: PAD is attended to and selectable, as in the released code
    align: str = "mean"  # "mean", "shift" (released code), "none", or an alignment of your own
    chunk_position: str = "none"  # "none", "sinusoidal" or "learned"
    max_chunks: int = 1_024  # rows of the learned chunk positions
    policy: str = "greedy"  # at inference, by name (docs/selection.md) or your own
    train_policy: str = "sample"  # in the transformer's training: "sample" draws, "all" does without the selector
    threshold: float = 0.5  # keep-probability above which the policy "threshold" keeps
    budget: int | None = None  # candidates per document that the policies topk, random, first and spaced keep
    capacity: int | None = None  # rows that the decoder may attend to, the document state included; None: all selected
    empty_chunk: str = "all"  # a chunk of which nothing was kept keeps "all" (released code) or "none"
    reward: str = "likelihood"  # of a document: "likelihood", or your own
    reward_scale: float = REWARD_SCALE  # xi: the reward of a certain target
    credit: str = "cross_attention"  # what each candidate gets of the reward: by cross-attention weight, or your own
    hyper_length: int = HYPER_LENGTH  # L_hyper: the divisor of the reward for skipped candidates
    attention: str = "auto"  # "auto" (today "xla"), "xla", "cudnn" (NVIDIA GPUs, bfloat16), or your own
    dtype: str = "float32"  # compute type: "float32" or "bfloat16"; parameters, norms and losses stay float32
    remat: str = "none"  # what the backward pass saves, from most memory to least: "none", "dots", "sums", "layer"
    unroll: bool = False  # the encoder's layers without a loop: on TPUs less time with remat="none", long compilation

    def __post_init__(self) -> None:
        allowed = {
            "chunking": ("fixed", "sentences"),
            "chunk_position": CHUNK_POSITIONS,
            "train_policy": tuple(TRAIN_POLICIES),
            "empty_chunk": ("all", "none"),
            "dtype": ("float32", "bfloat16"),
            "remat": tuple(REMAT),
        }
        for name, values in allowed.items():
            checks.one_of(self, name, values)
        named: dict[str, Mapping[str, Any]] = {
            "align": ALIGNMENTS,
            "policy": POLICIES,
            "reward": REWARDS,
            "credit": CREDITS,
            "attention": ATTENTIONS,
        }
        for name, table in named.items():
            given = getattr(self, name)
            if given not in table and ":" not in str(given):
                raise ValueError(f"{name}={given!r}: expected one of {', '.join(table)}, or package.module:name")
        checks.at_least(self, 3, "chunk_length", "max_input_len", "max_target_len")
        checks.at_least(self, 2, "capacity")
        checks.at_least(self, 1, "budget", "max_chunks", "hyper_length")
        checks.at_least(self, 0, "threshold", most=1)
        checks.above(self, 0, "reward_scale")
        for name in ("chunk_start", "chunk_end"):
            token = getattr(self, name)
            if token == "" or (isinstance(token, int) and token < 0):
                raise ValueError(f"{name}={token!r}: expected a token, by its text or its id")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention='cudnn' needs dtype='bfloat16'")
        if self.policy in POLICIES and POLICIES[self.policy].budgeted and self.budget is None:
            raise ValueError(f"policy={self.policy!r} needs a budget: config.simcas.budget=NUMBER of candidates")

    def replace(self, **changes: Any) -> SimcasConfig:
        return dataclasses.replace(self, **changes)

    def model(self, backbone: Backbone) -> SimCAS:
        """The method's choices around a backbone, as values.

        Raises:
          UserError: a name that cannot be resolved.
        """
        model = SimCAS(
            backbone,
            align=alignment_of(self.align),
            policy=policy_of(self.policy, "config.simcas.policy"),
            train_policy=TRAIN_POLICIES[self.train_policy],
            reward=self._of_number("reward", REWARDS, self.reward_scale),
            credit=self._of_number("credit", CREDITS, self.hyper_length),
            chunk_position=self._chunk_position(),
            mask_padding=self.mask_padding,
            capacity=self.capacity,
            budget=self.budget,
            threshold=self.threshold,
            fill_empty=self.empty_chunk == "all",
            dtype=self.dtype,
            remat=self.remat,
            unroll=self.unroll,
        )
        own = self.reward not in REWARDS or self.credit not in CREDITS or type(backbone) not in BACKBONES.values()
        # A run's model is made again within its mesh, which the few documents of a trial need not fit.
        if own and mesh_in_use() is None:
            try_parts(model, self)
        return model

    def _of_number(self, name: str, table: Mapping[str, Any], number: float | int) -> Any:
        """Ours are made of a number of this config; yours are taken as they are."""
        given = getattr(self, name)
        value = resolve(given, table, f"config.simcas.{name}")
        return value(number) if given in table else value

    def _chunk_position(self) -> ChunkPosition | None:
        return {"none": None, "sinusoidal": Sinusoidal(), "learned": Learned(self.max_chunks)}[self.chunk_position]


@lru_cache
def try_parts(model: SimCAS, config: SimcasConfig) -> None:
    """Traces one's own backbone, reward and credit once on a few documents, in the shapes that the config names.

    Raises:
      UserError: one that raises, or that gives something else than it is to give.
    """
    most = model.backbone.positions or config.chunk_length
    length, target = min(config.chunk_length, most), min(config.max_target_len, most)
    ids = jnp.zeros((TRIED_DOCUMENTS, TRIED_CHUNKS, length), jnp.int32)
    document = Document(ids, jnp.ones(ids.shape, bool), jnp.ones(ids.shape[:2], bool))
    goal = Target(jnp.zeros((TRIED_DOCUMENTS, target), jnp.int32), jnp.ones((TRIED_DOCUMENTS, target), bool))
    examples, key = Example(document, goal), jax.random.key(0)

    def run(params: Any, example: Example) -> Forward:
        return forward(params, model, example, policy=SAMPLE, select_key=key)

    trace = partial(_call, "config.backbone", type(model.backbone).__name__, jax.eval_shape)
    params = trace(partial(init_params, model=model), key)
    forwards = trace(jax.vmap(run, (None, 0)), params, examples)
    reward = jax.vmap(lambda params, *of_document: model.reward(params, model, *of_document), (None, 0, 0))
    rewards = jnp.zeros(TRIED_DOCUMENTS)
    given = (params, examples, forwards)
    _try("config.simcas.reward", config.reward, reward, given, rewards.shape, jnp.number, REWARD)
    credit, shape = jax.vmap(model.credit), (TRIED_DOCUMENTS, TRIED_CHUNKS, length - 1)
    _try("config.simcas.credit", config.credit, credit, (rewards, forwards), shape, jnp.number, CREDIT)


def policy_of(name: str, where: str) -> Policy:
    """A policy by name; a function of your own becomes the `choose` of one.

    Raises:
      UserError: no such policy; `where` is the field or flag that names it.
    """
    value = resolve(name, POLICIES, where)
    policy = value if isinstance(value, Policy) else Policy(value)
    if name not in POLICIES:
        numbers, flags = jnp.full(4, 0.5), jnp.ones(4, bool)
        tokens = jnp.zeros(4, jnp.int32) if policy.reads_tokens else None
        view = ChunkView(
            numbers, flags, numbers, flags, jnp.array(1) if policy.budgeted else None, jnp.array(1), 0.5, tokens
        )
        _try(where, name, policy.choose, (view,), (4,), jnp.bool_, CHOOSE)
    return policy


def backbone_of(name: str, config: BackboneConfig, attention_name: str = "auto") -> Backbone:
    """The backbone of that name, of the sizes and tokens in `config`.

    Raises:
      UserError: a name that cannot be resolved; one's own attention or backbone that lacks something.
    """
    attend = resolve(attention_name, ATTENTIONS, "config.simcas.attention")
    if attention_name not in ATTENTIONS:
        (heads, width), length = config.encoder_heads, config.positions or TRIED_LENGTH
        states = jax.ShapeDtypeStruct((TRIED_CHUNKS, heads, length, width), jnp.float32)
        mask = jax.ShapeDtypeStruct((TRIED_CHUNKS, 1, length), jnp.bool_)
        within = jax.vmap(lambda x, mask: attend(x, x, x, mask, True))
        _try("config.simcas.attention", attention_name, within, (states, mask), states.shape, jnp.floating, ATTEND)
    backbone = _call("config.backbone", name, resolve(name, BACKBONES, "config.backbone"), config, attend)
    if not isinstance(backbone, Backbone):
        what = "jax_simcas.backbones.protocol.Backbone, which names what it must have"
        raise UserError(f"config.backbone={name!r}: returned {backbone!r}, expected a {what}")
    return _hashable("config.backbone", name, backbone)


def check_machine(config: SimcasConfig) -> None:
    """Checks that models can run here as the config asks; that they can be compiled for another machine is no matter.

    Raises:
      UserError: an attention that this machine does not have.
    """
    if ATTENTIONS.get(config.attention) is fused_attention and not has_cudnn():
        raise UserError(
            "config.simcas.attention='cudnn' needs an NVIDIA GPU of compute capability 8.0 or higher; "
            "'auto' chooses what the machine has"
        )


def warmup_of(steps: int) -> int:
    """The warmup of a run of so many optimizer steps that asks for none."""
    return max(1, min(steps // 10, LONGEST_WARMUP))


@dataclass(frozen=True)
class UpdateConfig:
    """Both optimizers. Source of the defaults: docs/method.md, "Dual update" and the arXiv row of its settings."""

    # a factor, not the highest rate: "inverse_sqrt" peaks at max_lr / sqrt(warmup); None: `peak_lr` counts
    max_lr: float | None = 1e-2
    peak_lr: float = PEAK_LR  # the highest rate of the run, where `max_lr` is None
    warmup: int | None = 10_000  # optimizer steps; None: a tenth of the run, at most 1,000
    accumulate_step: int = 8  # batches per optimizer step
    label_smoothing: float = 0.1  # spread over all tokens of the vocabulary
    clip_norm: float | None = None  # global norm of the gradient; None: no clipping
    schedule: str = "inverse_sqrt"  # or package.module:name of a (max_lr, warmup, steps) -> optax.Schedule
    algorithm: str = "adam"  # or package.module:name of a (schedule) -> optax.GradientTransformation
    selector_lr: float = 1e-4  # of the selector's Adam, constant
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "warmup", "accumulate_step")
        checks.at_least(self, 0, "max_lr", "peak_lr", "selector_lr")
        if self.max_lr is not None and self.peak_lr != PEAK_LR:
            raise ValueError(
                f"peak_lr={self.peak_lr!r}: counts only with max_lr=None, and max_lr={self.max_lr!r}: set one of them"
            )
        checks.below_one(self, "label_smoothing")
        checks.above(self, 0, "clip_norm")
        named: dict[str, Mapping[str, Any]] = {"schedule": SCHEDULES, "algorithm": ALGORITHMS}
        for name, table in named.items():
            given = getattr(self, name)
            if given not in table and ":" not in given:
                raise ValueError(f"{name}={given!r}: expected one of {', '.join(table)}, or package.module:name")

    def learning_rate(self, steps: int | None) -> optax.Schedule:
        """The transformer's learning rate over a run of so many optimizer steps; None: not known yet.

        Raises:
          UserError: a name that cannot be resolved.
        """
        make = resolve(self.schedule, SCHEDULES, "config.optimizer.schedule")
        where = ("config.optimizer.schedule", self.schedule)
        steps = SOME_STEPS if steps is None else steps
        warmup = warmup_of(steps) if self.warmup is None else self.warmup
        max_lr = self.max_lr
        if max_lr is None:
            factor = FACTORS.get(self.schedule)
            max_lr = factor(self.peak_lr, warmup) if factor else self.peak_lr
        rate = _call(*where, make, max_lr, warmup, steps, expected=SCHEDULE)
        if self.schedule not in SCHEDULES:
            if not callable(rate):
                raise UserError(f"{where[0]}={where[1]!r}: returned {rate!r}, expected {SCHEDULE}")
            _try(*where, rate, (jnp.zeros((), jnp.int32),), (), jnp.number, SCHEDULE)
        return rate

    def transformer(self, steps: int | None) -> optax.GradientTransformation:
        """The transformer's optimizer for a run of so many optimizer steps; None: not known yet.

        Raises:
          UserError: a name that cannot be resolved.
        """
        algorithm = resolve(self.algorithm, ALGORITHMS, "config.optimizer.algorithm")
        base = _call("config.optimizer.algorithm", self.algorithm, algorithm, self.learning_rate(steps))
        if not isinstance(base, optax.GradientTransformation):
            given = f"config.optimizer.algorithm={self.algorithm!r}"
            raise UserError(f"{given}: returned {base!r}, expected an optax.GradientTransformation")
        return accumulated(base, self.accumulate_step, self.clip_norm)

    def selector(self) -> optax.GradientTransformation:
        """The selector's optimizer: Adam at a constant rate."""
        return optax.adam(self.selector_lr)
