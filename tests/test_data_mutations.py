"""Damaged data files: each is an error of vaelib's or a set of images, never a crash, a hang or a flood of memory."""

import json

import pytest
from damaged import KINDS, LONGEST, MORE_KINDS, MOST_MEMORY, measure, outcomes
from launching import FORKS
from PIL import features


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path, kind):
    seen = outcomes(kind, tmp_path, 60, seed=1)
    assert seen["DataError"] > 0
    assert seen["no sentence"] == 0
    assert seen.total() == 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_500_damaged_files(tmp_path, kind):
    """In a process of its own, whose memory may grow by 2 GiB at most."""
    if not {"jp2": features.check("jpg_2000"), "avif": features.check("avif")}.get(kind, True):
        pytest.skip(f"this Pillow has no {kind}")
    process = FORKS.Process(target=measure, args=(kind, tmp_path), daemon=True)
    process.start()
    process.join(500 * LONGEST)
    assert process.exitcode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(report["seen"].values()) == 500 and "no sentence" not in report["seen"]
    assert report["peak_bytes"] < MOST_MEMORY
    print(f"\n{kind}: {report}")
