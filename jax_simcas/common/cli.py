"""What all programs share: flags, exit codes, errors in one line, a compilation cache, and a quiet start.

Flags are argparse's. `with_config` adds those of the form --config.FIELD=VALUE, which change a setting; those that
stand for one, such as --num-beams, are in run/overrides.py. Nothing here imports a package: --help answers at once.

Exit codes, of every program: 0 done; 1 an error, one line on standard error that begins with `error:`; 2 wrong flags,
one such line; 130 Ctrl-C. A flag is wrong if its value is so by itself or beside the other flags; what files, a model
or its settings do not allow is an error. A reader that closes standard output (`| head`) ends a program with 1 and no
line. What a program adds to these stands in its --help.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax_simcas
from jax_simcas.common.checks import LARGEST, LARGEST_SEED
from jax_simcas.common.errors import FlagError, UserError

EXIT_ERROR = 1  # a UserError, printed as one line
EXIT_USAGE = 2  # wrong flags
EXIT_STOPPED = 75  # BSD's EX_TEMPFAIL: SIGTERM, and the same command resumes
EXIT_INTERRUPTED = 130  # Ctrl-C
EXITS = "0 done; 1 error (one line on stderr); 2 wrong flags; 130 Ctrl-C"
INSTALL = "activate the environment that has it (. .venv/bin/activate) or install what is needed (pip install -e .)"


def fail(message: str) -> int:
    """Prints `error: message` in one line to standard error and gives the exit code."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return EXIT_ERROR


def guarded(run: Callable[[], int]) -> int:
    """Runs the body of a program; prints a UserError as one line instead of a traceback."""
    try:
        return run()
    except FlagError as error:
        fail(str(error))
        return EXIT_USAGE
    except UserError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "jax_simcas").partition(".")[0]
        if package == "jax_simcas":
            raise
        return fail(f"the Python package {package!r} is not installed in {sys.executable}: {INSTALL}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output is gone (`| head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


PACKAGE = Path(__file__).parents[1]
_USUAL_FORMAT = warnings.formatwarning


def prepare_jax() -> None:
    """Call before the first computation: the persistent compilation cache, and libraries that talk less."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("absl", "jax", "orbax", "transformers", "grain", "gcsfs", "fsspec", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # orbax writes in tasks of which it drops some; one that failed would be a traceback after our line about it.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(orbax|grain|transformers|jax)(\.|$)")
    warnings.formatwarning = _format_warning
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm in a notebook without widgets
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_dir() / "compiled")
    jax.config.update("jax_compilation_cache_dir", cache)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One line for a warning of ours, without the place in the code."""
    if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
        return f"warning: {message}\n"
    return _USUAL_FORMAT(message, category, filename, lineno, line)


def cache_dir() -> Path:
    """Where tokenizers, unpacked data and compiled programs are kept: JAX_SIMCAS_CACHE or ~/.cache/jax_simcas."""
    named = os.environ.get("JAX_SIMCAS_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_simcas"


class Parser(argparse.ArgumentParser):
    """argparse's parser with errors in one line; a single dash before a long name does, as with absl."""

    takes_config = False
    intermixed = False  # flags may stand between two arguments of which the second may be left out

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rules: list[Callable[[Any], str]] = []  # of flags together: what is wrong with them, or ""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.intermixed:
            given = [self._with_two_dashes(argument) for argument in (sys.argv[1:] if args is None else args)]
            arguments = super().parse_intermixed_args(given, namespace)
        else:
            arguments = super().parse_args(args, namespace)
        for problem in filter(None, (rule(arguments) for rule in self.rules)):
            self.error(problem)
        return arguments

    def error(self, message: str) -> NoReturn:
        fail(f"{message.removeprefix('argument ')}; see --help")
        sys.exit(EXIT_USAGE)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = [self._with_two_dashes(argument) for argument in (sys.argv[1:] if args is None else args)]
        changes: list[tuple[str, str]] = []
        if self.takes_config:
            given, changes = split_changes(given)
        namespace = argparse.Namespace(changes=changes) if namespace is None else namespace
        return super().parse_known_args(given, namespace)

    def _with_two_dashes(self, argument: str) -> str:
        name = argument.partition("=")[0]
        long = re.fullmatch(r"-[a-z][\w-]+", name) and f"-{name}" in self._option_string_actions
        return f"-{argument}" if long else argument


def parser(program: str, description: str, examples: str, exits: str = EXITS) -> Parser:
    """A parser whose help ends in examples and exit codes."""
    made = Parser(
        prog=f"python -m jax_simcas.{program}",
        description=description,
        epilog=f"examples:\n{examples}\nexit codes: {exits}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --config would stand for the --config.FIELD of programs without a --config
    )
    made.add_argument("--version", action="version", version=f"jax_simcas {jax_simcas.__version__}")
    return made


CHANGE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def split_changes(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes the settings' flags out: the other arguments, and (field, value as text) in order.

    --config.FIELD=VALUE and --config.FIELD VALUE; --config.FIELD alone is True, --noconfig.FIELD False.
    """
    rest: list[str] = []
    changes: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            return [*rest, argument, *queue], changes
        found = CHANGE.fullmatch(argument)
        if not found:
            rest.append(argument)
            continue
        negated, field, value = found.groups()
        if value is None:
            is_flag = bool(negated) or not queue or re.match(r"--?[A-Za-z]|--$", queue[0])
            value = str(not negated) if is_flag else queue.pop(0)
        changes.append((field, value))
    return rest, changes


def with_config(made: Parser, file: bool = False) -> Parser:
    """Lets the parser take --config.FIELD=VALUE, as `changes`; with `file` also --config, a config to start from."""
    made.takes_config = True
    group = made.add_argument_group("settings")
    if file:
        group.add_argument("--config", required=True, metavar="NAME-or-FILE", help="a config: NAME of ours, or a file")
    group.add_argument(
        "--config.FIELD", dest="_field", metavar="VALUE", help="changes a setting; WORKDIR/config.json has them all"
    )
    return made


def add_distributed(made: Parser) -> None:
    """Adds --distributed."""
    made.add_argument("--distributed", default="", help="one of several processes: auto, or HOST:PORT,COUNT,INDEX")


def main(made: Parser, run: Callable[[Any], int], argv: Sequence[str] | None) -> int:
    """Reads the flags and runs a program's body, guarded."""
    arguments = made.parse_args(argv)
    return guarded(lambda: run(arguments))


def number(kind: type[int] | type[float], least: int | float | None = None) -> Callable[[str], Any]:
    """A flag's type: a whole or a finite number, of at least `least`."""
    what = "a whole number" if kind is int else "a number"
    expected = f"{what} of at most {LARGEST}" if least is None else f"{what} from {least:g} to {LARGEST}"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None
        if not abs(value) <= LARGEST or (least is not None and value < least):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return value

    return parse


positive = number(int, 1)
natural = number(int, 0)


def none_or(least: int) -> Callable[[str], int]:
    """A flag's type: 0 for the default, or a whole number of at least `least`."""

    def parse(text: str) -> int:
        value = natural(text)
        if 0 < value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or a whole number of at least {least}")
        return value

    return parse


def seed(text: str) -> int:
    """A flag's type: a seed of random draws."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def text(text: str) -> str:
    """A flag's type: any text but none."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected some text")
    return text


def output_file(*suffixes: str) -> Callable[[str], str]:
    """A flag's type: a file to write, of a kind that its suffix must not contradict."""

    def parse(given: str) -> str:
        suffix = Path(text(given)).suffix.lower()
        if suffix and suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{given!r}: expected a file that ends in {' or '.join(suffixes)}")
        return given

    return parse


def step(text: str) -> int | str:
    """A flag's type: which checkpoint, best, latest or a number."""
    if text not in ("best", "latest") and not (text.isdecimal() and int(text) <= LARGEST):
        raise argparse.ArgumentTypeError(f"{text!r}: expected best, latest or a number")
    return int(text) if text.isdecimal() else text


def numbers(least: int, count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """A flag's type: whole numbers between commas."""
    one = number(int, least)

    def parse(text: str) -> tuple[int, ...]:
        values = tuple(one(part.strip()) for part in text.split(","))
        if count is not None and len(values) != count:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {count} numbers between commas")
        return values

    return parse


def seeds(text: str) -> tuple[int, ...]:
    """A flag's type: seeds between commas, each once."""
    values = tuple(seed(part.strip()) for part in text.split(","))
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r}: expected seeds that differ")
    return values


def names(text: str) -> list[str]:
    """A flag's type: names between commas, each once."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected names between commas")
    return found


def some_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A flag's type: some of the allowed names, between commas."""

    def parse(text: str) -> list[str]:
        given = names(text)
        wrong = [name for name in given if name not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(allowed)}")
        return given

    return parse


def one_of(allowed: Sequence[str], or_own: bool = False) -> Callable[[str], str]:
    """A flag's type: one of the allowed names or, with `or_own`, `package.module:name` of the user's own."""
    expected = f"one of {', '.join(allowed)}" + (", or package.module:name" if or_own else "")

    def parse(text: str) -> str:
        if text not in allowed and not (or_own and re.fullmatch(r"[^:\s]+:[^:\s]+", text)):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return text

    return parse
