"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one line that names the file or option and says what to do about it.

    The command line prints it as ``error: ...`` and exits with status 2, without a traceback.
    """
