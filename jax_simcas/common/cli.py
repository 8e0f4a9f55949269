"""What all programs share: one-line errors, exit codes, a compilation cache, and a quiet start."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict

from jax_simcas.common.errors import UserError

EXIT_ERROR = 1  # a UserError: nothing useful came out
EXIT_INTERRUPTED = 130  # Ctrl-C


def fail(message: str) -> int:
    """Prints `error: message` in one line to standard error and gives the exit code."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return EXIT_ERROR


def guarded(run: Callable[[], int]) -> int:
    """Runs a program's body; what the user can mend becomes one line, never a traceback."""
    try:
        return run()
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output went away (`| head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def prepare() -> None:
    """Call before the first computation: the persistent compilation cache, and libraries that talk less."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for name in ("absl", "jax", "orbax", "transformers", "grain", "gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax|grain|transformers|jax")
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_dir() / "compiled")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_dir() -> Path:
    """Where tokenizers, unpacked data and compiled programs are kept: JAX_SIMCAS_CACHE or ~/.cache/jax_simcas."""
    named = os.environ.get("JAX_SIMCAS_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_simcas"


def parser(program: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends in examples."""
    return argparse.ArgumentParser(
        prog=f"python -m jax_simcas.{program}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parser, with its errors (and those of the config file) in one line."""
    from absl import flags

    try:
        rest = flags.FLAGS(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        sys.exit(fail(_last_line(error)))
    if rest[1:]:
        sys.exit(fail(f"unexpected argument {rest[1]!r}; see --help"))
    return rest


def with_overrides(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """argparse's flags, and as `overrides` those of the form --config.FIELD=VALUE."""
    arguments, overrides = parser.parse_known_args(argv)
    arguments.overrides = overrides
    unknown = [flag for flag in arguments.overrides if not (flag.startswith("--config.") and "=" in flag)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; a setting is changed by --config.FIELD=VALUE")
    return arguments


def override(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """`config` with its fields changed by flags of the form --config.FIELD=VALUE; the last one counts.

    Raises:
      UserError: no such field, or not a value for it.
    """
    from absl import flags
    from ml_collections import config_flags

    for change in changes:
        place: Any = config
        field = change.removeprefix("--config.").partition("=")[0]
        for part in field.split("."):
            if not isinstance(place, ConfigDict) or part not in place:
                raise UserError(f"--config.{field}: no such field")
            place = place[part]
    values, argv = flags.FlagValues(), ["", *changes]
    config = copy.deepcopy(config)
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_last_line(error)) from None
    return holder.value


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def positive(text: str) -> int:
    """A flag's value: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 1")
    return value


def names(text: str) -> list[str]:
    """A flag's value: names between commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
