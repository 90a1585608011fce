"""The programs around benchmarks/gpu.sh: result files that are whole at every moment, and what becomes of the rest."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import Fork, environment_of

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def results():
    return runpy.run_path(str(BENCHMARKS / "gpu_results.py"))


def run(*command, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)


def begin(program, *options):
    """A program of benchmarks/."""
    return Fork([str(BENCHMARKS / program), *map(str, options)], environment_of())


def test_a_result_file_is_whole_after_every_row(results, tmp_path):
    path = tmp_path / "training.json"
    written = results["Results"](path, "cpu")
    for add in (lambda: written.add({"a": 1}), lambda: written.skip("b", "no zuko"), lambda: written.note(c=2)):
        add()
        content = json.loads(path.read_text())
    assert (content["rows"], content["skipped"], content["c"]) == ([{"a": 1}], {"b": "no zuko"}, 2)
    assert {"device", "driver", "versions", "commit", "date"} <= content["environment"].keys()
    assert content["environment"]["versions"]["torch"]
    assert [file.name for file in tmp_path.iterdir()] == ["training.json"]


def test_steps_are_noted_and_those_of_an_earlier_call_stay(results, tmp_path, capsys):
    path = tmp_path / "steps.json"
    results["begin"](path, "cpu")
    results["end"](path, "tests", "skipped", "0", "no time remained")
    results["end"](path, "row", "timed out", "60", "at its limit of 60 s")
    results["begin"](path, "cpu")
    results["end"](path, "tests", "passed", "12", "")
    content = json.loads(path.read_text())
    assert content["skipped"] == {}
    results["show"](path)
    assert capsys.readouterr().out == "row: timed out after 60 s, at its limit of 60 s\ntests: passed after 12 s\n"


def test_a_gpu_that_is_not_there_is_reported(results, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here; --device cpu rehearses"):
        results["begin"](tmp_path / "steps.json", "cuda")


@pytest.mark.parametrize("wrong", [[], ["--help"], ["out", "--device"], ["out", "--device", "tpu"], ["out", "-x", "1"]])
def test_wrong_arguments_show_the_usage(wrong, tmp_path):
    found = run("bash", BENCHMARKS / "gpu.sh", *wrong, cwd=tmp_path)
    assert found.returncode == 2
    assert "bash benchmarks/gpu.sh OUT [--wheels DIR] [--mnist FILE]" in found.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_in_which_nothing_ran_fails(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ "$last" = missing ] && exec echo no rich\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    command = ["bash", BENCHMARKS / "gpu.sh", tmp_path / "out", "--device", "cpu"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 1
    assert found.stderr.endswith("No step ran.\n")
    steps = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert {row["outcome"] for row in steps["rows"]} == {"skipped"}
    assert set(steps["skipped"].values()) == {"no rich"}


@pytest.mark.slow
def test_tests_that_are_killed_leave_those_that_have_ended(tmp_path):
    out = tmp_path / "tests.json"
    process = begin("gpu_tests.py", "--out", out, "--device", "cpu")
    for _ in range(1200):
        time.sleep(0.1)
        if out.exists() and len(rows := json.loads(out.read_text())["rows"]) > 3:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    content = json.loads(out.read_text())
    assert len(rows) <= len(content["rows"]) < content["collected"]
    assert {row["outcome"] for row in content["rows"]} <= {"passed", "skipped"}


@pytest.mark.slow
def test_no_test_begins_when_the_time_is_over(tmp_path):
    out = tmp_path / "tests.json"
    process = begin("gpu_tests.py", "--out", out, "--device", "cpu", "--seconds", 0)
    shown, _ = process.communicate()
    content = json.loads(out.read_text())
    assert process.returncode == 0, shown
    assert content["rows"] == []
    assert set(content["skipped"].values()) == {"no time remained"}
    assert len(content["skipped"]) == content["collected"] > 50


@pytest.mark.slow
def test_the_row_is_resumed(mnist_root, tmp_path):
    pytest.importorskip("zuko")
    options = ["--out", tmp_path / "row.json", "--runs", tmp_path / "runs", "--device", "cpu", "--quick"]
    ended = []
    for seconds in (0, 60):
        process = begin("gpu_row.py", *options, "--seconds", seconds)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        (row,) = json.loads((tmp_path / "row.json").read_text())["rows"]
        ended.append(row["ended"])
        assert row["log_likelihood"]["value"] < 0
    assert ended == ["out of time after step 1; resumes from there", "all epochs are done"]
    assert row["epochs"] == 1
    assert row["minutes_to_train"] > 0
