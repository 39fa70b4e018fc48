"""The two errors that the commands print as one line: exit code 2 for the user's mistake, 1 for a failed check."""


class UserError(ValueError):
    """What is wrong, where, and what was expected."""


class CheckFailed(Exception):
    """The program's own result did not pass its own check."""


class NotFinite(CheckFailed):
    """A net's prediction is NaN or infinite somewhere. The message names the picture."""
