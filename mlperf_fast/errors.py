"""The one exception for what a user can mend: it is shown without a traceback and ends a command with exit code 2."""


class UserError(ValueError):
    """A wrong argument, file or environment. The message says what was expected, what was found and what to do."""
