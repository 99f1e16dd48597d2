"""Leaving a run in good order when it is told to stop."""

import signal
import threading
from collections.abc import Callable

from absl import logging


class Stop:
    """Context that turns SIGTERM and the first Ctrl-C into a flag; `check` saves and leaves if it
    is up.

    A second Ctrl-C raises at once. Handlers that were there before return at the end.
    """

    def __init__(self):
        self._number, self._before = None, {}

    def __enter__(self):
        if (
            threading.current_thread() is threading.main_thread()
        ):  # signals are handled nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        if number == signal.SIGINT and self._number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = number

    def check(self, save: Callable[[], None]):
        """Returns at once if no signal came; else calls `save` and leaves.

        Raises:
          SystemExit: with status 0, after SIGTERM.
          KeyboardInterrupt: after Ctrl-C.
        """
        if self._number is None:
            return
        save()
        logging.warning(
            'stopped by %s, state saved; the same command continues',
            signal.Signals(self._number).name,
        )
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)
