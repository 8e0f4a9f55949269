"""Training checkpoints: exact round trips, which are kept, and what does not fit."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from states import assert_same, flip, make_state, remove, restored_step, steps_in
from states import folder as folder
from states import two_steps as two_steps

from jax_simcas.checkpoints.run_state import Checkpointer, load_params
from jax_simcas.checkpoints.state_arrays import array_digest
from jax_simcas.common.errors import UserError


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
        with pytest.raises(UserError, match=r"no checkpoint of step 99; there are 10, 15"):
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
