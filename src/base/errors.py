"""Errors that the commands print as one line, with exit code 2 (UserError) or 1 (CheckFailed)."""


class UserError(ValueError):
    """A mistake of the user. The message says what is wrong, where, and what was expected."""


class CheckFailed(Exception):
    """A result of the program is wrong or incomplete. The message says which."""


class NotFinite(CheckFailed):
    """A prediction contains NaN or infinity. The message names the picture."""
