"""Restores training checkpoints that are damaged: what `jax_simcas.benchmark.damage` runs."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.checkpoints.run_state import Checkpointer, load_params
from jax_simcas.common import cli, progress
from jax_simcas.common.errors import UserError
from jax_simcas.common.tables import markdown_table
from jax_simcas.method.model import SimCAS, init_params
from jax_simcas.method.steps import TrainState, init_state
from jax_simcas.run.method_config import SimcasConfig, UpdateConfig

OLD, NEW = 1, 2  # steps
HARMLESS, RECOGNISED, FAULT = "harmless", "recognised", "faults"
Damage = Callable[[bytes, int, int, random.Random], bytes]  # content, start and end of a region


def flipped(content: bytes, start: int, end: int, rng: random.Random) -> bytes:
    """A bit of the region is another one."""
    changed = bytearray(content)
    changed[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


DAMAGES: Mapping[str, Damage] = {
    "a bit flipped": flipped,
    "cut off": lambda content, start, end, rng: content[:start],
    "zeros": lambda content, start, end, rng: content[:start] + bytes(end - start) + content[end:],
    "left out": lambda content, start, end, rng: content[:start] + content[end:],
}
REMOVED = "file removed"


class Case(NamedTuple):
    """A damage of a file; the region is `start` to `end`."""

    path: Path
    damage: str
    start: int
    end: int


def run(arguments: Any) -> int:
    """Prints a table of damages, and each fault."""
    cli.prepare_jax()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        folder = Path(name)
        states = saved(folder)
        made = list(cases(folder / str(NEW), arguments.count))
        results: list[tuple[Case, str, str]] = []
        with progress.Progress(len(made), unit="damages") as shown:
            for case in made:
                results.append((case, *outcome(folder, states, case, rng)))
                shown.update()
    for case, result, detail in results:
        if result == FAULT:
            where = case.path.relative_to(folder)
            print(f"fault: {case.damage}, bytes {case.start} to {case.end} of {where}: {detail}")
    print(table([(case.damage, result) for case, result, _ in results]))
    faults = sum(result == FAULT for _, result, _ in results)
    if faults:
        raise UserError(f"{faults} of {len(results)} damages are neither harmless nor recognised")
    return 0


def saved(folder: Path) -> dict[int, TrainState]:
    """Two states of a small model, saved as training saves them."""
    sizes: dict[str, Any] = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64}
    sizes |= {"decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=4_000, **sizes)
    model = SimcasConfig().model(Bart(config))
    states = {step: _state(model, step) for step in (OLD, NEW)}
    with Checkpointer(folder, asynchronous=False) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"loss": 1.0 / step}, {"rows": step})
    return states


def _state(model: SimCAS, step: int) -> TrainState:
    key = jax.random.key(step)
    update = UpdateConfig()
    state = init_state(init_params(key, model), update.transformer(steps=9), update.selector(), key)
    return dataclasses.replace(state, step=jnp.int32(step))


def cases(checkpoint: Path, count: int) -> Iterator[Case]:
    """All damages: the regions are as many as make `count` of them, larger files have more."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path: path.stat().st_size for path in paths}
    regions = max(1, (count - len(paths)) // len(DAMAGES))
    for path, size in sizes.items():
        yield Case(path, REMOVED, 0, size)
        share = max(2, round(regions * size / max(sum(sizes.values()), 1)))
        ends = np.linspace(0, size, min(share, size) + 1, dtype=int).tolist() if size else [0]
        for damage in DAMAGES:
            yield from (Case(path, damage, start, end) for start, end in itertools.pairwise(ends))


def outcome(folder: Path, states: Mapping[int, TrainState], case: Case, rng: random.Random) -> tuple[str, str]:
    """(result, detail of a fault) of one damage, which is mended again."""
    good = case.path.read_bytes()
    if case.damage == REMOVED:
        case.path.unlink()
    else:
        case.path.write_bytes(DAMAGES[case.damage](good, case.start, case.end, rng))
    try:
        return _restored(folder, states)
    except Exception as error:  # what is looked for
        return FAULT, f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        case.path.write_bytes(good)


def _restored(folder: Path, states: Mapping[int, TrainState]) -> tuple[str, str]:
    with Checkpointer(folder) as checkpoints:
        found = checkpoints.restore(states[NEW])
    if found is None:
        return FAULT, "nothing is restored"
    params, meta = load_params(folder, "latest")
    for step, of, given, expected in (
        (found.step, "the state", found.state, states.get(found.step)),
        (meta["step"], "the parameters", params, states[meta["step"]].params),
    ):
        if not _same(given, expected):
            return FAULT, f"{of} of step {step} are other numbers"
    skipped = [line for line in found.warnings if line.startswith(f"{folder / str(NEW)}: ")]
    if found.step == OLD and len(skipped) != 1:
        return FAULT, f"{len(skipped)} lines about what was skipped"
    return (HARMLESS if found.step == NEW else RECOGNISED), ""


def _same(given: Any, expected: Any) -> bool:
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(plain(a), plain(b)) for a, b in pairs)


def table(results: list[tuple[str, str]]) -> str:
    """Counts of each damage."""
    names = [*dict.fromkeys(name for name, _ in results)]
    groups = {name: Counter(result for other, result in results if other == name) for name in names}
    groups["all"] = Counter(result for _, result in results)
    rows = [
        {"damage": name, "tried": count.total()} | {r: count[r] for r in (RECOGNISED, HARMLESS, FAULT)}
        for name, count in groups.items()
    ]
    return markdown_table(rows, [*rows[0]])
