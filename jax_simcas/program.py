"""What all programs share: one-line errors, exit codes, a compilation cache, and a quiet start."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from jax_simcas.errors import UserError

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
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        sys.exit(fail(lines[-1] if lines else repr(error)))
    if rest[1:]:
        sys.exit(fail(f"unexpected argument {rest[1]!r}; see --help"))
    return rest


def make_folder(folder: Path, name: str) -> Path:
    """Creates `folder` and checks that it can be written to.

    Raises:
      UserError: it cannot; `name` is the flag that gave it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{name}={folder}: cannot be written ({error.strerror}); choose another folder") from None
    return folder


def positive(text: str) -> int:
    """A flag's value: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 1")
    return value
