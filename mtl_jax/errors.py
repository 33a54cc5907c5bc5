"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the thing and the remedy.

    The command line prints it on standard error and exits with status 2; from
    Python it is an ordinary exception.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
