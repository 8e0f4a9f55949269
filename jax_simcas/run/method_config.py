"""The method's sections of a config: names and numbers, and how they become the values that `method` works with."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.ops.attention import Attend, attention
from jax_simcas.backbones.ops.stacks import REMAT
from jax_simcas.backbones.protocol import Backbone
from jax_simcas.common import checks
from jax_simcas.common.errors import UserError, kind_and_line
from jax_simcas.method.align import ALIGNMENTS, Alignment
from jax_simcas.method.chunk_position import ChunkPosition, Learned, Sinusoidal
from jax_simcas.method.model import SimCAS
from jax_simcas.method.optimizers import ALGORITHMS, SCHEDULES, accumulated
from jax_simcas.method.ppo import PPOConfig
from jax_simcas.method.reward import HYPER_LENGTH, REWARD_SCALE, CrossAttention, Likelihood
from jax_simcas.method.select import ALL, POLICIES, SAMPLE, ChunkView, Policy

ATTENTIONS: dict[str, Attend] = {"auto": attention}
TRAIN_POLICIES = {"sample": SAMPLE, "all": ALL}
REWARDS = {"likelihood": Likelihood}  # name -> (scale) -> Reward
CREDITS = {"cross_attention": CrossAttention}  # name -> (hyper_length) -> Credit
BUDGETED = tuple(name for name, policy in POLICIES.items() if policy.budgeted)
CHUNK_POSITIONS = ("none", "sinusoidal", "learned")
# name -> (config, attention) -> Backbone
BACKBONES = {"bart": Bart}


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
    return value


def _call(where: str, name: str, function: Callable, *arguments: Any) -> Any:
    """The result of a function that `where` names; what it raises becomes one line."""
    try:
        return function(*arguments)
    except Exception as error:
        raise UserError(f"{where}={name!r}: raised {kind_and_line(error)}") from None


def _try(where: str, name: str, function: Callable, expected: jax.ShapeDtypeStruct) -> None:
    """Traces a function of the user's own once, so that one of another signature is known before anything is written.

    Raises:
      UserError: it raises, or gives something other than `expected`.
    """
    out = _call(where, name, lambda: jax.eval_shape(function))
    if (getattr(out, "shape", None), getattr(out, "dtype", None)) != (expected.shape, expected.dtype):
        shown = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else repr(out)
        raise UserError(f"{where}={name!r}: returned {shown}, expected {expected.dtype}{list(expected.shape)}")


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
        _try(where, name, lambda: both(boundary, real), jax.ShapeDtypeStruct((2, 2, 4), jnp.float32))
    return exchange


@dataclass(frozen=True)
class SimcasConfig:
    """Every choice that docs/method.md leaves open.

    Functions (align, policy, reward, credit, attention) are named: one of ours, or `package.module:name` of your own,
    see docs/extending.md.
    """

    chunk_length: int = 512  # tokens, both special ones included
    chunking: str = "fixed"  # "fixed", or "sentences": no chunk ends within a sentence
    max_input_len: int = 16_384  # tokens of a document that are read
    max_target_len: int = 1_024  # tokens
    mask_padding: bool = True  # False: PAD is attended to and selectable, as in the released code
    align: str = "mean"  # "mean", "shift" (released code), "none", or an alignment of your own
    chunk_position: str = "none"  # "none", "sinusoidal" or "learned"
    max_chunks: int = 1_024  # rows of the learned chunk positions
    policy: str = "greedy"  # at inference, by name (docs/selection.md) or your own
    train_policy: str = "sample"  # in the transformer's training: "sample" draws, "all" does without selection
    threshold: float = 0.5  # keep-probability above which the policy "threshold" keeps
    budget: int | None = None  # candidates per document that the policies topk, random, first and spaced keep
    capacity: int | None = None  # rows that the decoder may attend to, the document state included; None: all selected
    empty_chunk: str = "all"  # a chunk of which nothing was kept keeps "all" (released code) or "none"
    reward: str = "likelihood"  # of a document: "likelihood", or your own
    reward_scale: float = REWARD_SCALE  # xi: the reward of a certain target
    credit: str = "cross_attention"  # what each candidate gets of the reward: by cross-attention weight, or your own
    hyper_length: int = HYPER_LENGTH  # L_hyper: the divisor of the reward for skipped candidates
    attention: str = "auto"  # the implementation: "auto" chooses by platform; or your own
    dtype: str = "float32"  # compute type: "float32" or "bfloat16"; parameters, norms and losses stay float32
    remat: str = "none"  # what the backward pass saves, from most memory to least: "none", "dots", "sums", "layer"

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
        if self.policy in POLICIES and POLICIES[self.policy].budgeted and self.budget is None:
            raise ValueError(f"policy={self.policy!r} needs budget=<number of candidates per document>")

    def replace(self, **changes: Any) -> SimcasConfig:
        return dataclasses.replace(self, **changes)

    def model(self, backbone: Backbone) -> SimCAS:
        """The method's choices around a backbone, as values.

        Raises:
          UserError: a name that cannot be resolved.
        """
        return SimCAS(
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
        )

    def _of_number(self, name: str, table: Mapping[str, Any], number: float | int) -> Any:
        """Ours are made of a number of this config; yours are taken as they are."""
        given = getattr(self, name)
        value = resolve(given, table, f"config.simcas.{name}")
        return value(number) if given in table else value

    def _chunk_position(self) -> ChunkPosition | None:
        return {"none": None, "sinusoidal": Sinusoidal(), "learned": Learned(self.max_chunks)}[self.chunk_position]


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
        _try(where, name, lambda: policy.choose(view), jax.ShapeDtypeStruct((4,), jnp.dtype(bool)))
    return policy


def backbone_of(name: str, config: BartConfig, attention_name: str = "auto") -> Backbone:
    """The backbone of that name, of the sizes and tokens in `config`.

    Raises:
      UserError: a name that cannot be resolved.
    """
    attend = resolve(attention_name, ATTENTIONS, "config.simcas.attention")
    return _call("config.backbone", name, resolve(name, BACKBONES, "config.backbone"), config, attend)


@dataclass(frozen=True)
class UpdateConfig:
    """Both optimizers. Source of the defaults: docs/method.md, "Dual update" and the arXiv row of its settings."""

    max_lr: float = 1e-2  # a factor, not the highest rate: "inverse_sqrt" peaks at max_lr / sqrt(warmup)
    warmup: int = 10_000  # optimizer steps
    accumulate_step: int = 8  # batches per optimizer step
    label_smoothing: float = 0.1  # spread over all tokens of the vocabulary
    clip_norm: float | None = None  # global norm of the gradient; None: no clipping
    schedule: str = "inverse_sqrt"  # or package.module:name of a (max_lr, warmup, steps) -> optax.Schedule
    algorithm: str = "adam"  # or package.module:name of a (schedule) -> optax.GradientTransformation
    selector_lr: float = 1e-4  # of the selector's Adam, constant
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "warmup", "accumulate_step")
        checks.at_least(self, 0, "max_lr", "selector_lr")
        checks.below_one(self, "label_smoothing")
        checks.above(self, 0, "clip_norm")
        named: dict[str, Mapping[str, Any]] = {"schedule": SCHEDULES, "algorithm": ALGORITHMS}
        for name, table in named.items():
            given = getattr(self, name)
            if given not in table and ":" not in given:
                raise ValueError(f"{name}={given!r}: expected one of {', '.join(table)}, or package.module:name")

    def learning_rate(self, steps: int) -> optax.Schedule:
        """The transformer's learning rate over a run of so many optimizer steps.

        Raises:
          UserError: a name that cannot be resolved.
        """
        make = resolve(self.schedule, SCHEDULES, "config.optimizer.schedule")
        return _call("config.optimizer.schedule", self.schedule, make, self.max_lr, self.warmup, steps)

    def transformer(self, steps: int) -> optax.GradientTransformation:
        """The transformer's optimizer for a run of so many optimizer steps.

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
