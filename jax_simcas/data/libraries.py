"""The data libraries: found or asked for, and their errors in one line."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

from jax_simcas.common.errors import UserError

SAFE_DATASETS = 4  # older ones have scripts, which come with data
REASON = 300  # characters of a library's message


def library(name: str, needed_by: str) -> Any:
    """The imported library.

    Raises:
      UserError: it is missing, or a version that may run code of data.
    """
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{needed_by} needs {error.name or name}: pip install 'jax_simcas[data]'") from None
    if name == "datasets" and int(found.__version__.split(".")[0]) < SAFE_DATASETS:
        raise UserError(
            f"{needed_by} needs datasets {SAFE_DATASETS} or newer, as {found.__version__} may run code that comes "
            "with data: pip install 'jax_simcas[data]'"
        )
    return found


@contextlib.contextmanager
def one_line(what: str, remedy: str) -> Iterator[None]:
    """Turns any error of a library into one line: what failed, the library's reason, the remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the libraries raise anything, from KeyError to pyarrow's own
        raise UserError(f"{what}: {innermost_reason(error)}; {remedy}") from None


def innermost_reason(error: BaseException) -> str:
    """An error's innermost reason in one line of a readable length."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= REASON else text[: REASON - 3] + "..."


@contextlib.contextmanager
def silent(name: str) -> Iterator[None]:
    """Without the messages that a library logs beside the error that it raises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
