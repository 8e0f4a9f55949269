"""Holds the public functions against arrays that other code computed, of any family: every case, every quantity."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from jax_simcas.backbones.families import backbone_for
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints.hub import from_state_dict, load
from jax_simcas.common import cli, files, progress, tables
from jax_simcas.common.errors import UserError, first_line
from jax_simcas.method import steps
from jax_simcas.method.align import ALIGNMENTS
from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.model import SimCAS, encode, encode_and_select, forward
from jax_simcas.method.optimizers import adam, inverse_sqrt
from jax_simcas.method.ppo import Orders, PPOConfig, Rollout, ppo_update
from jax_simcas.method.select import Compacted, state_values

# What float32 allows.
STATES, LOSSES, PARAMETERS = 2e-5, 1e-5, 1e-4
SELECTOR_LR = 1e-4  # of the PPO cases
LABEL_SMOOTHING = 0.1
CONTENTS = "DIR holds config.json, weights, manifest.json and CASE.npz for each case of it, as tests/data/parity does"

Arrays = dict[str, np.ndarray]


class Check(NamedTuple):
    """One comparison: the largest error, or for what must be equal the number of differing elements."""

    case: str
    quantity: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # and False for NaN


class Case(NamedTuple):
    """One case of the manifest, and the model that it is about."""

    name: str
    settings: dict[str, Any]
    arrays: Arrays
    shape: BackboneConfig
    params: Any

    @property
    def model(self) -> SimCAS:
        if (align := self.settings["align"]) not in ALIGNMENTS:
            raise UserError(f"case {self.name}: its align in the manifest is {align!r}, not {', '.join(ALIGNMENTS)}")
        return SimCAS(backbone_for(self.shape), align=ALIGNMENTS[align], mask_padding=False)

    def number(self, setting: str, *kinds: type) -> Any:
        """A number of the manifest."""
        if type(value := self.settings[setting]) not in kinds:
            raise UserError(f"case {self.name}: its {setting} in the manifest is {value!r}, not a number")
        return value

    def tokens(self, name: str, axes: str) -> jax.Array:
        """Token ids of one document: the array without its first axis.

        Raises:
          UserError: another shape, or tokens that the model has not.
        """
        ids, rows = self.arrays[name], self.shape.vocab_size
        if ids.ndim != 1 + len(axes) or len(ids) != 1 or not ids.size:
            raise UserError(f"case {self.name}: {name} has the shape {ids.shape}, not [1, {', '.join(axes)}]")
        if ids.dtype.kind not in "iu":
            raise UserError(f"case {self.name}: {name} holds {ids.dtype}, not tokens")
        if wrong := [*ids[(ids < 0) | (ids >= rows)]]:
            raise UserError(f"case {self.name}: {name} holds {wrong[0]}, and the model has {rows} tokens")
        return jnp.asarray(ids[0], jnp.int32)

    def draws(self, name: str, ids: jax.Array) -> jax.Array:
        """What is kept of the candidates of a document [K, S].

        Raises:
          UserError: another shape.
        """
        draws, (chunks, length) = self.arrays[name], ids.shape
        if draws.shape != (chunks, length - 1):
            raise UserError(f"case {self.name}: {name} has the shape {draws.shape}, not {(chunks, length - 1)}")
        return jnp.asarray(draws, bool)

    def example(self, prefix: str = "") -> Example:
        """One document and its target; PAD is real in it, as in the released code."""
        ids, target = self.tokens(f"{prefix}input_ids", "KS"), self.tokens(f"{prefix}target_ids", "T")
        document = Document(ids, jnp.ones(ids.shape, bool), jnp.ones(ids.shape[0], bool))
        # The start token may be PAD, as in T5.
        real = (target != self.shape.pad_token_id) | (jnp.arange(len(target)) == 0)
        return Example(document, Target(target, real))

    def within(self, quantity: str, measured: Any, expected: Any, tolerance: float, scale: float = 0.0) -> Check:
        """The largest absolute error or, with a `scale`, the largest relative to max(|expected|, scale).

        Of the PyTorch peer's arrays, whose families have states of any size, it is relative to the largest above 1.
        """
        measured, expected = np.asarray(measured, np.float64), np.asarray(expected, np.float64)
        if measured.shape != expected.shape:
            return Check(self.name, f"{quantity}, shape {measured.shape}", float("inf"), tolerance)
        error = np.abs(measured - expected)
        if scale:
            error = error / np.maximum(np.abs(expected), scale)
        elif self.settings.get("source") == "peer":
            error = error / np.max(np.abs(expected), initial=1.0)
        return Check(self.name, quantity, float(np.max(error, initial=0.0)), tolerance)

    def equal(self, quantity: str, measured: Any, expected: Any) -> Check:
        """How many elements differ; none may."""
        measured, expected = np.asarray(measured), np.asarray(expected)
        same_shape = measured.shape == expected.shape
        differing = np.count_nonzero(measured != expected) if same_shape else float("inf")
        return Check(self.name, quantity, float(differing), 0.0)


def after_training(case: Case) -> Any:
    """The parameters that the case ends with, as our tree."""
    prefix = "after/"
    return from_state_dict(
        {k.removeprefix(prefix): v for k, v in case.arrays.items() if k.startswith(prefix)}, config=case.shape
    )


def largest_gap(a: Any, b: Any) -> float:
    """Largest absolute difference over two trees of the same structure."""
    gap = lambda x, y: float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)), initial=0.0))
    return max(jax.tree.leaves(jax.tree.map(gap, a, b)), default=0.0)


def without_key_biases(params: Any) -> Any:
    """The tree without the biases of key projections.

    They shift all scores of a query equally, so their true gradient is 0; what PyTorch's Adam made of its rounding
    noise differs from model to model.
    """
    flat = traverse_util.flatten_dict(params)
    return {name: leaf for name, leaf in flat.items() if name[-2:] != ("k_proj", "bias")}


@partial(jax.jit, static_argnames="model")
def _forward(params: Any, example: Example, sampled: jax.Array, model: SimCAS) -> tuple:
    """Inputs of layers, the forward pass, values and rewards."""
    _, layer_inputs = encode(params, model, example.document)
    out = forward(params, model, example, action=sampled)
    states, seen = out.encoded.hidden[:, 1:], out.encoded.selection.state
    value = jax.vmap(state_values, (None, 0, 0))(params["selector"], states, seen)
    rewards = model.credit(model.reward(params, model, example, out), out)
    return layer_inputs, out, value, rewards


def check_forward(case: Case) -> Iterator[Check]:
    """Encode, align, select, compact, decode, reward and loss of one document with given draws."""
    arrays, example = case.arrays, case.example()
    sampled = case.draws("sampled_actions", example.document.input_ids)
    layer_inputs, out, value, rewards = _forward(case.params, example, sampled, case.model)
    _, selection, compacted = out.encoded
    for layer in range(case.model.backbone.encoder_depth):
        expected = arrays[f"encoder_states_{layer}"][0]
        yield case.within(f"input of encoder layer {layer}", layer_inputs[layer], expected, STATES)
    yield case.equal("selection", selection.action, arrays["actions"].astype(bool))
    yield case.within("state before each chunk", selection.state, arrays["state_before_chunk"][:, 0], STATES)
    yield case.within("log-probabilities", selection.log_prob, arrays["log_probs"], STATES)
    yield case.within("values", value, arrays["values"], STATES)
    rows = int(compacted.mask.sum())
    yield case.equal("number selected", rows - 1, int(arrays["selected_count"]))
    yield case.within("selected states", compacted.states[:rows], arrays["selected"][0], STATES)
    yield case.within("logits", out.logits, arrays["logits"][0], STATES)
    yield case.within("cross-attention", out.cross_attention[:rows], arrays["mean_cross_attention"], STATES)
    kept = np.asarray(selection.action)
    tiny = float(np.finfo(np.float32).tiny)
    yield case.within("rewards of kept", np.asarray(rewards)[kept], arrays["select_rewards"], LOSSES, tiny)
    skipped = np.asarray(rewards)[~kept]
    yield case.within("reward of skipped", skipped, np.broadcast_to(arrays["skip_reward"], skipped.shape), LOSSES, tiny)
    loss = steps.smoothed_cross_entropy(out.logits, example.target, LABEL_SMOOTHING)
    yield case.within("smoothed loss", loss, np.reshape(arrays["smoothed_loss"], ()), LOSSES, tiny)


def check_ppo(case: Case) -> Iterator[Check]:
    """Rollout, advantages and every minibatch of the selector's update, in the given order of visits."""
    arrays, model, example = case.arrays, case.model, case.example()
    epochs, chunks, per_chunk = arrays["token_orders"].shape
    config = PPOConfig(epochs=epochs, minibatch_size=int(arrays["minibatch_size"]))
    size = min(config.minibatch_size, per_chunk)
    batch = jax.tree.map(lambda x: x[None], example)
    action = case.draws("actions", example.document.input_ids)[None]
    keys = jax.random.split(jax.random.key(0), 1)
    collect = lambda params: steps.rollout(params, batch, model, config, keys, action=action)[0]
    experience: Rollout = jax.jit(collect)(case.params)
    yield case.within("values", experience.value[0], arrays["values"], STATES)
    yield case.within("log-probabilities", experience.log_prob[0], arrays["log_probs"], STATES)
    yield case.within("advantages", experience.advantage[0], arrays["advantages"], STATES, 1.0)
    yield case.within("returns", experience.returns[0], arrays["returns"], STATES, 1.0)

    rounds = -(-per_chunk // size)
    fill = ((0, 0), (0, 0), (0, rounds * size - per_chunk))
    token = np.pad(arrays["token_orders"], fill, constant_values=per_chunk)[:, None]
    chunk = arrays["chunk_orders"].reshape(epochs, rounds, 1, chunks)
    orders = Orders(jnp.asarray(token, jnp.int32), jnp.asarray(chunk, jnp.int32))
    optimizer = optax.adam(SELECTOR_LR)
    run = jax.jit(lambda s, r, o: ppo_update(s, optimizer, optimizer.init(s), r, o, config))
    selector, _, losses, taken = run(case.params["selector"], experience, orders)
    measured = np.stack([np.asarray(column)[np.asarray(taken)] for column in losses], axis=1)
    columns = case.settings.get("losses_columns", ["policy", "value", "entropy", "total", "approx_kl"])
    for number, name in enumerate(columns):
        # A mean of normalised advantages is zero but for rounding, so near zero the error is absolute.
        yield case.within(f"{name} of all minibatches", measured[:, number], arrays["losses"][:, number], LOSSES, 0.2)
    gap = largest_gap(selector, after_training(case)["selector"])
    yield Check(case.name, "selector afterwards", gap, PARAMETERS)


def check_train(case: Case) -> Iterator[Check]:
    """The transformer's optimizer steps: rates, losses, and every parameter afterwards."""
    arrays = case.arrays
    rate = inverse_sqrt(case.number("max_lr", int, float), case.number("warmup_steps", int))
    optimizer = adam(rate)
    params = jax.tree.map(jnp.asarray, case.params)
    state = steps.init_state(params, optimizer, optax.adam(SELECTOR_LR), jax.random.key(0))
    step = jax.jit(
        partial(steps.transformer_step, model=case.model, optimizer=optimizer, label_smoothing=LABEL_SMOOTHING)
    )
    prefixes = [f"step{i + 1}/" for i in range(case.number("steps", int))]
    examples = [case.example(prefix) for prefix in prefixes]
    chunks = max((len(example.document.input_ids) for example in examples), default=0)
    rates, losses = [], []
    for i, (prefix, example) in enumerate(zip(prefixes, examples, strict=True)):
        action = case.draws(f"{prefix}sampled_actions", example.document.input_ids)
        # Of the same number of chunks, as batches are in training: one program does all steps.
        document, action = jax.tree.map(lambda x: _padded(x, chunks)[None], (example.document, action))
        batch = Example(document, jax.tree.map(lambda x: x[None], example.target))
        state, metrics = step(state, batch, action=action)
        rates.append(float(rate(i)))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    tiny = float(np.finfo(np.float32).tiny)
    yield case.within("learning rates", rates, arrays["learning_rates"], LOSSES, tiny)
    yield case.within("losses of all steps", losses, arrays["losses"], LOSSES, tiny)
    transformer, selector = steps.split_params(state.params)
    gap = largest_gap(without_key_biases(transformer), without_key_biases(after_training(case)))
    yield Check(case.name, "transformer afterwards", gap, PARAMETERS)
    yield Check(case.name, "selector untouched", largest_gap(selector, case.params["selector"]), 0.0)


def _padded(rows: jax.Array, count: int) -> jax.Array:
    """As many rows, those that were not there all zero."""
    return jnp.pad(rows, ((0, count - len(rows)), *((0, 0),) * (rows.ndim - 1)))


@partial(jax.jit, static_argnames="model")
def _kept(params: Any, ids: jax.Array, action: jax.Array, model: SimCAS) -> Compacted:
    """The states of a document that these draws keep."""
    real = jnp.ones(ids.shape, bool)
    return encode_and_select(params, model, Document(ids, real, real[:, 0]), action=action).compacted


_generate = jax.jit(generate, static_argnames=("model", "config"))


def check_generate(case: Case) -> Iterator[Check]:
    """Generated sequences, token for token, in every setting."""
    for i, options in enumerate(case.settings["settings"]):
        try:
            config = GenerateConfig(**options)
        except (TypeError, ValueError) as error:
            raise UserError(f"{case.name}: setting {i} of the manifest: {error}") from None
        ids = case.tokens(f"{i}/input_ids", "KS")
        kept = _kept(case.params, ids, case.draws(f"{i}/sampled_actions", ids), case.model)
        sequence = _generate(case.params, case.model, config, kept).sequence
        expected = case.tokens(f"{i}/sequences", "T")
        expected = jnp.pad(
            expected, (0, max(0, len(sequence) - len(expected))), constant_values=case.shape.pad_token_id
        )
        yield case.equal(f"sequence {i}, {config.num_beams} beams", sequence, expected)


KINDS: dict[str, Callable[[Case], Iterator[Check]]] = {
    "forward": check_forward,
    "ppo": check_ppo,
    "train": check_train,
    "generate": check_generate,
}


def read_cases(folder: Path) -> list[Case]:
    """Every case of the folder's manifest.

    Raises:
      UserError: no manifest or weights, an unreadable .npz, or a case of an unknown kind.
    """
    path = folder / "manifest.json"
    manifest = files.read_json(path, f"cannot be read (no such file); {CONTENTS}")
    if not isinstance(manifest, dict) or not all(isinstance(settings, dict) for settings in manifest.values()):
        raise UserError(f"{path}: expected an object with the settings of each case; {CONTENTS}")
    loaded = load(folder)
    if "selector" not in loaded.params:
        raise UserError(f"{folder}: the weights hold no selector, which every case needs")
    cases = []
    for name, settings in manifest.items():
        if name.split("_")[0] not in KINDS or Path(name).name != name:
            raise UserError(f"{path}: case {name!r} is of no known kind ({', '.join(KINDS)})")
        file = folder / f"{name}.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                cases.append(Case(name, settings, dict(arrays), loaded.config, loaded.params))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)}); {CONTENTS}") from None
    return cases


def compare_case(case: Case) -> list[Check]:
    """All comparisons of a case.

    Raises:
      UserError: it lacks an array or a setting, or has one that does not fit.
    """
    try:
        return list(KINDS[case.name.split("_")[0]](case))
    except KeyError as error:
        raise UserError(f"case {case.name}: no {error.args[0]!r} in its .npz or in the manifest") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"case {case.name}: its arrays do not fit the model ({first_line(error)})") from None


def shown_error(error: float) -> str:
    """`1.2e-06`, and `3` of what is counted."""
    return f"{error:.0f}" if error.is_integer() else f"{error:.1e}"


def table_of(checks: Sequence[Check]) -> str:
    """Comparisons as a Markdown table."""
    columns = ["case", "quantity", "error", "tolerance", "verdict"]
    shown = [
        {**row._asdict(), "error": shown_error(row.error), "verdict": "holds" if row.holds else "EXCEEDED"}
        for row in checks
    ]
    return tables.markdown_table(shown, columns)


def run(arguments: Any) -> int:
    """The program after its flags are read."""
    cli.prepare_jax()
    cases = read_cases(Path(arguments.folder))
    checks: list[Check] = []
    with progress.Progress(len(cases), unit="cases") as bar:
        for case in cases:
            checks += compare_case(case)
            bar.update(1)
    failed = sum(not row.holds for row in checks)
    if arguments.json:
        rows = [row._asdict() | {"holds": row.holds} for row in checks]
        print(json.dumps(files.json_ready({"failed": failed, "checks": rows}), indent=1))
    else:
        print(table_of(checks))
        print(f"\n{len(checks)} comparisons in {len(cases)} cases, {failed} beyond their tolerance")
    return cli.EXIT_ERROR if failed or not checks else 0
