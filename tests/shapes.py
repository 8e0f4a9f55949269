"""What checks the annotations of shapes and types while tests run."""

from beartype import beartype


def checked(function):
    """`function` with its annotations checked, unless another function makes it anew with each call.

    What takes milliseconds once for a module would take them every time.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)
