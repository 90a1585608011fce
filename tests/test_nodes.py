"""Two agents of torchrun with one process each, as on two machines: loopback, or network namespaces."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from launching import (
    SETTINGS,
    agent_of,
    begin,
    end,
    environment_of,
    outputs_of,
    program,
    run,
    run_nodes,
    start,
    start_nodes,
)
from train import report_of
from writing import write_shard

pytestmark = pytest.mark.slow
DRAWS = {"posterior_mean": False, "norm": "batch", "every": 3}


@pytest.fixture(scope="module")
def alone():
    return report_of({**SETTINGS})


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


LONG = DRAWS | {"max_epochs": 100_000, "compile": False}  # until something happens
NEVER_AGAIN = "RendezvousTimeoutError"
LOST = {
    # What happens to the second process, what the agents are given, and what the error says.
    "stopped": ({"FROZEN": "1:20"}, {}, "No sign of life from process 1 of 2 for 30 seconds"),
    "killed with its agent": ({"NODE_KILLED": "1:20"}, {}, "onnection"),
    "killed with its agent, others waiting for it": (
        {"NODE_KILLED": "1:20"},
        {"arguments": ["--max-restarts", "3"], "meets": ["join_timeout=10"]},
        NEVER_AGAIN,
    ),
    "never there": ({}, {"nodes": 1, "meets": ["join_timeout=10"]}, NEVER_AGAIN),
}


def seconds_and_errors(started, faults, waits):
    """From the fault, which leaves a mark just before, to the end of the first agent."""
    try:
        while waits and not list(faults.iterdir()) and started[0].poll() is None:
            time.sleep(0.05)
        before = time.monotonic()
        _, errors = started[0].communicate(timeout=100)
        return time.monotonic() - before, started[0].returncode, errors
    finally:
        end(started, faults)


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """All at once, since they mostly wait: for half a minute, in which other tests run."""
    with ThreadPoolExecutor(len(LOST) + 1) as pool:
        results = {}
        for name, (what, options, _) in LOST.items():
            faults = tmp_path_factory.mktemp("faults")
            settings = LONG | {"output_dir": str(tmp_path_factory.mktemp("run")), "resume": True}
            started = start_nodes(program(settings), what | {"FAULTS": str(faults)}, **options)
            results[name] = pool.submit(seconds_and_errors, started, faults, bool(what))
        slow = {"BUSY": "0:3", "BUSY_SECONDS": "12"}
        results["slow"] = pool.submit(run, 2, slow, **DRAWS, max_epochs=1, silence=4.0)
        yield results


meanwhile = pytest.mark.usefixtures("lost")  # begins it


@meanwhile
def test_killed_ranks_come_back_and_nothing_differs(tmp_path):
    """SIGKILL of the second rank, then of the first, which holds the lock and writes; to the bit the unbroken run."""
    (tmp_path / "faults").mkdir()
    faults = {"KILLED": "1:5 0:11", "FAULTS": str(tmp_path / "faults")}
    settings = DRAWS | {"output_dir": str(tmp_path / "run"), "resume": True}
    faults["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else restarted processes may find the addresses of killed ones
    whole = run(2, {"ALL_RANKS": "1"}, **DRAWS)
    broken = run_nodes(faults, arguments=["--max-restarts", "5"], **settings)
    assert len(list((tmp_path / "faults").iterdir())) == 2
    for name in ("state", "train", "val", "images"):
        assert [report[name] for report in broken] == [report[name] for report in whole]


@pytest.fixture
def network(tmp_path):
    """Two network namespaces with a cable between them, and the addresses at its ends."""
    names = [f"vaelib{os.getpid()}{end}" for end in "ab"]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add end netns {names[0]} type veth peer name end netns {names[1]}"]
    for number, name in enumerate(names):
        commands += [f"ip -n {name} addr add 10.77.0.{number + 1}/24 dev end"]
        commands += [f"ip -n {name} link set {device} up" for device in ("lo", "end")]
        commands += [f"ip netns exec {name} sysctl -w net.ipv4.tcp_retries2=5"]
    try:
        for command in commands:
            result = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if result.returncode != 0:
                pytest.skip(f"network namespaces are not permitted: {command}: {result.stderr.strip()}")
        yield names
    except FileNotFoundError:
        pytest.skip("there is no program `ip`")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_a_cable_that_is_cut_ends_both_sides(network, tmp_path):
    """No connection is closed: every packet goes to an address that nobody has. 8 seconds of silence are borne here."""
    started = []
    command = program(LONG | {"output_dir": str(tmp_path / "run"), "silence": 8.0})
    for number, name in enumerate(network):
        agent = [sys.executable, "-m", *agent_of(number, f"10.77.0.{number + 1}", "10.77.0.1:29500")]
        own = environment_of(GLOO_SOCKET_IFNAME="end", SHOW_STEPS="1")
        started.append(begin(["ip", "netns", "exec", name, *agent, *command], env=own))
    try:
        assert any(line.startswith("step 20 ") for line in started[0].stdout)
        for number, name in enumerate(network):
            neighbour = (
                f"ip -n {name} neigh replace 10.77.0.{2 - number} lladdr 02:00:00:00:00:99 dev end nud permanent"
            )
            subprocess.run(neighbour.split(), check=True)
        before = time.monotonic()
        for process in started:
            _, errors = process.communicate(timeout=100)
            assert process.returncode != 0
            assert "No sign of life" in errors or "Connection timed out" in errors
        assert time.monotonic() - before < 38
    finally:
        end(started)


def write_shards(folder, counts, size):
    """Tar shards of noise, which no file format makes smaller."""
    random = np.random.default_rng(0)
    for number, count in enumerate(counts):
        images = [random.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(count)]
        write_shard(folder / f"{number}.tar", [(f"{index:03d}.png", image) for index, image in enumerate(images)])
    return folder


@meanwhile
@pytest.mark.parametrize(("counts", "workers"), [([40, 3, 25, 60, 13], 2), ([52], 0)])
def test_two_ranks_share_shards_by_image_and_resume_within_an_epoch(counts, workers, tmp_path):
    """Uneven shards, and fewer shards than ranks; stopped after 2 steps of the second epoch."""
    settings = {"shards": str(write_shards(tmp_path / "shards", counts, 8)), "workers": workers}
    settings |= {"max_epochs": 2, "output_dir": str(tmp_path / "run"), "resume": True}
    steps = -(-sum(counts) // 16)
    stopped = start(2, settings, {"STOPPED": f"1:{steps + 2}"})
    outputs_of(stopped)
    assert [process.returncode for process in stopped] == [143, 143]
    *_, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    resumed = run(2, {"ALL_RANKS": "1"}, **settings)
    whole = run(2, {"ALL_RANKS": "1"}, **settings | {"output_dir": str(tmp_path / "whole")})
    assert [report["state"] for report in resumed] == [report["state"] for report in whole]
    for first, second in zip(*(report["seen"] for report in whole), strict=True):
        assert len(set(first + second)) == len(first + second) == sum(counts)
    done = int(newest.name.removeprefix("step_")) - steps
    for before, after in zip(whole, resumed, strict=True):
        last = after["seen"][-1] if done < steps else before["seen"][-1]
        assert before["seen"][-1][-len(last) :] == last


@meanwhile
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_two_ranks_does_not_grow_with_the_shards(tmp_path):
    """As many steps over five shards and over four times as many; 80 MiB more on disk, 94 MiB more decoded."""
    shards = write_shards(tmp_path / "once", [60, 140, 100, 90, 110], 256)
    (tmp_path / "4 times").mkdir()
    for shard in shards.iterdir():
        for copy in range(4):
            (tmp_path / "4 times" / f"{copy}{shard.name}").symlink_to(shard)
    memory = {}
    for name, epochs in (("once", 4), ("4 times", 1)):
        settings = {"shards": str(tmp_path / name), "max_epochs": epochs, "batch_size": 50, "posterior_mean": False}
        reports = run(2, {"ALL_RANKS": "1", "MALLOC_ARENA_MAX": "1"}, **settings)
        assert [report["images"] for report in reports] == [[2000 // epochs] * epochs] * 2
        memory[name] = [report["memory"][-1] / 1024 for report in reports]
    print("MiB of each rank at the end:", memory)
    for once, four_times in zip(*memory.values(), strict=True):
        assert four_times < once + 25


@pytest.mark.parametrize("what", LOST)
def test_a_machine_that_never_comes_back_ends_the_run_within_a_minute(lost, what):
    seconds, code, errors = lost[what].result()
    assert seconds < 60
    assert code != 0
    assert LOST[what][2] in errors


def test_long_work_of_one_process_ends_nothing(lost):
    """The others wait in a collective three times as long as silence is borne."""
    assert len(lost["slow"].result()[0]["train"]) == 1
