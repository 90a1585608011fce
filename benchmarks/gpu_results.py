"""What the GPU programs share: the machine they ran on, and result files that are whole at every moment.

`gpu.sh` notes by it how its steps ended: python benchmarks/gpu_results.py OUT/steps.json begin|end|missing|show ...
"""

import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "accelerate", "triton", "zuko")


def environment(device):
    """Device, driver, versions, commit and date; ``device`` is "cuda" or "cpu"."""
    import torch

    found = {"device": f"{torch.get_num_threads()} threads, {platform.machine()}", "driver": None}
    if device == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        found = {"device": torch.cuda.get_device_name(), "driver": driver(), "capability": capability}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        **found,
        "kind": device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if is_installed(name)},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def is_installed(name):
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def driver():
    """The driver's version, or None where nvidia-smi is missing."""
    return _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit():
    """The commit that is checked out; VAELIB_COMMIT names that of a copy without a repository."""
    here = str(Path(__file__).parent)
    return os.environ.get("VAELIB_COMMIT") or _first_line("git", "-C", here, "rev-parse", "--short=10", "HEAD")


def _first_line(*command):
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.splitlines()[0] if found.returncode == 0 and found.stdout else None


class Results:
    """A result file with ``environment``, ``rows`` and ``skipped``, written whole whenever something is added."""

    def __init__(self, path, device):
        self._path = Path(path)
        self._content = {"environment": environment(device), "rows": [], "skipped": {}}
        self._write()

    def add(self, row):
        """One more row, a dict."""
        self._content["rows"].append(row)
        self._write()

    def skip(self, what, reason):
        """What was not done, and why."""
        self._content["skipped"][what] = reason
        self._write()

    def note(self, **values):
        """Further entries beside the rows; the last value of a name counts."""
        self._content |= values
        self._write()

    def _write(self):
        write_whole(self._path, self._content)


def write_whole(path, content):
    """Write JSON beside ``path`` and move it there: whoever is killed leaves the file as it was before."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def begin(path, device):
    """Start ``steps.json``; how steps ended that an earlier call ran stays until they run again."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; --device cpu rehearses.")
    content = json.loads(path.read_text()) if path.exists() else {"rows": [], "skipped": {}}
    write_whole(path, content | {"environment": environment(device)})


def end(path, step, outcome, seconds, reason):
    """Note how a step of ``gpu.sh`` ended."""
    content = json.loads(path.read_text())
    content["rows"] = [row for row in content["rows"] if row["step"] != step]
    content["rows"].append({"step": step, "outcome": outcome, "seconds": int(seconds), "reason": reason})
    content["skipped"].pop(step, None)
    if outcome == "skipped":
        content["skipped"][step] = reason
    write_whole(path, content)


def missing(path):
    """Print what nothing runs without, if it is not installed."""
    names = [name for name in ("rich", "filelock") if importlib.util.find_spec(name) is None]
    if names:
        print(f"{', '.join(names)} not installed: give the wheels by --wheels")


def show(path):
    """Print how the steps ended."""
    for row in json.loads(path.read_text())["rows"]:
        print(f"{row['step']}: {row['outcome']} after {row['seconds']} s{row['reason'] and ', ' + row['reason']}")


if __name__ == "__main__":
    where, command, *words = sys.argv[1:]
    {"begin": begin, "end": end, "missing": missing, "show": show}[command](Path(where), *words)
