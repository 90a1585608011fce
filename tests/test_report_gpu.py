"""`benchmarks/report.py OUT`: the files of `gpu.sh`, whichever are there, as one page."""

import itertools
import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks/report.py"
ENVIRONMENT = {
    "device": "Some GPU", "driver": "580.1", "cuda": "13.0", "kind": "cuda", "cores": 16, "python": "3.12.3",
    "versions": {"torch": "2.10.0", "onnxruntime-gpu": "1.24.0"}, "commit": "0123456789",
    "date": "2026-11-27 08:00 UTC",
}  # fmt: skip
MEASURED = ENVIRONMENT | {
    "command": "python benchmarks/gpu_training.py --out training.json", "products": {"cuda": 5e13, "cuda bf16": 7e14},
    "data": "mnist, 60,000 images", "loss_tolerance": 1e-5, "tf32": "in convolutions", "error": "from float64",
}  # fmt: skip
SPEED = {
    "images_per_second": 80_000.0, "epoch_seconds": 0.75, "times_tutorial": 20.5, "first_round_seconds": 21.0,
    "compile_seconds": 20.21, "peak_device_mib": 1234.4, "of_products": 0.0143, "loss_before": 610.6,
    "loss_after": 101.2, "rounds": 5, "images_per_round": 58_976,
}  # fmt: skip


def inference_row(backend, batch, speed, **changes):
    facts = {
        "network": "article", "operation": "encode", "batch": batch, "backend": backend, "images_per_second": speed,
        "p50": 1.5, "p90": 1.6, "p99": 2.0, "first_call": 0.25, "peak_mib": 64.0, "device_mib": 512.0, "error": 3e-8,
        "tolerance": 1e-4, "correct": True, "of_products": 0.4, "times_torch": 2.0,
    }  # fmt: skip
    return facts | changes


FILES = {
    "steps": {
        "rows": [
            {"step": "tests", "outcome": "passed", "seconds": 100, "reason": ""},
            {"step": "training", "outcome": "timed out", "seconds": 125, "reason": "at its limit of 125 s"},
            {"step": "inference", "outcome": "failed", "seconds": 12, "reason": "exit status 1"},
        ],
        "skipped": {},
    },
    "tests": {
        "collected": 5,
        "rows": [
            {"test": "tests/test_gpu.py::test_a", "outcome": "passed", "seconds": 1.0, "message": ""},
            {"test": "tests/test_gpu.py::test_b", "outcome": "failed", "seconds": 1.0, "message": "x\nE  off | by 1"},
            {"test": "tests/test_gpu.py::test_c", "outcome": "skipped", "seconds": 0.0, "message": "no provider"},
        ],
        "skipped": {},
    },
    "training": {
        "environment": MEASURED,
        "rows": [
            {"network": "article", "batch": 64, "loop": "vl.Trainer compiled"} | SPEED,
            {"network": "article", "batch": 64, "loop": "tutorial", "failed": "No module named 'PIL'"},
        ],
        "skipped": {"default, batch 64": "no time was left", "article, batch 512": "no time was left"},
    },
    "inference": {
        "environment": MEASURED,
        "rows": [
            inference_row("torch CUDA", 64, 1000.0),
            inference_row("torch CUDA pinned", 64, 9000.0, correct=False),
            inference_row("onnxruntime CUDA", 64, 2000.0, device_mib=None, of_products=None),
            inference_row("torch CUDA on device", 64, 5000.0),
            {"network": "article", "operation": "encode", "batch": 64, "backend": "OnnxVAE CUDA", "failed": "no DLL"},
        ],
        "skipped": {},
    },
    "row": {
        "rows": [{"row": "flow_prior", "epochs": 9, "elbo": {"value": -82.125, "standard_error": 0.25}}],
        "skipped": {"hierarchy": "there is none"},
    },
}  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    def write(names, environment=ENVIRONMENT, **changes):
        folder, out = tmp_path / "OUT", tmp_path / "results"
        folder.mkdir()
        for name in names:
            content = FILES[name] | {"environment": FILES[name].get("environment", {}) | environment} | changes
            (folder / f"{name}.json").write_text(json.dumps(content))
        monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--out", str(out)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return folder, out

    return write


def test_all_files_are_one_page(written):
    folder, out = written(FILES)
    assert [path.name for path in out.iterdir()] == ["gpu.md"]
    assert not (folder / "rehearsal.md").exists()
    page = (out / "gpu.md").read_text()
    for words in (
        "# Benchmarks: Some GPU",
        "Driver 580.1, CUDA 13.0, 16 CPU cores; Python 3.12.3, torch 2.10.0, onnxruntime-gpu 1.24.0.",
        "2026-11-27 08:00 UTC, commit 0123456789.",
        "- training: `python benchmarks/gpu_training.py --out training.json`",
        "| training | timed out | 125 | at its limit of 125 s |",
        "| row | not noted |  |  |",
        "`pytest -m gpu`: 1 passed, 1 failed, 1 skipped.",
        "**Truncated: 3 of 5 tests have ended.**",
        "- failed: `tests/test_gpu.py::test_b`: off \\| by 1",
        "Skipped: 1 (no provider).",
        "| vl.Trainer compiled | 80,000 | 0.75 | 20.50 | 20.2 | 1,234 | 1.4% | 610.6 to 101.2 | 5 |",
        "| tutorial | failed: No module named 'PIL' |",
        "| encode | torch CUDA | 1,000 |",
        "| encode | torch CUDA pinned | wrong |",
        "| encode | onnxruntime CUDA | **2,000** |",
        "| encode | torch CUDA on device | **5,000** |",
        "| encode, torch CUDA | 64 | 1.5 | 1.6 | 2 | 0.25 | 64 | 40% | 3e-08 | 512 | 2.00 |",
        "| encode, onnxruntime CUDA | 64 | 1.5 | 1.6 | 2 | 0.25 | 64 |  | 3e-08 |  | 2.00 |",
        "- article, encode, batch 64, OnnxVAE CUDA: no DLL",
        "| elbo | -82.125 ± 0.25 |",
        "- training: no time was left: default, batch 64; article, batch 512",
        "- row: there is none: hierarchy",
    ):
        assert words in page, words
    for line in page.splitlines():  # tables are whole
        if line.startswith(("| vl.Trainer", "| tutorial")):
            assert line.count("|") == 10
    assert "not there" not in page


@pytest.mark.parametrize("names", [names for k in (1, 2, 4) for names in itertools.combinations(FILES, k)], ids=str)
def test_any_files_are_a_page(written, names):
    page = (written(names)[1] / "gpu.md").read_text()
    for name, title in (("tests", "## Tests"), ("training", "## Training"), ("inference", "## Inference")):
        assert (title in page) == (name in names)
    missing = [f"{name}.json" for name in FILES if name not in names]
    assert f"- not there: {', '.join(missing)}" in page
    if names == ("steps",):
        assert "| row | did not begin |  |  |" in page


def test_files_without_rows_are_a_page(written):
    page = (written(FILES, rows=[], skipped={}, collected=3)[1] / "gpu.md").read_text()
    assert "none has ended" in page
    assert "**Truncated: 0 of 3 tests have ended.**" in page


def test_a_rehearsal_is_no_page_of_a_gpu(written):
    folder, out = written(FILES, ENVIRONMENT | {"device": "2 threads, x86_64", "kind": "cpu", "driver": None})
    assert not out.exists()
    page = (folder / "rehearsal.md").read_text()
    assert page.startswith("# Rehearsal on a CPU: 2 threads, x86_64\n\n**No number here is a GPU's.**")


def test_what_cannot_be_read_is_named(written, tmp_path, monkeypatch):
    folder, out = written(["steps"])
    (folder / "training.json").write_text('{"rows": [')
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "- training: it cannot be read: Expecting value" in (out / "gpu.md").read_text()
    (folder / "steps.json").unlink()
    with pytest.raises(SystemExit, match=r"has no results of gpu.sh: none of steps.json, tests.json"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder), str(folder)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
