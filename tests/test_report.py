"""`benchmarks/report.py`: a run's JSON to tables and plots."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).parent.parent / "benchmarks/report.py"
MACHINE = {
    "cpu": {"brand_raw": "Some CPU"},
    "python_version": "3.11.7",
    "versions": {"torch": "2.15.0"},
    "threads": 2,
    "gpu": None,
}


def row(backend, batch, speed, **changes):
    facts = {
        "network": "default", "operation": "encode", "batch": batch, "backend": backend, "images_per_second": speed,
        "p50": 1.5, "p90": 1.6, "p99": 2.0, "first_call": 0.25, "peak_mib": 64.0, "error": 3e-8, "correct": True,
        "of_products": 0.4, "products": {"cpu": 2e11}, "threads": 2,
    }  # fmt: skip
    return {"name": f"test_inference[default-encode-{batch}-{backend}]", "extra_info": {**facts, **changes}}


def run(rows, load_before=0.1, **changes):
    commit = {"id": "0123456789abcdef", "dirty": False}
    return {
        "machine_info": {**MACHINE, **changes},
        "commit_info": commit,
        "load_before": load_before,
        "datetime": "2026-11-23T12:00:00.123",
        "benchmarks": rows,
        "skipped": {"torch CUDA": "no CUDA device", "torch CUDA bf16": "no CUDA device"},
    }


ROWS = [
    row("torch", 1, 900.0),
    row("OnnxVAE", 1, 30_000.0),
    row("broken", 1, 90_000.0, correct=False, error=0.5),
    row("torch", 64, 50_000.0),
    row("OnnxVAE", 64, 40_000.0),
]


@pytest.fixture
def written(tmp_path, monkeypatch):
    def write(*runs):
        paths = [tmp_path / f"run{i}.json" for i in range(len(runs))]
        for path, content in zip(paths, runs, strict=True):
            path.write_text(json.dumps(content))
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, paths), "--out", str(tmp_path / "results")])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return tmp_path / "results"

    return write


def test_a_run_becomes_a_page_with_plots(written):
    out = written(run(ROWS))
    page = (out / "cpu.md").read_text()
    assert {path.name for path in out.iterdir()} == {"cpu.md", "cpu-default.png"}
    for words in (
        "# Benchmarks: Some CPU",
        "torch 2.15.0",
        "2026-11-23T12:00 UTC, commit 0123456789.",
        "cpu 200 GFLOP/s",
        "**Unmeasured here:** torch CUDA, torch CUDA bf16 (no CUDA device).",
        "| encode | torch | 900 | **50,000** |",
        "| encode | OnnxVAE | **30,000** | 40,000 |",
        "| encode | broken | wrong |  |",
        "| encode, OnnxVAE | 1 | 1.5 | 1.6 | 2 | 0.25 | 64 | 40% | 3e-08 |",
        "5e-01 **wrong**",
    ):
        assert words in page
    assert "Something else ran" not in page


def test_noise_and_changes_are_told(written):
    noisy = run(ROWS, load_before=1.5)
    noisy["commit_info"]["dirty"] = True
    page = (written(noisy) / "cpu.md").read_text()
    assert "Something else ran beside this run" in page
    assert "commit 0123456789 with changes." in page


def test_several_runs_are_one_page(written):
    growth = {
        "what": "pixels", "operation": "train", "work": [256, 1024], "seconds": [0.001, 0.004],
        "exponents": {"all": 1.0, "upper half": 1.0},
    }  # fmt: skip
    floor = {
        "network": "default",
        "operation": "decode",
        "batch": 256,
        "fast": "OnnxVAE",
        "slow": "torch",
        "ratio": 1.2,
    }
    training = {"images_per_second": 5505, "vaelib_is_faster_by": 1.87, "seconds_to_loss": 6.7, "of_gemm_rate": 0.26}
    first = {"torch": {"seconds": 2.2, "peak_mib": 539.0}, "OnnxVAE": {"seconds": 0.19, "peak_mib": 64.0}}
    peer = {**row("pythae", 64, 1000.0), "name": "test_the_article_and_pythae[encode-64-pythae]"}
    more = [
        peer,
        {"name": "test_growth[pixels-train]", "extra_info": growth},
        {"name": "test_floor[default]", "extra_info": {"floor": floor, "ratio": 1.9}},
        {"name": "test_training", "extra_info": {"rows": {"article": training}}},
        {"name": "test_first_answer", "extra_info": {"first_answer": first}},
    ]
    out = written(run(ROWS, gpu="Some GPU"), run(more))
    page = (out / "gpu-matrix.md").read_text()
    assert {path.name for path in out.iterdir()} == {"gpu-matrix.md", "gpu-matrix-default.png", "gpu-matrix-growth.png"}
    for words in (
        "# Benchmarks: Some GPU",
        "| encode, batch 64 | pythae | 1,000 | 1.5 | 64 | 40% | 3e-08 |",
        "| pixels | train | 1.00 | 1.00 | 256: 0.001, 1,024: 0.004 |",
        "| default | decode | 256 | OnnxVAE over torch | 1.90 | 1.2 |",
        "| article | 5,505 | 1.87 | 6.7 | 26% |",
        "| OnnxVAE | 0.19 | 64 |",
    ):
        assert words in page
