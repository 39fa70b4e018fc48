"""The base of every mistake that is the user's to mend: the commands print it as one line and exit with 2."""


class UserError(ValueError):
    """What is wrong, where, and what was expected."""
