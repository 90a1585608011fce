"""Two agents of torchrun with one process each, as on two machines: loopback, or network namespaces."""

import os
import time

import pytest
from launching import end, outputs_of, program, run, run_nodes, start_nodes

pytestmark = pytest.mark.slow
DRAWS = {"posterior_mean": False, "norm": "batch", "every": 3}


@pytest.fixture(scope="module")
def alone():
    return run(1)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Working directories of two machines that share nothing."""
    return [tmp_path_factory.mktemp("node") for _ in range(2)]


@pytest.fixture(scope="module")
def two_nodes(folders):
    return run_nodes(folders=folders, output_dir="run")


def test_two_nodes_train_as_one_process_does(alone, two_nodes):
    first, second = two_nodes
    assert first["state"] == second["state"]
    for name in ("train", "val"):
        assert first[name] == second[name] == pytest.approx(alone[name], rel=1e-5)


def test_each_image_is_seen_once_an_epoch_by_one_of_the_nodes(alone, two_nodes):
    for name, count in (("seen", 101), ("validated", 37)):
        for whole, first, second in zip(*(report[name] for report in (alone, *two_nodes)), strict=True):
            assert len(set(whole)) > 0.9 * count  # some of the built-in shapes are alike
            assert len(whole) == count
            assert sorted(first + second) == sorted(whole)
            assert abs(len(first) - len(second)) <= 7  # one in each of 7 steps


def test_only_the_first_process_writes(two_nodes, folders):
    written = [sorted(os.listdir(folder)) for folder in folders]
    assert sorted(written) == [[], ["run"]]
    holder = folders[written.index(["run"])] / "run"
    assert {"best", "checkpoints", "history.csv", "last"} <= set(os.listdir(holder))


def test_a_checkpoint_that_one_node_cannot_read_ends_both(two_nodes, folders):
    started = start_nodes(program({"output_dir": "run", "resume": True, "max_epochs": 4}), folders=folders)
    message = "`output_dir` must be on a file system that all processes share: process 1 cannot read run/checkpoints/"
    for (_, errors), process in zip(outputs_of(started), started, strict=True):
        assert process.returncode == 1
        assert message in errors
    assert sorted(len(os.listdir(folder)) for folder in folders) == [0, 1]


def test_killed_ranks_come_back_and_nothing_differs(tmp_path):
    """SIGKILL of the second rank, then of the first, which holds the lock and writes; to the bit the unbroken run."""
    (tmp_path / "faults").mkdir()
    faults = {"KILLED": "1:5 0:11", "FAULTS": str(tmp_path / "faults")}
    settings = DRAWS | {"output_dir": str(tmp_path / "run"), "resume": True}
    broken = run_nodes(faults, arguments=["--max-restarts", "5"], **settings)
    assert len(list((tmp_path / "faults").iterdir())) == 2
    whole = run_nodes(**DRAWS | {"output_dir": str(tmp_path / "whole")})
    for name in ("state", "train", "val", "images"):
        assert [report[name] for report in broken] == [report[name] for report in whole]


def seconds_until_they_end(started, tmp_path):
    """After the fault, whose mark the process leaves just before it."""
    try:
        while not list(tmp_path.iterdir()) and all(process.poll() is None for process in started):
            time.sleep(0.05)
        before = time.monotonic()
        outputs = [process.communicate(timeout=100) for process in started if process.poll() is None]
        return time.monotonic() - before, "".join(errors for _, errors in outputs)
    finally:
        end(started)
