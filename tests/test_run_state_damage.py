"""Training checkpoints that are damaged: the one before is restored, never wrong numbers."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from helpers import complaints
from states import assert_same, flip, make_state, remove, restored_step, steps_in, truncate
from states import folder as folder
from states import two_steps as two_steps

from jax_simcas.checkpoints import run_state
from jax_simcas.checkpoints.run_state import Checkpointer, load_params
from jax_simcas.common.errors import UserError


def empty(path: Path) -> None:
    remove(path)
    path.mkdir()


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
    assert complaints(capfd.readouterr().err) == ""


@pytest.mark.parametrize("damage", [remove, truncate])
def test_damaged_array_files_are_skipped(folder, damage, capfd):
    for path in (folder / "2" / "state").rglob("d/*"):
        damage(path)
    assert restored_step(folder)[0] == 1
    assert complaints(capfd.readouterr().err) == ""


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
    assert complaints(capfd.readouterr().err) == ""


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        ValueError("UNAVAILABLE: Error reading gs://b/run"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_fault_of_a_checkpoint_does_not_condemn_it(folder, monkeypatch, error):
    """Skipped, it would be deleted by the next save."""

    def fail(path, *arguments, read=run_state.read_arrays):
        if path.name == "2":
            raise error
        return read(path, *arguments)

    monkeypatch.setattr(run_state, "read_arrays", fail)
    with (
        Checkpointer(folder) as checkpointer,
        pytest.raises(UserError, match=r"copy/2: cannot be read \(.*may be good"),
    ):
        checkpointer.restore(make_state(0))
    with pytest.raises(UserError, match="may be good: run the same command again"):
        load_params(folder, "latest")
    monkeypatch.undo()
    assert restored_step(folder) == (2, ())


def test_unfinished_saves_are_warned_of_and_are_no_checkpoints(tmp_path):
    left = tmp_path / "3.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state(0)) is None
        assert checkpointer.warnings == (f"{left}: skipped, its save never finished",)
        checkpointer.save(3, make_state(3), None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_damaged_step_is_written_again(folder):
    flip(folder / "2" / "meta" / "metadata")
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.restore(make_state(0)).step == 1
        assert checkpointer.latest_step() == checkpointer.best_step() == 1
        checkpointer.save(2, make_state(2), None, {"rows": 4})
        assert checkpointer.latest_step() == 2
    assert restored_step(folder) == (2, ())
