"""Every setting and every flag, with wrong values of several kinds: one line that names it, and nothing written.

Fields come from the dataclasses and flags from the parsers, so that new ones are covered by themselves.
"""

import importlib
import json
import math
import types
import typing

import pytest

from jax_simcas import train
from jax_simcas.__main__ import PROGRAMS
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError
from jax_simcas.run import config as config_lib
from jax_simcas.run import config_file, loop, overrides
from jax_simcas.run.config import Settings
from jax_simcas.run.fields import all_fields

FIELDS = dict(all_fields(Settings))
BASE = config_lib.to_json(config_lib.from_config(config_file.read_config("embedded")))
TEXTS = ("", "many", "-1", "0", "1.5", "nan", "-inf", "1e400", "None", "True", "(1.5,8)", "(0,)", "{}", "9" * 30)
VALUES = (None, True, "many", "", 1.5, -1, 0, math.nan, math.inf, 10**30, -(10**30), [], [1.5], ["x"], {}, {"x": 1})
NO_NUMBER = ("", "many", "nan", "-inf", "1e400", "None", "True", "(1.5,8)", "(0,)", "{}")  # as flags have them


def kinds_of(hint):
    """The types that a field may have."""
    return set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {typing.get_origin(hint) or hint}


def is_wrong_text(hint, text):
    """Texts that stand for no value of the type."""
    kinds = kinds_of(hint)
    if (text == "None" and type(None) in kinds) or str in kinds:
        return False
    whole, number = (
        text.lstrip("-").isdecimal(),
        text not in NO_NUMBER and text not in ("None", "True", "(1.5,8)", "(0,)"),
    )
    if bool in kinds:
        return text not in ("0", "True")
    return (int in kinds and not whole) or (float in kinds and not number)


def is_wrong_value(hint, value):
    """Values of another type than the field's."""
    kinds = kinds_of(hint)
    if isinstance(value, bool):
        return bool not in kinds
    if isinstance(value, int):
        return not kinds & {int, float} or abs(value) > 2**40
    if isinstance(value, float):
        return float not in kinds or not math.isfinite(value)
    if isinstance(value, list):
        return tuple not in kinds or value != []
    return type(value) not in kinds


@pytest.fixture
def accepted(monkeypatch, tmp_path):
    """What programs would have run, had nothing been wrong; they run in an empty folder."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda settings, *_: calls.append(settings) or loop.Outcome(1, {}, False))
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    embedded = config_file.read_config("embedded")
    monkeypatch.setattr(config_file, "read_config", lambda *_: embedded)
    monkeypatch.chdir(tmp_path)
    return calls


def run(main, arguments, capsys):
    """(exit code, standard error) of a program."""
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    return code, capsys.readouterr().err


def assert_one_line(code, err, names, folder):
    assert code in (1, 2), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert any(name in err for name in names), (names, err)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_of_a_setting_are_one_line(name, accepted, capsys, tmp_path):
    leaf = name.rpartition(".")[2]
    for text in TEXTS:
        accepted.clear()
        flags = ["--config=embedded", "--workdir=run", f"--config.{name}={text}"]
        code, err = run(train.main, flags, capsys)
        assert not (accepted and is_wrong_text(FIELDS[name], text)), text
        if accepted:
            assert (code, err) == (0, "")
        else:
            assert_one_line(code, err, [leaf], tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_in_a_file_are_one_line(name):
    *sections, leaf = name.split(".")
    for value in VALUES:
        mapping = json.loads(BASE)
        place = mapping
        for section in sections:
            place = place[section]
        place[leaf] = value
        try:
            config_lib.check(config_lib.from_mapping(mapping, "config"))
        except UserError as error:
            assert leaf in str(error) and "\n" not in str(error)
        else:
            assert not is_wrong_value(FIELDS[name], value), value


@pytest.mark.parametrize("name", [*FIELDS, "data", "optimizer.ppo"])
def test_misspelt_settings_are_one_line(name, accepted, capsys, tmp_path):
    for wrong in (f"{name}z", f"{name}.more", f"x{name}", name.replace("_", "") + "_", name.upper()):
        flags = ["--config=embedded", "--workdir=run", f"--config.{wrong}=1"]
        code, err = run(train.main, flags, capsys)
        assert not accepted
        assert_one_line(code, err, [f"error: --config.{wrong.split('.')[0]}"], tmp_path)


def programs():
    for name, (module, _) in PROGRAMS.items():
        yield name, importlib.import_module(f"jax_simcas.{module}")


def valued(made):
    """The flags of a parser that take a value, by name."""
    return {
        action.option_strings[-1]: action for action in made._actions if action.option_strings and action.nargs != 0
    }


def required_of(made):
    """The least that a parser accepts."""
    flags = {"config": "embedded", "topology": "v5e:1x1", "to": "hf"}
    positional = [action.metavar or action.dest for action in made._actions if not action.option_strings]
    given = [f"--{a.dest}={flags.get(a.dest, 'nowhere')}" for a in made._actions if a.option_strings and a.required]
    groups = [group._group_actions[0].dest for group in made._mutually_exclusive_groups if group.required]
    return [*given, *(f"--{name}=nowhere" for name in groups), *("nowhere" for name in positional if name != "FILE")]


EVERY_FLAG = [
    pytest.param(module, flag, id=f"{name}{flag}")
    for name, module in programs()
    for flag in valued(module.parser())
    if flag not in ("--config.FIELD", "--compare")
]


@pytest.mark.parametrize(("module", "flag"), EVERY_FLAG)
def test_wrong_values_of_a_flag_are_one_line(module, flag, monkeypatch, capsys, tmp_path):
    """What the parser takes, the program would be run with: the tests of settings and programs go on from there."""
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(module, "run", lambda arguments: taken.append(arguments) or 0)
    action = valued(module.parser())[flag]
    for text in TEXTS:
        taken.clear()
        code, err = run(module.main, [*required_of(module.parser()), f"{flag}={text}"], capsys)
        if not taken:
            assert_one_line(code, err, [flag], tmp_path)
            assert code == 2
        elif action.type not in (None, cli.text):
            value = getattr(taken[0], action.dest)
            assert text not in ("", "nan", "-inf", "1e400", "9" * 30) or isinstance(value, list | str)


@pytest.mark.parametrize(("name", "module"), list(programs()), ids=list(PROGRAMS))
def test_unknown_flags_are_one_line(name, module, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "run", lambda arguments: pytest.fail("it ran"))
    for flag in valued(module.parser()):
        if flag != "--config.FIELD":
            code, err = run(module.main, [*required_of(module.parser()), f"{flag}z=1"], capsys)
            assert_one_line(code, err, [f"{flag}z"], tmp_path)
            assert code == 2


@pytest.mark.parametrize("flag", overrides.OVERRIDES)
def test_flags_that_stand_for_a_setting_change_it_or_are_one_line(flag):
    override = overrides.OVERRIDES[flag]
    settings = config_file.settings_of(types.SimpleNamespace(config="embedded", changes=[]))
    for value in ("x", 0, 1, 2, 10, 10**6, 2**31 - 1, -1, 1e30):
        try:
            changed = config_file.with_flags(settings, types.SimpleNamespace(**{override.field: value}))
        except UserError as error:
            assert flag in str(error) or override.field.rpartition(".")[2] in str(error)
            assert "\n" not in str(error)
        else:
            section, leaf = override.field.split(".")
            assert getattr(getattr(changed, section), leaf) == value
