"""What the measuring programs of `benchmarks` have around their loops: records, deadlines, turns, failures."""

import json
import time
from typing import ClassVar

import gpu_inference
import gpu_records
import gpu_training
import pytest
from gpu_records import Deadline, Records
from loop_process import Job, Loop

from vaelib.benchmark.matrix import Row
from vaelib.benchmark.worker import ProcessError

KEYS = ("network", "batch")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    here = {"device": "a GPU", "kind": "cuda", "commit": "abc", "date": "today"}
    monkeypatch.setattr(gpu_records, "environment", lambda device: dict(here))
    return here


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.json"


def test_records_are_whole_after_each_row_and_continued(path, machine, capsys):
    records = Records(path, "cuda", KEYS, quick=False, products={"cuda": 1.0})
    records.put({"network": "a", "batch": 1, "speed": 2.0})
    records.put({"network": "a", "batch": 2, "speed": 3.0})
    records.put({"network": "a", "batch": 1, "speed": 4.0})
    records.skip("b", "no time was left")
    written = json.loads(path.read_text())
    assert [row["speed"] for row in written["rows"]] == [4.0, 3.0]
    assert written["skipped"] == {"b": "no time was left"}
    machine["date"] = "tomorrow"
    again = Records(path, "cuda", KEYS, quick=False, products={"cuda": 1.1})
    assert again.find(network="a", batch=1, more="ignored")["speed"] == 4.0
    assert again.find(network="b", batch=1) is None
    assert json.loads(path.read_text())["environment"]["date"] == "tomorrow"
    assert capsys.readouterr().out == ""
    machine["commit"] = "abd"
    assert Records(path, "cuda", KEYS, quick=True).rows == []
    assert "is of another commit, quick: moved to" in capsys.readouterr().out
    assert len(json.loads(path.with_name("out.json.old").read_text())["rows"]) == 2


def test_the_command_holds_no_folders(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/gpu_x.py", "--out", "/somewhere/x.json", "--seconds", "9"])
    assert gpu_records.command() == "python benchmarks/gpu_x.py --out x.json --seconds 9"


def test_a_deadline_ends_what_waits(monkeypatch):
    monkeypatch.setattr(gpu_records, "MARGIN", 0.0)
    started = time.monotonic()
    with Deadline(0.05):
        time.sleep(5)
    assert time.monotonic() - started < 2
    with Deadline(0.05) as deadline:
        assert 0 < deadline.left() <= 0.05
    time.sleep(0.06)  # no alarm is left over
    with pytest.raises(ZeroDivisionError), Deadline(5):
        raise ZeroDivisionError
    monkeypatch.setenv("STEP_BEGAN", str(time.time() - 60))  # the imports took a minute
    assert Deadline(100).left() < 41


class FakeLoop:
    """A loop whose rounds are given; its process ends when there are no more."""

    turns: ClassVar = []

    def __init__(self, job):
        self.job, self.rounds = job, []
        self._coming = iter(ROUNDS[job.loop])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self):
        self.turns.append(self.job.loop)

    def read(self):
        found = next(self._coming, None)
        if found is None:
            raise ProcessError("CUDA out of memory")
        self.rounds.append({"seconds": found[0], "loss": found[1], "peak_device_mib": 7.0})


ROUNDS = {
    "article": [(0.0, 600.0), (5.0, 500.0), (50.0, 450.0), (2.0, 400.0), (4.0, 300.0), (6.0, 200.0)],
    "vaelib": [(0.0, 600.003), (30.0, 500.0), (0.5, 400.0), (0.4, 300.0), (0.2, 200.0)],
    "handwritten": [(0.0, 601.0)],
    "vaelib bf16": [(0.0, 600.0), (9.0, 500.0), (1.0, 400.0)],
    "vaelib eager": [],
}


def test_training_loops_have_turns_and_failures_rows(path, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_training, "Loop", FakeLoop)
    monkeypatch.setattr(gpu_training, "training_flops", lambda network: 1e6)
    monkeypatch.setattr(FakeLoop, "turns", [])
    records = Records(path, "cuda", ("network", "batch", "loop"), products={"cuda": 1e9})
    jobs = [Job(loop, str(tmp_path), images=100 if loop == "article" else 1000, device="cuda") for loop in ROUNDS]
    gpu_training.Configuration(jobs, records).measure(3)
    assert FakeLoop.turns == ["article"] * 2 + ["vaelib", "vaelib bf16"] + ["article", "vaelib", "vaelib bf16"] * 2 + [
        "article",
        "vaelib",
    ]
    rows = {row["loop"]: row for row in json.loads(path.read_text())["rows"]}
    trainer = rows["vl.Trainer compiled"]
    assert trainer["images_per_second"] == pytest.approx(1000 / 0.4)
    assert trainer["epoch_seconds"] == pytest.approx(60_000 / 2500)
    assert trainer["times_tutorial"] == pytest.approx(100)  # of 40, 100, 300 in the three rounds
    assert trainer["compile_seconds"] == pytest.approx(29.6)
    assert trainer["of_products"] == pytest.approx(2500 * 1e6 / 1e9)
    assert (trainer["loss_before"], trainer["loss_after"], trainer["rounds"]) == (600.003, 200.0, 3)
    assert trainer["peak_device_mib"] == 7.0
    assert rows["tutorial"]["times_tutorial"] == 1.0
    assert rows["hand-written"]["failed"] == "its loss on the same weights is 601 instead of 600"
    assert rows["vl.Trainer compiled, bf16"]["failed"] == rows["vl.Trainer eager"]["failed"] == "CUDA out of memory"
    done = [gpu_training.is_done(records, "article", 64, loop, 3) for loop in ROUNDS]
    assert done == [True] * 5
    assert not gpu_training.is_done(records, "article", 64, "vaelib", 4)
    assert not gpu_training.is_done(records, "default", 64, "vaelib", 3)


def test_a_loop_that_ends_says_why(tmp_path):
    with Loop(Job("vaelib", str(tmp_path))) as loop, pytest.raises(ProcessError, match=r"No such file.*images.pt"):
        loop()


SECONDS = {"torch CUDA": 4.0, "torch CUDA on device": 3.0, "onnxruntime CUDA": 2.0, "torch CUDA compiled": 1.0}


class FakeMatrix:
    """Backends whose time of a call is given."""

    cells: ClassVar = []

    def __init__(self, model, backends, products):
        assert products == {"cuda": 1e9}
        self._backends, self.failed = set(backends), {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def cell(self, operation, batch, *, backends, **options):
        self.cells.append((operation, batch))
        if "OnnxVAE CUDA" in backends & self._backends:
            self.failed["OnnxVAE CUDA"] = "did not load"
        return [
            Row(operation, batch, name, [SECONDS[name]] * 3, 9.0, 1.0, 2.0, 1e-7, 1e-4, True, None)
            for name in SECONDS
            if name in backends & self._backends
        ]


def test_inference_rows_are_those_of_the_group_and_are_continued(path, monkeypatch):
    present = {*SECONDS, "OnnxVAE CUDA"}
    monkeypatch.setattr(gpu_inference, "Matrix", FakeMatrix)
    monkeypatch.setattr(gpu_inference, "why_missing", lambda backend, source: MISSING.get(id(backend)))
    monkeypatch.setattr(FakeMatrix, "cells", [])
    MISSING.clear()
    MISSING.update({id(b): "not here" for name, b in gpu_inference.BACKENDS.items() if name not in present})
    records = Records(path, "cuda", ("network", "operation", "batch", "backend"), products={"cuda": 1e9})
    groups = gpu_inference.groups_of("cuda", False)
    cells = [gpu_inference.Cell(group, "encode", 64) for group in ("plain", "compiled")]
    program = gpu_inference.Program(records, groups)
    program.measure("article", cells, Deadline(100), 80)
    rows = {row["backend"]: row for row in records.rows}
    assert set(rows) == present
    assert rows["onnxruntime CUDA"]["times_torch"] == 2.0
    assert rows["torch CUDA on device"]["times_torch"] == 1.0
    assert rows["torch CUDA compiled"]["times_torch"] == 4.0
    assert rows["torch CUDA compiled"]["p50"] == 1000.0
    assert rows["OnnxVAE CUDA"]["failed"] == "did not load"
    assert records._content["skipped"]["torch CUDA bf16"] == "not here"
    program.measure("article", [*cells, gpu_inference.Cell("plain", "decode", 64)], Deadline(100), 80)
    assert FakeMatrix.cells == [("encode", 64), ("encode", 64), ("decode", 64)]
    program.note_missing(["article"], [gpu_inference.Cell("compiled", "decode", 1)])
    assert records._content["skipped"]["article, decode, batch 1: compiled"] == "no time was left"


MISSING = {}


def test_every_backend_of_a_gpu_is_in_a_group():
    grouped = {name for group in gpu_inference.groups_of("cuda", False).values() for name in group.backends}
    assert grouped == {*gpu_inference.ON_CUDA, *gpu_inference.ON_CPU}
    cells = gpu_inference.cells_of("cuda", False)
    assert {cell.batch for cell in cells if cell.group == "plain"} == {1, 64, 256, 1024, 4096}
    assert len(cells) == len(set(cells))
