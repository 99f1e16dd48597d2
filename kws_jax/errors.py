"""What ends a run with a message instead of a traceback."""


class RunError(Exception):
    """A run cannot go on, for a reason that its user can see and put right."""
