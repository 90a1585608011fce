"""``vaelib benchmark``: every way in a process of its own, with its accuracy in the same row."""

import json

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.benchmark import matrix
from vaelib.benchmark.backends import BACKENDS, OPERATIONS
from vaelib.benchmark.worker import Worker, WorkerError
from vaelib.cli import main

FEW = ("torch", "onnxruntime", "OnnxVAE")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vl.conv_vae((1, 9, 7), 2, hidden_channels=(4,))


@pytest.fixture(scope="module")
def report(model):
    lines = []
    found = matrix.measure(model, backends=FEW, batches=(1, 3), threads=1, seconds=0.0, rounds=1, tell=lines.append)
    assert lines == ["exporting", *(f"{operation}, batch {batch}" for operation in OPERATIONS for batch in (1, 3))]
    return found


def test_every_cell_has_a_row_with_times_and_an_error(report):
    cells = {(row.operation, row.batch, row.backend) for row in report.rows}
    assert cells == {(operation, batch, name) for operation in OPERATIONS for batch in (1, 3) for name in FEW}
    for row in report.rows:
        assert row.calls >= 50
        assert 0 < row.p50 <= row.p90 <= row.p99
        assert row.first_call > 0
        assert row.images_per_second == pytest.approx(1e3 * row.batch / row.p50)
        assert 0 < row.error < 1e-5
        assert row.correct
    assert set(report.peak_mib) == set(FEW)
    assert report.peak_mib["OnnxVAE"] < report.peak_mib["torch"]
    assert report.threads == 1


def test_the_recommendation_is_of_right_rows(report):
    wrong = [row._replace(correct=row.backend == "torch") for row in report.rows]
    assert "OnnxVAE" not in report._replace(rows=wrong).recommendation()
    assert "torch" in report._replace(rows=wrong).recommendation()
    none = [row._replace(correct=False) for row in report.rows]
    assert report._replace(rows=none).recommendation() == "No backend gave right numbers."


def test_wrong_numbers_are_called_wrong(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(BACKENDS, "onnxruntime", BACKENDS["onnxruntime"]._replace(tolerance=0.0))
    monkeypatch.setitem(BACKENDS, "openvino", BACKENDS["openvino"]._replace(missing=lambda: "not today"))
    vl.save(model, tmp_path)
    chosen = [word for name in ("onnxruntime", "OnnxVAE", "openvino") for word in ("--backend", name)]
    assert main(["benchmark", str(tmp_path), "--quick", "--json", *chosen]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["backend"]: row["correct"] for row in found["rows"]} == {"onnxruntime": False, "OnnxVAE": True}
    assert found["skipped"] == {"openvino": "not today"}
    assert found["recommendation"].count("OnnxVAE") == 6


def test_the_table_says_what_was_left_out(report, monkeypatch, capsys, model, tmp_path):
    rows = [report.rows[0]._replace(correct=False), *report.rows[1:]]
    shown = report._replace(rows=rows, skipped={"torch CUDA": "no CUDA device"}, load=2.0)
    monkeypatch.setattr(matrix, "measure", lambda model, **options: shown)
    vl.save(model, tmp_path)
    assert main(["benchmark", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    for words in (
        "3, OnnxVAE",
        "wrong",
        "Not measured: torch CUDA (no CUDA device).",
        "Something else ran beside",
    ):
        assert words in output
    assert output.endswith(f"{shown.recommendation()}\n")


def test_a_noisy_run_says_so(report):
    quiet = [row._replace(p90=row.p50) for row in report.rows]
    assert not report._replace(rows=quiet, load=0.0).noisy
    assert report._replace(rows=quiet, load=1.0).noisy
    assert report._replace(rows=[row._replace(p90=2 * row.p50) for row in quiet], load=0.0).noisy


def test_a_backend_that_fails_is_told_and_the_others_go_on(model, monkeypatch):
    monkeypatch.setitem(BACKENDS, "unheard of", BACKENDS["torch"])  # the process of its own does not know it
    found = matrix.measure(
        model, backends=("unheard of", "onnxruntime"), operations=["decode"], batches=[2], seconds=0.0, rounds=1
    )
    assert [row.backend for row in found.rows] == ["onnxruntime"]
    assert found.skipped == {"unheard of": "failed: KeyError: 'unheard of'"}


def test_a_worker_that_ends_says_why(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((1, 2, 3), np.float32))
    with Worker("onnxruntime", tmp_path, 1) as worker, pytest.raises(WorkerError, match=r"encode.onnx.*doesn't exist"):
        worker.begin("encode", tmp_path / "inputs.npy", tmp_path / "output.npy")


def test_unknown_names(model):
    with pytest.raises(ValueError, match="`backends` must be among torch, .*, OnnxVAE, got jax"):
        matrix.measure(model, backends=["torch", "jax"])
    with pytest.raises(ValueError, match="`operations` must be among encode, decode, reconstruct, got train"):
        matrix.measure(model, operations=["train"])


@pytest.mark.slow
def test_compiled_and_channels_last_give_the_same_numbers(model):
    names = [name for name in ("torch channels last", "torch compiled") if BACKENDS[name].missing() is None]
    found = matrix.measure(model, backends=names, batches=(2,), seconds=0.0, rounds=1)
    assert {row.backend for row in found.rows} == set(names)
    assert all(row.correct for row in found.rows)
