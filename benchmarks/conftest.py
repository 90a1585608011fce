"""Plain `pytest` runs a row of inference and the first answer; `--benchmark-only` measures all.

Calls are timed in the processes of the backends. `replay` hands their times to pytest-benchmark, whose clock is then
one that moves by the recorded seconds: its tables, groups, `--benchmark-json` and `--benchmark-compare` work as always.
"""

import os
from contextlib import ExitStack
from importlib.metadata import distributions

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import NETWORKS, used

import vaelib as vl
from vaelib.benchmark.matrix import LEAST_CALLS, Matrix

ONCE = {"seconds": 0.0, "rounds": 1, "least_calls": 2}
"""How much a smoke test measures."""
SKIPPED = pytest.StashKey()
LOAD_BEFORE = os.getloadavg()[0]


class Clock:
    """The seconds of calls that were made elsewhere."""

    __name__ = "replayed"
    now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


CLOCK = Clock()


def pytest_collection_modifyitems(items):
    for item in items:
        if "replay" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.stash[SKIPPED] = {}
    if not config.getoption("benchmark_only"):
        config.option.benchmark_disable = True


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["versions"] = {
        "vaelib": vl.__version__,
        **{module.__name__: module.__version__ for module in (torch, onnx, onnxruntime, np)},
        **{d.name: d.version for d in distributions() if d.name in ("openvino", "pythae", "diffusers")},
    }
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["skipped"] = config.stash[SKIPPED]
    output_json["load_before"] = LOAD_BEFORE


@pytest.fixture
def replay(benchmark):
    """Let pytest-benchmark see seconds that were measured elsewhere."""

    def play(times):
        waiting = iter(times)
        benchmark.pedantic(lambda: CLOCK.advance(next(waiting)), rounds=len(times), iterations=1)

    return play


@pytest.fixture
def skip_row(request):
    """Skip, and tell the report what and why."""

    def skip(what, why):
        request.config.stash[SKIPPED][what] = why
        pytest.skip(f"{what}: {why}")

    return skip


@pytest.fixture(scope="session")
def matrix_of():
    """The matrix of a network, with weights and statistics that are not initial; one is open at a time."""
    with ExitStack() as stack:
        running = {}

        def find(network, backends, table=None):
            key = (network, tuple(backends))
            if key not in running:
                stack.close()
                running.clear()
                running[key] = stack.enter_context(Matrix(used(NETWORKS[network]()), backends, table=table))
            return running[key]

        yield find


@pytest.fixture(scope="session")
def cells(matrix_of):
    """The rows of a cell by backend, measured in turn on first use, with their matrix."""
    found = {}

    def find(network, operation, batch, backends, table=None, **options):
        key = (network, operation, batch, tuple(backends))
        if key not in found:
            matrix = matrix_of(network, backends, table)
            found[key] = {row.backend: row for row in matrix.cell(operation, batch, **options)}, matrix
        return found[key]

    return find


@pytest.fixture
def run_row(benchmark, cells, skip_row, replay):
    """One backend's row of a cell as a benchmark: what is missing is skipped, what failed or is wrong fails."""

    def run(network, operation, batch, backend, backends, table=None, least_calls=LEAST_CALLS):
        options = ONCE if benchmark.disabled else {"least_calls": least_calls}
        rows, matrix = cells(network, operation, batch, backends, table, **options)
        if backend in matrix.skipped:
            skip_row(backend, matrix.skipped[backend])
        assert backend not in matrix.failed, matrix.failed[backend]
        row = rows[backend]
        benchmark.group = f"{operation} {network} batch {batch}"
        benchmark.extra_info.update(row.summary(), network=network, threads=matrix.threads, products=matrix.products)
        replay(row.times)
        assert row.correct, f"{backend} is off by {row.error:.1e}"

    return run
