"""Progress of a long run: a bar on a terminal, a line every half minute elsewhere."""

import sys
import time

import tqdm


class Progress:
    """Shows steps done, rate, loss, accuracy and time left on stderr.

    Args:
      name: what runs.
      total: steps of the whole run.
      done: steps done before this start; they do not count for the rate.
      enabled: False shows nothing.
      every: seconds between lines where stderr is no terminal.
      stream: where to, if not stderr.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int,
        *,
        enabled: bool = True,
        every: float = 30.0,
        stream=None,
    ):
        self._stream = stream or sys.stderr
        self._name, self._total, self._every = name, total, every
        self._done, self._since = done, time.monotonic()
        self._warm = False
        self._printed = -float('inf')
        self._enabled = enabled
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=done,
                desc=name,
                unit='step',
                file=self._stream,
                dynamic_ncols=True,
            )

    def update(self, step: int, shown: dict[str, float]):
        """Shows that `step` steps are done, with the values of `shown`."""
        if not self._enabled:
            return
        text = {name: f'{value:.4f}' for name, value in shown.items()}
        if self._bar is not None:
            self._bar.set_postfix(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._printed < self._every and step < self._total:
            return
        self._printed = now
        rate = (step - self._done) / max(now - self._since, 1e-9)
        left = tqdm.tqdm.format_interval((self._total - step) / rate)
        if not self._warm:  # the first chunk is mostly compilation
            self._warm, self._done, self._since, left = True, step, now, '?'
        values = ''.join(f', {name} {value}' for name, value in text.items())
        self.say(f'{step}/{self._total} steps, {rate:.2f} step/s{values}, {left} left')

    def say(self, message: str):
        """Prints a line of its own."""
        if self._bar is not None:
            self._bar.write(f'{self._name}: {message}', file=self._stream)
        elif self._enabled:
            print(f'{self._name}: {message}', file=self._stream, flush=True)

    def close(self):
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
