"""Training checkpoints: exact round trips, which are kept, and every way they can be damaged."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from helpers import with_disk
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_simcas.checkpoints.run_state import Checkpointer, array_digest, load_params
from jax_simcas.common.errors import UserError

ROOT = Path(__file__).parents[1]


def make_state(seed: int):
    key = jax.random.key(seed)
    params = {
        "layers": {str(i): {"kernel": jax.random.normal(key, (8, 8)) + i, "bias": jnp.zeros(8)} for i in range(2)}
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        "params": params,
        "opt_state": optimizer.init(params),
        "key": key,
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "step": jnp.int32(seed),
        "flags": jnp.array([True, False, bool(seed % 2)]),
        "half": jnp.full(3, seed, jnp.bfloat16),
    }


def plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(plain(a), plain(b))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """Steps 1 and 2; tests damage a copy of it."""
    folder = tmp_path_factory.mktemp("two") / "steps"
    with Checkpointer(folder, asynchronous=False) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {"loss": float(step)}, {"rows": 2 * step})
    return folder


@pytest.fixture
def folder(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "copy"))


def restored_step(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Restores, checks that nothing restored is wrong, and gives (step, warnings)."""
    with Checkpointer(folder) as checkpointer:
        found = checkpointer.restore(make_state(9))
    assert_same(found.state, make_state(found.step))
    assert found.meta == {"rows": 2 * found.step}
    return found.step, found.warnings


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("abstract", [True, False])
def test_round_trip_is_exact(tmp_path, asynchronous, abstract):
    state = make_state(5)
    with Checkpointer(tmp_path / "new" / "folder", asynchronous=asynchronous) as checkpointer:
        assert checkpointer.restore(state) is None
        assert checkpointer.latest_step() is None and checkpointer.best_step() is None
        checkpointer.save(7, state, {"loss": 1.5}, {"lr": 0.1, "name": "ä"})
        assert checkpointer.latest_step() == checkpointer.best_step() == 7
    target = jax.eval_shape(lambda: make_state(0)) if abstract else make_state(0)
    with Checkpointer(tmp_path / "new" / "folder") as checkpointer:
        found = checkpointer.restore(target)
    assert_same(found.state, state)
    assert (found.step, found.meta, found.warnings) == (7, {"lr": 0.1, "name": "ä"}, ())


def test_other_shardings(tmp_path):
    def place(shape, names, spec):
        mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
        value = jnp.arange(16.0 * 8).reshape(16, 8)
        keys = jax.random.split(jax.random.key(0), 8)
        return {
            "w": jax.device_put(value, NamedSharding(mesh, spec)),
            "scale": jax.device_put(jnp.float32(2), NamedSharding(mesh, P())),
            "keys": jax.device_put(keys, NamedSharding(mesh, P(spec[0]))),
        }

    saved, target = place((8,), ("a",), P("a")), place((2, 4), ("a", "b"), P("b", "a"))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, saved, None, {})
        found = checkpointer.restore(target)
        assert_same(found.state, saved)
        for given, expected in zip(jax.tree.leaves(found.state), jax.tree.leaves(target), strict=True):
            assert given.sharding == expected.sharding
        one = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[3]), saved)
        single = checkpointer.restore(one).state
        assert_same(single, saved)
        assert single["w"].devices() == {jax.devices()[3]}


def test_digest_is_of_values_and_positions_only():
    x = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharded = jax.device_put(x, NamedSharding(mesh, P("a", "b")))
    assert array_digest(x).tolist() == array_digest(sharded).tolist() == array_digest(np.asarray(x)).tolist()
    bits = np.asarray(x).view(np.uint8).reshape(-1)
    seen = {tuple(array_digest(x).tolist())}
    for position in range(bits.size):
        changed = bits.copy()
        changed[position] ^= 1 << position % 8
        seen.add(tuple(array_digest(changed.view(np.float32).reshape(x.shape)).tolist()))
    assert len(seen) == bits.size + 1
    assert array_digest(x[::-1]).tolist() != array_digest(x).tolist()
    for dtype in (jnp.bool_, jnp.int8, jnp.bfloat16, jnp.uint32):
        one, other = jnp.zeros(5, dtype), jnp.array([0, 0, 0, 0, 1], dtype)
        assert array_digest(one).tolist() != array_digest(other).tolist()


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 5)])
def test_latest_and_best_are_kept(tmp_path, mode, best):
    scores = {2: 5.0, 3: 1.0, 5: 9.0, 6: float("nan"), 8: 5.0}
    kept_last = {best, 9, 10}
    with Checkpointer(tmp_path, mode=mode) as checkpointer:
        for step in range(1, 8):
            metrics = {"loss": scores[step], "rouge": 0.0} if step in scores else None
            checkpointer.save(step, {"params": {"w": jnp.full(3, step)}}, metrics, {})
            checkpointer.wait()
            assert step in steps_in(tmp_path)
            known = {s: scores[s] for s in range(1, step + 1) if scores.get(s, np.nan) == scores.get(s)}
            expected = (min if mode == "min" else max)(known, key=known.get, default=None)
            assert checkpointer.best_step() == expected and checkpointer.latest_step() == step
            assert set(steps_in(tmp_path)) == {s for s in (step, step - 1, expected) if s}
    with Checkpointer(tmp_path, mode=mode) as checkpointer:  # a new process knows the scores too
        assert checkpointer.best_step() == best
        found = checkpointer.restore({"params": {"w": jnp.zeros(3, int)}})
        assert found.step == 7
        for step in range(8, 11):
            metrics = {"loss": scores[step]} if step in scores else {"other": 0.0}
            checkpointer.save(step, {"params": {"w": jnp.full(3, step)}}, metrics, {})
    assert set(steps_in(tmp_path)) == kept_last
    params, meta = load_params(tmp_path)
    assert meta["step"] == best and params["w"].tolist() == [best] * 3


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    remove(path)
    path.mkdir()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes()) or bytearray(1)  # an empty file gets a byte
    content[len(content) // 2 if position is None else position] ^= 0x10
    path.write_bytes(bytes(content))


def biggest(folder: Path) -> Path:
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (empty, "."),
        (remove, "meta"),
        (remove, "meta/metadata"),
        (truncate, "meta/metadata"),
        (flip, "meta/metadata"),
        (remove, "state"),
        (empty, "state"),
        (remove, "state/manifest.ocdbt"),
        (truncate, "state/manifest.ocdbt"),
    ],
)
def test_damaged_checkpoint_is_skipped_by_name(folder, damage, where, capfd):
    damage(folder / "2" / where)
    step, warnings = restored_step(folder)
    assert step == 1
    assert len(warnings) == 1 and warnings[0].startswith(f"{folder / '2'}: skipped, damaged (")
    assert "\n" not in warnings[0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", [remove, truncate])
def test_damaged_array_files_are_skipped(folder, damage, capfd):
    for path in (folder / "2" / "state").rglob("d/*"):
        damage(path)
    assert restored_step(folder)[0] == 1
    assert capfd.readouterr().err == ""


def test_flipped_bytes_in_arrays_are_found(tmp_path, capfd):
    """Arrays too big to live in the index: the files where orbax silently restores a flipped byte."""
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (100, 100))}, "key": jax.random.key(0)}
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, None, {})
        checkpointer.wait()
        path = biggest(tmp_path / "2" / "state")
        good, found = path.read_bytes(), []
        for position in random.Random(0).sample(range(len(good)), 12):
            flip(path, position)
            restored = checkpointer.restore(state)
            assert_same(restored.state, state)
            found.append(restored.step)
            path.write_bytes(good)
        assert found == [1] * 12
        assert checkpointer.restore(state).step == 2
    assert capfd.readouterr().err == ""


def shorten(path: Path) -> None:
    path.write_bytes(b"")


def check_every_file(folder: Path, damage_of: Callable[[int], Callable]) -> None:
    """Damages the files of step 2 one after the other; those that only orbax reads may be damaged unseen."""
    seen = {}
    for number, path in enumerate(sorted(path for path in (folder / "2").rglob("*") if path.is_file())):
        good = path.read_bytes()
        damage_of(number)(path)
        step, warnings = restored_step(folder)
        path.write_bytes(good)
        skipped = [f"{folder / '2'}: skipped, damaged"] if step == 1 else []
        assert [warning.split(" (")[0] for warning in warnings] == skipped
        seen[str(path.relative_to(folder / "2"))] = step
    assert set(seen.values()) == {1, 2}
    assert {seen[name] for name in ("meta/metadata", "state/manifest.ocdbt")} == {1}
    assert restored_step(folder) == (2, ())


def test_damage_to_any_file_never_gives_wrong_numbers(folder):
    check_every_file(folder, lambda number: (remove, shorten, truncate, flip)[number % 4])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [remove, shorten, truncate, flip])
def test_every_damage_to_any_file_never_gives_wrong_numbers(folder, damage):
    check_every_file(folder, lambda number: damage)


def test_no_good_checkpoint_is_an_error_not_a_fresh_start(folder):
    remove(folder / "2" / "meta")
    for path in (folder / "1").rglob("d/*"):
        truncate(path)
    with (
        Checkpointer(folder) as checkpointer,
        pytest.raises(UserError, match=r"no good checkpoint \(.*/2: skipped.*/1: skipped"),
    ):
        checkpointer.restore(make_state(0))
    with pytest.raises(UserError, match="no good checkpoint"):
        load_params(folder)
    assert steps_in(folder) == [1, 2]


def test_unfinished_saves_are_warned_of_and_are_no_checkpoints(tmp_path):
    left = tmp_path / "3.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state(0)) is None
        assert checkpointer.warnings == (f"{left}: skipped, its save never finished",)
        checkpointer.save(3, make_state(3), None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_checkpoints_that_hold_a_data_position_still_restore(folder):
    """Written before training resumed by batch number."""
    path = folder / "2" / "meta" / "metadata"
    body = json.loads(json.loads(path.read_text())["json"]) | {"data_processes": 1}
    text = json.dumps(body)
    path.write_text(json.dumps({"json": text, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}))
    (folder / "2" / "data").mkdir()
    (folder / "2" / "data" / "process_0-of-1.json").write_text("{}")
    assert restored_step(folder) == (2, ())
    with Checkpointer(folder, keep_latest=1, keep_best=0) as checkpointer:
        checkpointer.restore(make_state(0))
        checkpointer.save(3, make_state(3), None, {})
    assert steps_in(folder) == [3]


def test_damaged_step_is_written_again(folder):
    flip(folder / "2" / "meta" / "metadata")
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.restore(make_state(0)).step == 1
        assert checkpointer.latest_step() == checkpointer.best_step() == 1
        checkpointer.save(2, make_state(2), None, {"rows": 4})
        assert checkpointer.latest_step() == 2
    assert restored_step(folder) == (2, ())


def test_going_back_deletes_later_steps(tmp_path):
    with Checkpointer(tmp_path, keep_latest=5) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, make_state(step), {"loss": -step}, {})
        assert checkpointer.restore(make_state(0), step=10).step == 10
        assert steps_in(tmp_path) == [10, 20, 30]
        checkpointer.save(15, make_state(15), None, {})
        checkpointer.wait()
        assert steps_in(tmp_path) == [10, 15]
        assert checkpointer.best_step() == 10 and checkpointer.latest_step() == 15
        with pytest.raises(UserError, match=r"/99: skipped"):
            checkpointer.restore(make_state(0), step=99)


def test_saving_a_step_twice(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for metrics in (None, {"loss": 2.0}, {"loss": 99.0}, None):
            checkpointer.save(4, make_state(4), metrics, {})
        checkpointer.save(5, make_state(5), {"loss": 3.0}, {})
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.best_step() == 4  # its metrics were added later
        assert checkpointer.restore(make_state(0)).step == 5
        checkpointer.save(5, make_state(5), None, {})
        checkpointer.save(6, make_state(6), None, {})
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(UserError, match="a run not restored"):
        checkpointer.save(5, make_state(5), None, {})


def test_mismatches_are_listed(folder):
    changes = {
        "half (given bfloat16[3], expected float32[3])": lambda state: (
            state | {"half": state["half"].astype(jnp.float32)}  # orbax would cast
        ),
        "key (given key<fry>[], expected key<rbg>[])": lambda state: state | {"key": jax.random.key(0, impl="rbg")},
        "params/layers/0/kernel (given float32[8,8], expected float32[8,4])": narrow_kernel,
        "step (given int32[], expected nothing)": lambda state: {k: v for k, v in state.items() if k != "step"},
        "new (given nothing, expected int32[])": lambda state: state | {"new": state["step"]},
    }

    def error_of(state):
        with Checkpointer(folder) as checkpointer, pytest.raises(UserError) as error:
            checkpointer.restore(state)
        return str(error.value)

    for line, change in changes.items():
        message = error_of(change(make_state(0)))
        assert line in message and message.count("(given ") == 1

    everything = functools.reduce(lambda state, change: change(state), reversed(changes.values()), make_state(0))
    message = error_of(everything)
    assert message.count("(given ") == 3 and "; 2 more; " in message


def narrow_kernel(state):
    state["params"]["layers"]["0"]["kernel"] = jnp.zeros((8, 4))
    return state


def test_donated_state_is_saved_as_it_was(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        return {"w": state["w"] * 1.5 + 1, "key": jax.random.split(state["key"], 1)[0]}

    state, copies = {"w": jnp.ones((300, 300)), "key": jax.random.key(0)}, {}
    with Checkpointer(tmp_path, keep_latest=9) as checkpointer:
        for step in range(1, 7):
            state = update(state)
            copies[step] = jax.tree.map(jnp.copy, state)
            checkpointer.save(step, state, None, {})
            for _ in range(3):
                state = update(state)
        for step, expected in copies.items():
            assert_same(checkpointer.restore(expected, step=step).state, expected)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint folder .*/file/run: cannot be written \(NotADirectory"):
        Checkpointer(tmp_path / "file" / "run")


def test_a_folder_that_goes_with_its_last_file(tmp_path, monkeypatch):
    """As in a bucket, where a new run's folder is gone again after it proved to be writable."""
    kind = type(epath.Path())
    unlink = kind.unlink

    def unlink_with_folder(path):
        unlink(path)
        path.parent.rmdir()

    with monkeypatch.context() as bucket:
        bucket.setattr(kind, "unlink", unlink_with_folder)
        checkpointer = Checkpointer(tmp_path / "run")
    with checkpointer:
        assert checkpointer.restore(make_state(0)) is None
        checkpointer.save(1, make_state(1), None, {})
    assert steps_in(tmp_path / "run") == [1]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_full_disk_leaves_the_last_good_one(tmp_path, asynchronous, capfd):
    def state(step):
        return {"w": jax.random.normal(jax.random.key(step), (200, 200)), "step": jnp.int32(step)}

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpointer = Checkpointer(tmp_path, keep_latest=1, asynchronous=asynchronous)
    checkpointer.save(1, state(1), {"loss": 1.0}, {})
    checkpointer.wait()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # bytes a file: as good as a full disk
        with pytest.raises(UserError, match=rf"{tmp_path}/2: could not be .*good one is {tmp_path}/1; make room"):
            checkpointer.save(2, state(2), {"loss": 0.0}, {})
            checkpointer.close()
        checkpointer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr().err == ""
    with Checkpointer(tmp_path, keep_latest=1) as checkpointer:
        found = checkpointer.restore(state(0))
        assert found.step == checkpointer.best_step() == 1
        assert_same(found.state, state(1))
        checkpointer.save(2, state(2), None, {})
    assert steps_in(tmp_path) == [1, 2]


FILL = """
import sys
import jax
from jax_simcas.checkpoints.run_state import Checkpointer
from jax_simcas.common.errors import UserError

state = {str(i): jax.random.normal(jax.random.key(i), (25_000,)) for i in range(40)}
try:
    with Checkpointer(sys.argv[1], asynchronous=bool(int(sys.argv[2]))) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, state, None, {})
except UserError as error:
    print(error)
with Checkpointer(sys.argv[1]) as checkpointer:
    print(checkpointer.restore(state)[::3])
"""


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_really_full_disk(tmp_path, asynchronous):
    """Nothing on standard error up to the process's end, when orbax logs late."""
    command = [*with_disk(tmp_path, 10), sys.executable, "-c", FILL, str(tmp_path), str(int(asynchronous))]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    message, restored = child.stdout.splitlines()
    assert f"{tmp_path}/3: could not be written" in message and f"last good one is {tmp_path}/2; make room" in message
    assert restored == f"(2, ('{tmp_path}/3.orbax-checkpoint-tmp: skipped, its save never finished',))"
    assert child.stderr == ""


def test_loggers_are_left_as_they_were(tmp_path):
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [list(logger.filters) for logger in loggers], sys.unraisablehook
    with Checkpointer(tmp_path):
        assert [list(logger.filters) for logger in loggers] != before[0]
    assert ([list(logger.filters) for logger in loggers], sys.unraisablehook) == before


def test_load_params(folder, tmp_path):
    listing = sorted(path.name for path in folder.rglob("*"))
    for step, expected in (("best", 1), ("latest", 2), (1, 1), (2, 2)):
        params, meta = load_params(str(folder), step)
        assert meta == {"rows": 2 * expected, "step": expected, "warnings": ()}
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
        assert_same(params, jax.tree.map(np.asarray, make_state(expected)["params"]))
    assert sorted(path.name for path in folder.rglob("*")) == listing
    flip(folder / "1" / "meta" / "metadata")
    _, meta = load_params(folder, "best")
    assert meta["step"] == 2
    for path in (folder / "2" / "state").rglob("d/*"):
        remove(path)
    with pytest.raises(UserError, match="no good checkpoint"):
        load_params(folder, 2)
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="holds no checkpoint"):
            load_params(missing)


def test_load_params_without_metrics_is_the_latest(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), None, {})
    assert load_params(tmp_path)[1]["step"] == 2


def test_states_that_cannot_be_saved(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match="int64 would become int32"):
            checkpointer.save(1, {"a": np.arange(3)}, None, {})
        with pytest.raises(ValueError, match="paths"):
            checkpointer.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, None, {})
        assert checkpointer.latest_step() is None


CHILD = """
import os, signal, sys
import jax, jax.numpy as jnp
from jax_simcas.checkpoints.run_state import Checkpointer

size, last = int(sys.argv[2]), int(sys.argv[3])
with Checkpointer(sys.argv[1]) as checkpointer:
    found = checkpointer.restore({"params": {"w": jnp.zeros(size)}})
    for step in range(found.step + 1 if found else 1, last + 1):
        checkpointer.save(step, {"params": {"w": jnp.full(size, float(step))}}, None, {})
        if last == 2 and step == 1:
            checkpointer.wait()
        print(step, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_saving(tmp_path):
    size = 8_000_000
    child = subprocess.run([sys.executable, "-c", CHILD, tmp_path, str(size), "2"], cwd=ROOT, timeout=120)
    assert child.returncode == -signal.SIGKILL
    with Checkpointer(tmp_path) as checkpointer:
        found = checkpointer.restore({"params": {"w": jnp.zeros(size)}})
    # How far the second one came before the kill is up to the machine.
    assert found.step >= 1 and (np.asarray(found.state["params"]["w"]) == found.step).all()
    assert all("/2.orbax-checkpoint-tmp: skipped" in warning for warning in found.warnings)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    size, reached, rng = 200_000, 0, random.Random(0)
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path, str(size), "100000"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            begun = int(child.stdout.readline())
            time.sleep(rng.random())
            child.kill()
            begun = int((child.stdout.read().split() or [begun])[-1])
        with Checkpointer(tmp_path) as checkpointer:
            found = checkpointer.restore({"params": {"w": jnp.zeros(size)}})
        assert found.step >= max(begun - 1, reached)
        assert (np.asarray(found.state["params"]["w"]) == found.step).all()
        assert all("never finished" in warning for warning in found.warnings)
        reached = found.step
