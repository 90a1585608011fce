"""Ratios of speed that must hold: `benchmarks/floors.toml`."""

import statistics
import tomllib
from pathlib import Path

import pytest

FLOORS = tomllib.loads((Path(__file__).parent / "floors.toml").read_text())["inference"]
BACKENDS = tuple(dict.fromkeys(name for floor in FLOORS for name in (floor["slow"], floor["fast"])))


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: "-".join(map(str, floor.values())))
def test_floor(benchmark, replay, cells, floor):
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    rows, matrix = cells(floor["network"], floor["operation"], floor["batch"], BACKENDS)
    assert not matrix.failed
    slow, fast = (rows[floor[name]] for name in ("slow", "fast"))
    ratio = statistics.median(slow.times) / statistics.median(fast.times)
    benchmark.group = "floors"
    benchmark.extra_info.update(floor=floor, ratio=ratio)
    replay(fast.times)
    print(f"\n{floor['fast']} is {ratio:.2f} x {floor['slow']}, floor {floor['ratio']}", end="")
    assert slow.correct
    assert fast.correct
    assert ratio >= floor["ratio"], f"{floor['fast']} is only {ratio:.2f} x {floor['slow']}"
