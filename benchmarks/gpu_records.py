"""Rows of a measurement in a file that a second call continues."""

import json
import shlex
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
        here = environment(device) | more | {"command": shlex.join(["python", *sys.argv])}
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


class Deadline:
    """The moment at which a program must have ended."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds

    def left(self):
        """Seconds until then."""
        return self._end - time.monotonic()
