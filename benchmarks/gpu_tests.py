"""The tests that need a GPU, with a result file that holds every test that has ended, also if the run is killed.

    python benchmarks/gpu_tests.py --out tests.json --device cuda

Runs `pytest -m gpu` on the files that have such tests. It needs no plugin of the plain suite: neither hypothesis nor
pytest-benchmark. `--device cpu` is the rehearsal: what only CUDA has is skipped.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = [
    "-o",
    "addopts=--import-mode=importlib",
    "-o",
    "filterwarnings=default",
    "-p",
    "no:cacheprovider",
    "--show-capture=no",
]
"""Without what pyproject.toml asks of plugins; a warning of a GPU's is shown, and does not fail its test."""
MARKED = {"cuda": "gpu", "cpu": "gpu and not slow"}


class Written:
    """A plugin of pytest that writes each test's outcome as soon as it has one."""

    def __init__(self, results, seconds):
        self._results, self._until = results, time.monotonic() + seconds
        self._seconds = {}

    def pytest_collectreport(self, report):
        if report.failed:
            self._results.add(row(report.nodeid, "error", 0.0, report.longreprtext))

    def pytest_collection_finish(self, session):
        self._results.note(collected=len(session.items))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if time.monotonic() > self._until:
            self._results.skip(item.nodeid, "no time remained")
            return True
        return None

    def pytest_runtest_logreport(self, report):
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        seconds = self._seconds[report.nodeid]
        if report.skipped:
            reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "xfail"
            self._results.add(row(report.nodeid, "skipped", seconds, reason))
            self._results.skip(report.nodeid, reason)
        elif report.failed:
            self._results.add(row(report.nodeid, "failed", seconds, f"in {report.when}:\n{report.longreprtext}"))
        elif report.when == "call":
            self._results.add(row(report.nodeid, "passed", seconds, ""))


def row(test, outcome, seconds, message):
    return {"test": test, "outcome": outcome, "seconds": round(seconds, 2), "message": message[-4000:]}


def main():
    from gpu_results import Results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=600.0, help="no test is begun after that")
    parser.add_argument("more", nargs="*", help="further arguments of pytest, after --")
    arguments = parser.parse_args()
    os.environ["VAELIB_GPU_TESTS"] = arguments.device
    os.chdir(ROOT)
    files = sorted(map(str, Path("tests").glob("test_gpu*.py")), key=lambda name: ("compile" in name, name))  # slow
    written = Written(Results(arguments.out.resolve(), arguments.device), arguments.seconds)
    sys.exit(pytest.main([*files, "-m", MARKED[arguments.device], "-q", *ALONE, *arguments.more], plugins=[written]))


if __name__ == "__main__":
    main()
