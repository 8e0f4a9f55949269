"""The one exception that programs turn into a one-line message."""


class UserError(Exception):
    """Something the user can fix: names the file, field or flag, what was given and what was expected."""
