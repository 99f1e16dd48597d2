"""Headless Chromium, driven over its pipe: evaluates expressions in a page."""

import json
import os
import shutil
import subprocess
import time

CHROMIUM = next(filter(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')), None)


class Browser:
    """A page in a browser of its own; a context manager.

    Args:
      folder: for its profile; new.
      microphone: WAV file that its microphone hears once, from when it is opened.
    """

    def __init__(self, folder, *, microphone):
        flags = [
            '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run',
            '--remote-debugging-pipe', f'--user-data-dir={folder}',
            '--autoplay-policy=no-user-gesture-required', '--use-fake-ui-for-media-stream',
            '--use-fake-device-for-media-stream',
            f'--use-file-for-fake-audio-capture={microphone}%noloop',
        ]  # fmt: skip

        to_browser, from_browser = os.pipe(), os.pipe()
        self.process = subprocess.Popen(  # the browser reads from 3 and writes to 4
            ['bash', '-c', f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}', 'bash']
            + [CHROMIUM, *flags, 'about:blank'],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.to, self.out, self.number, self.session, self.rest = (
            to_browser[1], from_browser[0], 0, None, b''
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        os.close(self.to)
        os.close(self.out)

    def command(self, method, **params):
        """One command of the DevTools protocol; returns its result."""
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        os.write(self.to, json.dumps(message).encode() + b'\0')
        while True:
            while b'\0' not in self.rest:
                more = os.read(self.out, 1 << 16)
                if not more:
                    raise RuntimeError('the browser ended')
                self.rest += more
            answer, self.rest = self.rest.split(b'\0', 1)
            answer = json.loads(answer)
            if answer.get('id') == self.number:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']

    def open(self, address):
        """Loads a page."""
        target = self.command('Target.createTarget', url=address)['targetId']
        attached = self.command('Target.attachToTarget', targetId=target, flatten=True)
        self.session = attached['sessionId']

    def evaluate(self, expression):
        """The value of a JavaScript expression, a promise's when it has one."""
        answer = self.command(
            'Runtime.evaluate',
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if 'exceptionDetails' in answer:
            raise RuntimeError(json.dumps(answer['exceptionDetails'])[:2000])
        return answer['result'].get('value')

    def wait(self, expression, *, seconds=30.0):
        """Waits until an expression is true; returns its value."""
        until = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > until:
                raise TimeoutError(f'{expression} was not true in {seconds} s')
            time.sleep(0.1)
        return value
