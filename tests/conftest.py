import os
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("vaelib", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=600)
hypothesis.settings.load_profile("vaelib")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def mnist_root():
    """VAELIB_DATA with MNIST in it; where VAELIB_REQUIRE_DATA is set, its absence is a failure."""
    root = os.environ.get("VAELIB_DATA")
    if root is not None and (Path(root) / "MNIST").is_dir():
        return Path(root)
    if os.environ.get("VAELIB_REQUIRE_DATA"):
        pytest.fail(f"VAELIB_REQUIRE_DATA is set, but there is no MNIST below VAELIB_DATA={root}")
    pytest.skip("no MNIST below VAELIB_DATA")
