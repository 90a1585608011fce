"""``vaelib benchmark``: every way in a process of its own, with its accuracy in the same row."""

import json
import shutil

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.benchmark import backends, files, matrix, roofline
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
    assert lines == ["opening", *(f"{operation}, batch {batch}" for operation in OPERATIONS for batch in (1, 3))]
    return found


def test_every_cell_has_a_row_with_times_and_an_error(report):
    cells = {(row.operation, row.batch, row.backend) for row in report.rows}
    assert cells == {(operation, batch, name) for operation in OPERATIONS for batch in (1, 3) for name in FEW}
    for row in report.rows:
        p50, p90, p99 = row.percentiles
        assert len(row.times) >= 50
        assert 0 < p50 <= p90 <= p99
        assert p50 == pytest.approx(1e3 * np.median(row.times))
        assert row.first_call > 0
        assert row.images_per_second == pytest.approx(1e3 * row.batch / p50)
        assert 0 < row.of_products < 1
        assert 0 < row.error < 1e-5
        assert row.correct
        summary = row.summary()
        assert summary["calls"] == len(row.times)
        assert "times" not in summary
    peaks = {name: max(row.peak_mib for row in report.rows if row.backend == name) for name in FEW}
    assert peaks["OnnxVAE"] < peaks["torch"]
    assert report.threads == 1
    assert not report.skipped
    assert not report.failed


def test_the_recommendation_is_of_right_rows(report):
    wrong = [row._replace(correct=row.backend == "torch") for row in report.rows]
    assert "OnnxVAE" not in report._replace(rows=wrong).recommendation()
    assert "torch" in report._replace(rows=wrong).recommendation()
    none = [row._replace(correct=False) for row in report.rows]
    assert report._replace(rows=none).recommendation() == "No backend gave right numbers."


@pytest.mark.slow
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
    shown = report._replace(
        rows=rows, skipped={"torch CUDA": "no CUDA device"}, failed={"openvino": "it ended"}, load=2.0
    )
    monkeypatch.setattr(matrix, "measure", lambda model, **options: shown)
    vl.save(model, tmp_path)
    assert main(["benchmark", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    for words in (
        "3, OnnxVAE",
        "wrong",
        "Not measured: torch CUDA (no CUDA device).",
        "Failed: openvino (it ended).",
        "Matrix products here: cpu",
        "Something else ran beside",
    ):
        assert words in output
    assert output.endswith(f"{shown.recommendation()}\n")


def test_a_noisy_run_says_so(report):
    quiet = [row._replace(times=[1.0] * 50) for row in report.rows]
    assert not report._replace(rows=quiet, load=0.0).noisy
    assert report._replace(rows=quiet, load=1.0).noisy
    assert report._replace(rows=[row._replace(times=[1.0, 1.0, 1.0, 2.0, 2.0]) for row in quiet], load=0.0).noisy


@pytest.mark.slow
def test_a_backend_that_fails_is_told_and_the_others_go_on(model, monkeypatch):
    monkeypatch.setitem(BACKENDS, "unheard of", BACKENDS["torch"])  # the process of its own does not know it
    found = matrix.measure(
        model, backends=("unheard of", "onnxruntime"), operations=["decode"], batches=[2], seconds=0.0, rounds=1
    )
    assert [row.backend for row in found.rows] == ["onnxruntime"]
    assert found.failed == {"unheard of": "KeyError: 'unheard of'"}
    assert not found.skipped


def test_a_worker_that_ends_says_why(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((1, 2, 3), np.float32))
    with Worker("onnxruntime", tmp_path, 1) as worker, pytest.raises(WorkerError, match=r"encode.onnx.*doesn't exist"):
        worker.begin("encode", tmp_path / "inputs.npy")


def test_unknown_names(model):
    with pytest.raises(ValueError, match="`backends` must be among torch, .*, OnnxVAE, .*, got jax"):
        matrix.measure(model, backends=["torch", "jax"])
    with pytest.raises(ValueError, match="`operations` must be among encode, decode, reconstruct, got train"):
        matrix.measure(model, operations=["train"])


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundle")
    vl.export_onnx(model, directory)
    return directory


@pytest.mark.slow
def test_a_bundle_is_measured_without_torch(bundle, capsys):
    assert main(["benchmark", str(bundle), "--quick", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"onnxruntime", "onnxruntime int8", "OnnxVAE"} | (
        set() if BACKENDS["openvino"].missing() else {"openvino"}
    )
    assert {row["backend"] for row in found["rows"]} == expected
    assert all(row["correct"] for row in found["rows"])
    assert all(row["error"] < 1e-5 for row in found["rows"] if row["backend"] != "onnxruntime int8")
    assert all(row["error"] > 1e-5 for row in found["rows"] if row["backend"] == "onnxruntime int8")
    assert found["skipped"]["torch"] == "a bundle has no torch model"
    assert not found["failed"]


def test_a_bundle_in_float64_is_torch_in_float64(model, bundle, tmp_path):
    subjects = [
        files.write_files(source, tmp_path / name, {"bundle"}) for name, source in (("a", model), ("b", bundle))
    ]
    for operation in OPERATIONS:
        values = files.draw(subjects[0], operation, 3)[0]
        exact, of_bundle = (subject.exact(operation, values) for subject in subjects)
        assert exact.dtype == of_bundle.dtype == np.float64
        np.testing.assert_allclose(of_bundle, exact, atol=1e-6)  # weights were folded in float32
        torch_in_float32 = files.functions_of(model.eval())[operation](torch.from_numpy(values)).detach().numpy()
        np.testing.assert_allclose(exact, torch_in_float32, atol=1e-5)


def test_a_torn_bundle_is_refused(bundle, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(bundle, torn)
    (torn / "decoder.onnx").write_bytes(b"nothing")
    with pytest.raises(vl.ModelFileError, match=r"decoder.onnx"):
        matrix.measure(torn, backends=["OnnxVAE"])


def test_a_directory_with_model_and_bundle_is_the_model(model, bundle, tmp_path, monkeypatch):
    both = tmp_path / "both"
    shutil.copytree(bundle, both)
    vl.save(model, both)
    sources = []
    monkeypatch.setattr(matrix, "measure", lambda source, **options: sources.append(source) or 1 / 0)
    for directory in (both, bundle):
        with pytest.raises(ZeroDivisionError):
            main(["benchmark", str(directory)])
    assert isinstance(sources[0], vl.VAE)
    assert sources[1] == bundle


@pytest.mark.slow
def test_what_is_missing_here_is_told(bundle):
    found = matrix.measure(bundle, operations=["decode"], batches=[1], seconds=0.0, rounds=1)
    cuda = [name for name in BACKENDS if "CUDA" in name or "TensorRT" in name]
    assert len(cuda) == 13
    if not torch.cuda.is_available():
        assert all(found.skipped[name] for name in cuda)
    assert {*found.skipped, *(row.backend for row in found.rows)} == set(BACKENDS)


def test_a_provider_that_does_not_load_fails(monkeypatch, tmp_path):
    class Session:
        def __init__(self, path, options, providers):
            assert providers == [("CUDAExecutionProvider", {})]

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    opened = backends._onnxruntime(tmp_path, 1, provider="CUDAExecutionProvider")
    with pytest.raises(RuntimeError, match=r"CUDAExecutionProvider did not load.*CPUExecutionProvider"):
        opened.call("encode", np.zeros((1, 2), np.float32))


@pytest.mark.slow
def test_more_backends_from_a_file(model, tmp_path):
    table = tmp_path / "table.py"
    table.write_text(
        "import numpy as np\n"
        "from vaelib.benchmark.backends import Backend, Opened\n"
        "def opened(directory, threads):\n"
        "    return Opened(lambda operation, values: values + threads)\n"
        "BACKENDS = {'plus': Backend(opened)}\n"
    )
    with matrix.Matrix(model, ["plus", "torch"], threads=1, table=table) as opened:
        rows = {row.backend: row for row in opened.cell("decode", 2, seconds=0.0, rounds=3, least_calls=5)}
    assert [len(row.times) for row in rows.values()] == [6, 6]
    assert rows["torch"].correct
    assert rows["plus"].error == float("inf")  # it gives latents for pictures
    assert not rows["plus"].correct


def test_products_have_a_rate():
    assert 1e8 < roofline.rates(1)["cpu"] < 1e13


@pytest.mark.slow
def test_compiled_and_channels_last_give_the_same_numbers(model):
    names = [name for name in ("torch channels last", "torch compiled") if BACKENDS[name].missing() is None]
    found = matrix.measure(model, backends=names, batches=(2,), seconds=0.0, rounds=1)
    assert {row.backend for row in found.rows} == set(names)
    assert all(row.correct for row in found.rows)
