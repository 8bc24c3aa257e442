"""Long commands that need one core and no attention: begun when a session of tests begins, looked at when it ends.

A test module with a ``BACKGROUND`` is moved to the end of the session. Its commands run one after another, at a low
priority, in what time the other tests leave: most of these wait for processes of their own now and then.
"""

import os
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Command:
    """What to run, and with which variables beside the environment's."""

    arguments: list
    environment: dict = field(default_factory=dict)


class Background:
    """Runs its commands in order.

    Args:
        commands: by name.
    """

    def __init__(self, commands):
        self._commands = commands
        self._done = {name: threading.Event() for name in commands}
        self._outcome = dict.fromkeys(commands, (1, "the session ended before"))
        self._process = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()

    def result(self, name):
        """Wait for a command; return its exit status and what it printed."""
        self._done[name].wait()
        return self._outcome[name]

    def end(self):
        """Stop what still runs."""
        self._ended = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self):
        for name, command in self._commands.items():
            if not self._ended:
                self._process = subprocess.Popen(
                    ["nice", "-n", "5", *map(str, command.arguments)],
                    cwd=ROOT,
                    env=os.environ | command.environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                output, _ = self._process.communicate()
                self._outcome[name] = (self._process.returncode, output)
            self._done[name].set()
