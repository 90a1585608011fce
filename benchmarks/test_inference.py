"""The matrix: networks, operations, batches and ways to run them, a process each, in turn, accuracy in the same row."""

from vaelib.benchmark.backend import OPERATIONS
from vaelib.benchmark.backends import BACKENDS

BATCHES = {
    "article": (1, 8, 64, 256, 1024),
    "default": (1, 8, 64, 256, 1024),
    "residual 64": (1, 8, 64, 256, 1024),
    "map 256": (1, 2, 4),
}
SMOKE = ("torch", "onnxruntime", "OnnxVAE")


def pytest_generate_tests(metafunc):
    measuring = metafunc.config.getoption("benchmark_only")
    backends = tuple(BACKENDS) if measuring else SMOKE
    rows = [
        (network, operation, batch, backend, backends)
        for network, batches in (BATCHES if measuring else {"tiny": (1,)}).items()
        for operation in OPERATIONS
        for batch in batches
        for backend in backends
    ]
    ids = ["-".join(map(str, row[:4])) for row in rows]
    metafunc.parametrize(("network", "operation", "batch", "backend", "backends"), rows, ids=ids)


def test_inference(run_row, network, operation, batch, backend, backends):
    run_row(network, operation, batch, backend, backends)
