"""The one exception that means: the input is at fault, not the program."""


class InputError(ValueError):
    """Raised for input that cannot be used; its text is one sentence that says what, where and what to do.

    The ``hsq`` command prints the text alone and exits with code 2.
    """
