"""Settings as users give them: a config by name or file, --config.FIELD=VALUE, and flags that stand for a field."""

from __future__ import annotations

import copy
import functools
import importlib.util
import operator
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict

import jax_simcas
from jax_simcas.common.errors import FlagError, UserError
from jax_simcas.run import config as config_lib
from jax_simcas.run import fields
from jax_simcas.run.config import Settings
from jax_simcas.run.method_config import policy_of
from jax_simcas.run.overrides import overrides_of, unused_budget
from jax_simcas.run.workdir import CONFIG

EXPERIMENTS = "experiments"  # the folder of experiments among the configs


def folder() -> Path:
    """The configs that come with the project: within the installed package, or beside it in a checkout."""
    package = Path(jax_simcas.__file__).parent
    return next((path for path in (package / "configs", package.parent / "configs") if path.is_dir()), package)


def find_config(name: str, flag: str, where: Path | None = None) -> Path:
    """The file of a config: a path, or the name of one of ours such as `embedded`.

    Raises:
      FlagError: no config of ours has this name. UserError: no such file; both name the flag.
    """
    where = where or folder()
    path, ours = Path(name), where / f"{name}.py"
    if path.is_file():
        return path
    known = sorted(file.stem for file in where.glob("*.py"))
    if path.name == name and not path.suffix:
        if ours.is_file():
            return ours
        raise FlagError(f"{flag}={name}: no config of this name; there are {', '.join(known)}, or give a file")
    if path.is_dir():
        hint = f", such as {path / CONFIG}" if (path / CONFIG).is_file() else ""
        raise UserError(f"{flag}={name}: a folder; give a file in it{hint}")
    hint = f"; the one that comes with jax_simcas is {flag}={path.stem}" if path.stem in known else ""
    raise UserError(f"{flag}={name}: no such file{hint}")


@contextmanager
def errors_of(path: str | Path) -> Iterator[None]:
    """Turns whatever a user's Python file raises into a UserError that names the file and the line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}:{error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:  # it is the user's file: anything may go wrong in it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f":{lines[-1]}" if lines else ""
        raise UserError(f"{path}{line}: {type(error).__name__}: {error}") from None


def load_module(path: Path) -> Any:
    """The module of a user's Python file.

    Raises:
      UserError: the file cannot be read, or its code raises.
    """
    spec = importlib.util.spec_from_loader("config", importlib.machinery.SourceFileLoader("config", str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with errors_of(path):
            spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


def read_config(name: str, flag: str = "--config", where: Path | None = None) -> ConfigDict:
    """What `get_config` of a config returns; `NAME:ARGUMENT` is passed on to it; or a run's config.json.

    Raises:
      UserError: no such config, one that cannot be run, or that returns something else.
    """
    name, colon, argument = name.partition(":")
    path = find_config(name, flag, where)
    if path.suffix == ".json":
        return config_lib.to_config(config_lib.read_json(path))
    module = load_module(path)
    if not hasattr(module, "get_config"):
        what = "it is an experiment without a config of its own" if hasattr(module, "get_experiment") else "a config"
        raise UserError(f"{path}: no function get_config(), which returns the config; {what} needs one")
    with errors_of(path):
        config = module.get_config(*([argument] if colon else []))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {type(config).__name__}, expected an ml_collections ConfigDict such as "
            "jax_simcas.run.config.default_config()"
        )
    return config


def override(config: ConfigDict, changes: Sequence[tuple[str, str]]) -> ConfigDict:
    """A copy of `config` with fields changed, in order; the last one counts.

    Single numbers for a tuple add up: --config.data.chunk_buckets=8 --config.data.chunk_buckets=32 is (8, 32).

    Raises:
      UserError: no such field, or not a value for it.
    """
    config = copy.deepcopy(config)
    single: dict[str, tuple] = {}
    for name, text in changes:
        hint = fields.hint_of(Settings, name, "--config")
        value = fields.parse(hint, text, f"--config.{name}")
        if isinstance(value, tuple) and text.strip().isdecimal():
            value = single[name] = (*single.get(name, ()), *value)
        else:
            single.pop(name, None)
        *sections, leaf = name.split(".")
        place = config
        for section in sections:
            if section not in place:
                with place.unlocked():
                    place[section] = ConfigDict()
            place = place[section]
        with place.unlocked(), place.ignore_type():
            place[leaf] = value
    given = dict(changes)
    if given.get("loop.steps", "None") != "None" and "loop.epochs" not in given and config.loop.get("epochs"):
        config.loop.epochs = 0  # which the file sets, and which would count
    return config


def settings_of(arguments: Any) -> Settings:
    """The checked settings of a program's --config and --config.FIELD flags.

    Raises:
      UserError: names file, field or flag.
    """
    changed = {name for name, _ in arguments.changes}
    config = override(read_config(arguments.config), arguments.changes)
    try:
        return config_lib.from_config(config)
    except UserError as error:
        raise UserError(_reworded(str(error), changed, f"{arguments.config}: config.")) from None


def _reworded(message: str, flags: set[str], instead: str) -> str:
    """The message with what a flag gave named as the flag, anything else as of the config."""
    name = message.removeprefix("config.").partition("=")[0]
    return message.replace("config.", "--config." if name in flags else instead, 1)


def named_by(arguments: Any) -> set[str]:
    """The settings that a program's flags change; none without arguments."""
    if arguments is None:
        return set()
    return {*overrides_of(arguments), *(name for name, _ in getattr(arguments, "changes", ()))}


def with_flags(settings: Settings, arguments: Any, sizes_known: bool = True) -> Settings:
    """A trained model's settings, changed by a program's flags and checked, by default beside the sizes of the model.

    Raises:
      UserError: names the flag.
    """
    flags, changes = overrides_of(arguments), getattr(arguments, "changes", ())
    mapping = override(config_lib.to_config(settings), changes).to_dict()
    family = settings.family
    for name in settings.backbone_config.sizes:
        given = functools.reduce(dict.__getitem__, name.split("."), mapping[family])
        trained = operator.attrgetter(name)(settings.backbone_config)
        if given != trained:
            raise UserError(
                f"--config.{family}.{name}={given!r}: the trained model has {trained!r}, which cannot be changed"
            )
    for name, (_, value) in flags.items():
        section, leaf = name.split(".")
        mapping[section][leaf] = value
    names = {name: f"--config.{name}" for name, _ in changes} | {name: flag for name, (flag, _) in flags.items()}
    generate = mapping["generate"]
    if "generate.max_length" in names and "generate.min_length" not in names and generate["min_length"]:
        generate["min_length"] = min(generate["min_length"], generate["max_length"])  # as transformers has it
    try:
        changed = config_lib.check(config_lib.from_mapping(mapping, "config"), sizes_known=sizes_known)
    except UserError as error:
        raise UserError(_named_as_flags(str(error), names)) from None
    _check_budget(changed, arguments, "simcas.budget" in names)
    return changed


def _named_as_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message with each field that a flag gave, by its full name or its last part, named as that flag."""
    for name, flag in flags.items():
        leaf = name.rpartition(".")[2]
        message = re.sub(rf"(?<![\w.-])(config\.{re.escape(name)}|{leaf})(?==)", flag, message)
    return message


def _check_budget(settings: Settings, arguments: Any, is_given: bool) -> None:
    """Raises UserError if a flag gives a budget that the policy, of a flag or of the model's settings, does not use."""
    policy = getattr(arguments, "policy", None) or settings.simcas.policy
    budget = settings.simcas.budget
    if is_given and budget is not None and not policy_of(policy, "--policy").budgeted:
        raise UserError(unused_budget(arguments, budget, policy))
