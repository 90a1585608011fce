"""Plain `pytest` runs every benchmark once; `--benchmark-only` measures."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if not config.getoption("benchmark_only"):
        config.option.benchmark_disable = True
