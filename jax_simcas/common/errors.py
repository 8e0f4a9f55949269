"""The one exception that programs turn into a one-line message, and what keeps such a line short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1_000  # characters of a message


class UserError(Exception):
    """Something the user can fix: names the file, field or flag, what was given and what was expected.

    Of a long message, such as one with a whole document in place of a number, the middle is left out.
    """

    def __init__(self, message: str = "") -> None:
        long = len(message) > LONGEST
        super().__init__(f"{message[: 2 * LONGEST // 3]} ... {message[-LONGEST // 4 :]}" if long else message)


class FlagError(UserError):
    """A flag's value that is wrong whatever files and settings there are: the exit code is that of wrong flags."""


class NoSuchModel(UserError):
    """The name of a model that is no folder here, nor to be had from the hub."""


@contextmanager
def prefixed(prefix: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Puts `prefix` before the message of a UserError: functions below the programs do not know the flag."""
    try:
        yield
    except kind as error:
        raise type(error)(f"{prefix}{error}") from None


def first_of(problems: list[str], limit: int = 3) -> str:
    """The first problems of many, and how many more there are: for one line that people read."""
    more = [f"{len(problems) - limit} more"] if len(problems) > limit else []
    return "; ".join(problems[:limit] + more)


def first_line(error: BaseException) -> str:
    """The first line of another library's error; its kind if it says nothing; of the system's, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """The kind and the first line of another library's error."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
