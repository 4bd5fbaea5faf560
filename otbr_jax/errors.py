"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input: one line that names the argument or file, what was expected and what was found.

    Launchers print it as their last line and exit with status 2; any other exception is a defect of this project
    and keeps its traceback.
    """
