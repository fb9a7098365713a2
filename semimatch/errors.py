"""Errors that a user can mend: the command line prints them in one line, without a traceback."""


class UserError(ValueError):
    """Something handed in is wrong; the message names it, what it was and what was expected."""


class Interrupted(Exception):
    """Training was stopped by the user; its state is saved."""
