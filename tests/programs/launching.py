"""Starts tests/programs/train.py in several processes: without a launcher, or under two agents of torchrun.

Programs of one process are forks of one that has imported what they need, which takes longer than what they do.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent
SETTINGS = {"posterior_mean": True, "norm": "group", "images": 101, "max_epochs": 3, "batch_size": 16}
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
PATIENCE = 120  # seconds until a test gives up
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vaelib.cli", "vaelib.training", "vaelib.data", "accelerate", "matplotlib.pyplot"])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def program(settings):
    return [str(PROGRAMS / "train.py"), json.dumps(SETTINGS | settings)]


def begin(command, **options):
    """A process whose children, once orphans, can be ended with it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options)


def start(processes, settings, environment=None):
    """Without a launcher."""
    started, port = [], str(free_port())
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = environment_of(**(ranks | address if processes > 1 else {}), **(environment or {}))
        started.append(begin([sys.executable, "-W", "ignore", *program(settings)], env=own))
    return started


def start_nodes(command, environment=None, nodes=2, folders=None, arguments=(), meets=()):
    """Agents that meet over c10d at the first one, one process each; ``folders`` are their working directories."""
    port, started = free_port(), []
    for number in range(nodes):
        agent = agent_of(number, f"127.0.0.{number + 1}", f"127.0.0.1:{port}", meets, arguments)
        own = environment_of(ALL_RANKS="1", **(environment or {}))
        started.append(begin([*agent, *command], env=own, cwd=None if folders is None else folders[number]))
    return started


def agent_of(number, address, endpoint, meets=(), arguments=()):
    """One of two agents, of which the first holds the store at which they meet."""
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    meeting += ["--rdzv-endpoint", endpoint, "--local-addr", address]
    return [*TORCHRUN, *meeting, "--rdzv-conf", ",".join([f"is_host={int(number == 0)}", *meets]), *arguments]


def end(started, faults=None):
    """Kill what is left of processes and their children; those that are stopped have their numbers in ``faults``."""
    marks = [] if faults is None else [mark.read_text() for mark in Path(faults).iterdir()]
    stopped = [int(mark) for mark in marks if mark]
    for number, kill in [*((process.pid, os.killpg) for process in started), *((pid, os.kill) for pid in stopped)]:
        with contextlib.suppress(ProcessLookupError):
            kill(number, signal.SIGKILL)
    for process in started:
        process.communicate()


def outputs_of(started):
    """Standard output and error of each, once all have ended."""
    try:
        return [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        end(started)


def reports_of(outputs):
    """What the ranks reported, in their order."""
    lines = [line for out, _ in outputs for line in out.splitlines() if line.startswith("{")]
    return sorted((json.loads(line) for line in lines), key=lambda report: int(report["rank"]))


def finish(started):
    """The reports of processes that must all succeed."""
    outputs = outputs_of(started)
    errors = "\n".join(errors[-3000:] for _, errors in outputs)
    assert [process.returncode for process in started] == [0] * len(started), errors
    return reports_of(outputs)


def run(processes, environment=None, **settings):
    return finish(start(processes, settings, environment))


def run_nodes(environment=None, folders=None, arguments=(), **settings):
    return finish(start_nodes(program(settings), environment, folders=folders, arguments=arguments))
