"""The errors that reach a user: what was wrong with what they gave us.

Knows nothing of guests: a guest's misbehaviour is never an exception here, it becomes an injected event or a stop.
"""


class InputError(Exception):
    """Bad input from the user: a file, an option, a combination.

    The message is one line, "NAME: reason", where NAME is the file or option at fault. The command line prints it and
    exits with status 2; nothing has been written by then.
    """
