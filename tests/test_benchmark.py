"""``vaelib benchmark``: every way in a process of its own, with its accuracy in the same row."""

import importlib.util
import json
import shutil
import types
import weakref

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.benchmark import backend, backends, files, matrix, roofline, worker
from vaelib.benchmark.backend import OPERATIONS
from vaelib.benchmark.backends import BACKENDS
from vaelib.benchmark.worker import ProcessError, Worker
from vaelib.cli import main
from vaelib.errors import MissingExtraError, ModelFileError
from vaelib.runtime import OnnxVAE

FEW = ("torch", "onnxruntime", "OnnxVAE")
MEASURED = ("encode", "reconstruct")
BRIEF = {"threads": 1, "seconds": 0.0, "rounds": 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vl.conv_vae((1, 9, 7), 2, hidden_channels=(4,))


@pytest.fixture(scope="module")
def report(model):
    lines = []
    found = matrix.measure(model, backends=FEW, operations=MEASURED, batches=(1, 3), **BRIEF, tell=lines.append)
    assert lines == ["opening", *(f"{operation}, batch {batch}" for operation in MEASURED for batch in (1, 3))]
    return found


@pytest.mark.slow
def test_every_cell_has_a_row_with_times_and_an_error(report):
    cells = {(row.operation, row.batch, row.backend) for row in report.rows}
    assert cells == {(operation, batch, name) for operation in MEASURED for batch in (1, 3) for name in FEW}
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
        assert row.tolerance == 1e-4
        assert row.device_mib is None
        summary = row.summary()
        assert summary["calls"] == len(row.times)
        assert "times" not in summary
    peaks = {name: max(row.peak_mib for row in report.rows if row.backend == name) for name in FEW}
    assert peaks["OnnxVAE"] < peaks["torch"]
    assert report.threads == 1
    assert not report.skipped
    assert not report.failed


@pytest.mark.slow
def test_the_recommendation_is_of_right_rows(report):
    wrong = [row._replace(correct=row.backend == "torch") for row in report.rows]
    assert "OnnxVAE" not in report._replace(rows=wrong).recommendation()
    assert "torch" in report._replace(rows=wrong).recommendation()
    none = [row._replace(correct=False) for row in report.rows]
    assert report._replace(rows=none).recommendation() == "No backend gave right numbers."


@pytest.mark.slow
def test_wrong_numbers_are_called_wrong(model, monkeypatch):
    monkeypatch.setitem(BACKENDS, "onnxruntime", BACKENDS["onnxruntime"]._replace(tolerance=0.0))
    monkeypatch.setitem(BACKENDS, "openvino", BACKENDS["openvino"]._replace(missing=lambda: "not today"))
    names = ("onnxruntime", "OnnxVAE", "openvino")
    found = matrix.measure(model, backends=names, operations=["decode"], batches=(1, 2), **BRIEF)
    assert [(row.backend, row.correct) for row in found.rows] == [("onnxruntime", False), ("OnnxVAE", True)] * 2
    assert found.skipped == {"openvino": "not today"}
    assert found.recommendation().count("OnnxVAE") == 2


@pytest.mark.slow
def test_the_table_says_what_was_skipped(report, monkeypatch, capsys, model, tmp_path):
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


@pytest.mark.slow
def test_a_noisy_run_says_so(report):
    quiet = [row._replace(times=[1.0] * 50) for row in report.rows]
    assert not report._replace(rows=quiet, load=0.0).noisy
    assert report._replace(rows=quiet, load=1.0).noisy
    assert report._replace(rows=[row._replace(times=[1.0, 1.0, 1.0, 2.0, 2.0]) for row in quiet], load=0.0).noisy


@pytest.mark.slow
def test_a_backend_that_fails_is_reported_and_the_others_continue(model, monkeypatch):
    monkeypatch.setitem(BACKENDS, "unheard of", BACKENDS["torch"])  # the process of its own does not know it
    found = matrix.measure(model, backends=("unheard of", "onnxruntime"), operations=["decode"], batches=[2], **BRIEF)
    assert [row.backend for row in found.rows] == ["onnxruntime"]
    assert found.failed == {"unheard of": "KeyError: 'unheard of'"}
    assert not found.skipped


def test_a_worker_that_ends_says_why(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((1, 2, 3), np.float32))
    with Worker("onnxruntime", tmp_path, 1) as worker, pytest.raises(ProcessError, match=r"encode.onnx.*doesn't exist"):
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


@pytest.mark.parametrize(
    "condition", [None, vl.Labels(3), pytest.param(vl.Vector(2), marks=pytest.mark.slow)], ids=repr
)
def test_a_bundle_in_float64_is_torch_in_float64(condition, tmp_path):
    """At the first condition, where there is one."""
    torch.manual_seed(0)
    model, bundle = vl.conv_vae((1, 9, 7), 2, hidden_channels=(4,), condition=condition).eval(), tmp_path / "bundle"
    subject = files.write_files(model, tmp_path, {"bundle"})
    subjects = [subject, files.write_files(bundle, tmp_path / "of the bundle", {"bundle"})]
    opened = backend.opened_bundle(OnnxVAE(bundle))
    for operation in OPERATIONS:
        values = files.draw(subject, operation, 3)[0]
        exact, of_bundle = (subject.exact(operation, values) for subject in subjects)
        assert exact.dtype == of_bundle.dtype == np.float64
        np.testing.assert_allclose(of_bundle, exact, atol=1e-6)  # weights were folded in float32
        torch_in_float32 = files.functions_of(model)[operation](torch.from_numpy(values)).detach().numpy()
        np.testing.assert_allclose(exact, torch_in_float32, atol=1e-5)
        np.testing.assert_allclose(opened.call(operation, values), exact, atol=1e-5)
    graphs = set() if condition is None else {"onnxruntime"}
    for source, missing in ((model, graphs), (bundle, {*graphs, "torch"})):
        reasons = {name: matrix.why_missing(BACKENDS[name], source) for name in FEW}
        assert {name for name, reason in reasons.items() if reason} == missing


def test_a_torn_bundle_is_refused(bundle, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(bundle, torn)
    (torn / "decoder.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"decoder.onnx"):
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
def test_what_is_missing_here_is_reported(bundle):
    found = matrix.measure(bundle, operations=["decode"], batches=[1], **BRIEF)
    assert len(backends.CUDA_BACKENDS) == 14
    if not torch.cuda.is_available():
        assert all(found.skipped[name] for name in backends.CUDA_BACKENDS)
    assert {*found.skipped, *(row.backend for row in found.rows)} == set(BACKENDS)


def test_a_provider_that_does_not_load_fails(monkeypatch, tmp_path):
    class Session:
        def __init__(self, path, options, providers):
            assert providers == [("CUDAExecutionProvider", {})]

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    session = backend.sessions_of(tmp_path, 1, provider="CUDAExecutionProvider")
    with pytest.raises(RuntimeError, match=r"CUDAExecutionProvider did not load.*CPUExecutionProvider"):
        session("encode")


@pytest.mark.slow
def test_more_backends_from_a_file(model, tmp_path):
    table = tmp_path / "table.py"
    table.write_text(
        "import numpy as np\n"
        "from vaelib.benchmark.backend import Backend, Opened\n"
        "def opened(directory, threads):\n"
        "    return Opened(lambda operation, values: values + threads)\n"
        "BACKENDS = {'plus': Backend(opened)}\n"
    )
    with matrix.Matrix(model, ["plus", "torch"], threads=1, table=table) as opened:
        rows = {row.backend: row for row in opened.cell("decode", 2, seconds=0.0, rounds=3, least_calls=5)}
    assert [len(row.times) for row in rows.values()] == [6, 6]
    assert rows["torch"].correct
    assert rows["plus"].error == float("inf")  # it gives latents for images
    assert not rows["plus"].correct


def test_products_have_a_rate():
    assert 1e8 < roofline.rates(1)["cpu"] < 1e13


@pytest.mark.parametrize("how", ["eager", "channels last", "bf16"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_the_code_for_cuda_gives_right_numbers_on_the_cpu(model, tmp_path, how, where):
    subject = files.write_files(model, tmp_path, {"model"})
    opened = backends._torch("cpu", tmp_path, 1, how=how, where=where)
    for operation in OPERATIONS:
        for batch in (3, 2):
            values = files.draw(subject, operation, batch)[0]
            placed = opened.place(values)
            assert isinstance(placed, torch.Tensor if where == "device" else np.ndarray)
            answer = opened.fetch(opened.call(operation, placed))
            tolerance = CUDA_TOLERANCES[how]
            assert answer.dtype == np.float32
            np.testing.assert_allclose(answer, subject.exact(operation, values), atol=tolerance, rtol=0)


CUDA_TOLERANCES = {"eager": 1e-5, "channels last": 1e-5, "bf16": 5e-2}


def test_without_the_exporter_torch_is_measured_and_the_rest_is_skipped(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else found(name))
    monkeypatch.setattr(matrix, "rates", lambda threads: {"cpu": 1e11})
    with matrix.Matrix(model, ("torch", "onnxruntime", "OnnxVAE"), threads=1) as opened:
        assert opened.skipped == dict.fromkeys(("onnxruntime", "OnnxVAE"), "not installed: onnxscript")
        (row,) = opened.cell("decode", 2, seconds=0.0, rounds=1, least_calls=2)
    assert row.correct


def test_a_bundle_needs_the_extra(bundle, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a benchmark of a bundle needs .* pip install 'vaelib\[onnx\]'"):
        matrix.Matrix(bundle, ("OnnxVAE",))


def begin(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((2, 3), np.float32))
    return {"operation": "encode", "inputs": str(tmp_path / "inputs.npy"), "answer": str(tmp_path / "answer")}


def test_a_long_first_call_does_not_shorten_the_warm_up(monkeypatch, tmp_path):
    """A CUDA graph is captured in the fourth call, which must not be a timed one."""
    seconds = iter([60.0, *[0.01] * 9])

    def timed(call):
        call()
        return [[next(seconds)]]

    monkeypatch.setattr(worker, "timed", timed)
    calls = []
    opened = backend.Opened(lambda operation, values: calls.append(operation) or np.zeros(1))
    assert worker._Answers(opened)(begin(tmp_path)) == {"first": 60.0}
    assert len(calls) == 4


def test_memory_of_the_shape_before_does_not_count(monkeypatch, tmp_path):
    alive, before = weakref.WeakSet(), []
    monkeypatch.setattr(worker, "_forget_peaks", lambda: before.append(len(alive)))

    def place(values):
        placed = np.array(values).view(Tracked)
        alive.add(placed)
        return placed

    answers = worker._Answers(backend.Opened(lambda operation, values: np.zeros(1), place))
    answers(begin(tmp_path))
    assert len(alive) == 2
    answers(begin(tmp_path))
    assert before == [0, 0]


def test_memory_of_a_gpu_is_measured_and_given_back_to_the_other_processes(monkeypatch, tmp_path):
    done = []
    gpu = types.SimpleNamespace(
        empty_cache=lambda: done.append("empty"),
        reset_peak_memory_stats=lambda: done.append("reset"),
        max_memory_allocated=lambda: 3 * 2**20,
    )
    monkeypatch.setattr(worker, "_torch_on_cuda", lambda: types.SimpleNamespace(cuda=gpu))
    answers = worker._Answers(backend.Opened(lambda operation, values: done.append("call") or np.zeros(1)))
    assert answers(begin(tmp_path))["first"] >= 0.0
    assert len(answers({"seconds": 0.0, "least": 2})["times"]) == 2
    peaks = answers({})
    assert peaks["device_mib"] == 3.0
    assert peaks["host_mib"] > 0.0
    assert done == ["reset", *["call"] * 4, "empty", *["call"] * 3, "empty"]


class Tracked(np.ndarray):
    __hash__ = object.__hash__


@pytest.mark.slow
def test_compiled_and_channels_last_give_the_same_numbers(model):
    names = [name for name in ("torch channels last", "torch compiled") if BACKENDS[name].missing() is None]
    found = matrix.measure(model, backends=names, operations=["reconstruct"], batches=(2,), **BRIEF)
    assert {row.backend for row in found.rows} == set(names)
    assert all(row.correct for row in found.rows)
