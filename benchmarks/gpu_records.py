"""Rows of a measurement in a file that a second call continues."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from gpu_results import environment, write_whole

PASSING = ("date", "command", "products")
"""What may differ between the calls that fill one file."""


class Records:
    """A result file whose rows are known by the values of `keys`; what is there of the same machine and commit is kept.

    A file of another machine, commit or version is moved to NAME.old and reported.
    """

    def __init__(self, path, device, keys, **more):
        self._path, self._keys = Path(path), keys
        here = environment(device) | more | {"command": command()}
        self._content = {"environment": here, "rows": [], "skipped": {}}
        if self._path.exists():
            self._continue(here)
        self.write()

    def _continue(self, here):
        before = json.loads(self._path.read_text())
        changed = [
            name
            for name in here.keys() | before["environment"].keys()
            if name not in PASSING and here.get(name) != before["environment"].get(name)
        ]
        if changed:
            old = self._path.replace(self._path.with_name(self._path.name + ".old"))
            print(f"{self._path} is of another {', '.join(sorted(changed))}: moved to {old}")
        else:
            self._content["rows"] = before["rows"]

    @property
    def environment(self):
        return self._content["environment"]

    @property
    def rows(self):
        return self._content["rows"]

    def find(self, **keys):
        """The row of these values, or None."""
        return next((row for row in self.rows if all(row[key] == keys[key] for key in self._keys)), None)

    def put(self, row):
        """Add a row, or replace the one that has the same keys."""
        before = self.find(**row)
        if before is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(before)] = row
        self.write()

    def skip(self, what, reason):
        """What was not measured, and why."""
        self._content["skipped"][what] = reason
        self.write()

    def write(self):
        write_whole(self._path, self._content)


def command():
    """What was called, without the folders of the machine that it ran on."""
    program, *words = sys.argv
    return shlex.join(
        ["python", f"benchmarks/{Path(program).name}", *(Path(word).name if "/" in word else word for word in words)]
    )


MARGIN = 7
"""Seconds that its processes take to end."""


class TimeUp(BaseException):
    """The time that was given is over; no `except Exception` may take it for a failure of what it interrupts."""


class Deadline:
    """Interrupts what runs inside the `with` shortly before so many seconds are over; the program continues.

    They count from STEP_BEGAN, which `gpu.sh` sets: on a busy machine the imports alone take longer than the margin.
    """

    def __init__(self, seconds):
        began = float(os.environ.get("STEP_BEGAN", time.time()))
        self._end = time.monotonic() + seconds - MARGIN - (time.time() - began)

    def left(self):
        """Seconds until then."""
        return self._end - time.monotonic()

    def __enter__(self):
        signal.signal(signal.SIGALRM, _raise_time_up)
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 0.01))
        return self

    def __exit__(self, kind, *_):
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        return kind is TimeUp


def _raise_time_up(*_):
    raise TimeUp
