"""`benchmark.damage`: a checkpoint that is damaged anywhere is restored as it was, or the one before it."""

import pytest
from helpers import one_line_error

from jax_simcas.benchmark import damage, damage_runs


@pytest.mark.slow
def test_each_damage_is_harmless_or_recognised(capsys):
    assert damage.main(["--count=80"]) == 0
    out, _ = capsys.readouterr()
    tried, recognised, harmless, faults = (int(cell) for cell in out.splitlines()[-1].split("|")[2:-1])
    assert tried == recognised + harmless and not faults and recognised > 9 and harmless


@pytest.mark.parametrize("kind", damage_runs.DAMAGES)
def test_a_damage_changes_its_region_alone(kind):
    content = bytes(range(1, 101))
    changed = damage_runs.DAMAGES[kind](content, 10, 20, damage_runs.random.Random(0))
    assert changed != content and changed[:10] == content[:10]
    assert kind == "cut off" or changed.endswith(content[20:])


def test_every_byte_is_in_a_region(tmp_path):
    sizes = {"a": 5_000, "b": 7, "c": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    cases = list(damage_runs.cases(tmp_path, 100))
    for name, size in sizes.items():
        for kind in damage_runs.DAMAGES:
            regions = [(case.start, case.end) for case in cases if case.path.name == name and case.damage == kind]
            assert sum(end - start for start, end in regions) == size
        assert sum(case.path.name == name and case.damage == damage_runs.REMOVED for case in cases) == 1
    assert 70 < len(cases) < 140


def test_other_numbers_are_a_fault(tmp_path, monkeypatch, capsys):
    saved = damage_runs.saved

    def others(folder):
        states = saved(folder)
        return states | {damage_runs.NEW: states[damage_runs.OLD]}

    monkeypatch.setattr(damage_runs, "saved", others)
    monkeypatch.setattr(damage_runs, "cases", lambda *_: [damage_runs.Case(tmp_path / "x", "cut off", 0, 1)])
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(damage_runs.Path, "relative_to", lambda path, _: path)
    assert damage.main([]) == 1
    out, err = capsys.readouterr()
    assert "fault: cut off, bytes 0 to 1 of" in out and "the state of step 2 are other numbers" in out
    assert "1 of 1 damages are neither harmless nor recognised" in one_line_error(err)
