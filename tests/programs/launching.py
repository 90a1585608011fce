"""Starts tests/programs/train.py in several processes: without a launcher, or under two agents of torchrun.

Programs of one process, and agents, are forks of one that has imported what they need, which takes longer than what
they do. Processes that an agent starts are not.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

PROGRAMS = Path(__file__).parent
SETTINGS = {"posterior_mean": True, "norm": "group", "images": 101, "max_epochs": 3, "batch_size": 16}
PATIENCE = 120  # seconds until a test gives up
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["vaelib.cli", "vaelib.training", "vaelib.data", "accelerate", "matplotlib.pyplot", "torch.distributed.run"]
)
TORCHRUN = "torch.distributed.run"


def in_place(words, environment, folder, outputs):
    """What a fork does: a program's file, or a module, as `python` would run it in a session of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    if "MALLOC_ARENA_MAX" in environment:  # which the C library reads when a program begins
        ctypes.CDLL(None).mallopt(-8, int(environment["MALLOC_ARENA_MAX"]))
    if folder is not None:
        os.chdir(folder)
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method(None, force=True)  # processes of its own begin as they do elsewhere
    warnings.simplefilter("ignore")
    sys.argv = list(words)
    if words[0].endswith(".py"):
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


class Fork:
    """A program, with what tests use of `subprocess.Popen`; `words` are its file or module and its arguments."""

    def __init__(self, words, environment, folder=None):
        self._folder, self._outputs = tempfile.mkdtemp(), None
        paths = [os.path.join(self._folder, name) for name in ("out", "err")]
        self._process = FORKS.Process(target=in_place, args=(words, environment, folder, paths))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def communicate(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        if self._outputs is None:
            files = [Path(self._folder) / name for name in ("out", "err")]
            self._outputs = [path.read_text() if path.exists() else "" for path in files]
            shutil.rmtree(self._folder)
        return self._outputs


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
        started.append(Fork(program(settings), own))
    return started


def start_nodes(command, environment=None, nodes=2, folders=None, arguments=(), meets=()):
    """Agents that meet over c10d at the first one, one process each; ``folders`` are their working directories."""
    port, started = free_port(), []
    for number in range(nodes):
        agent = agent_of(number, f"127.0.0.{number + 1}", f"127.0.0.1:{port}", meets, arguments)
        own = environment_of(ALL_RANKS="1", **(environment or {}))
        started.append(Fork([*agent, *command], own, None if folders is None else folders[number]))
    return started


def agent_of(number, address, endpoint, meets=(), arguments=()):
    """One of two agents, of which the first holds the store at which they meet."""
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    meeting += ["--rdzv-endpoint", endpoint, "--local-addr", address]
    return [TORCHRUN, *meeting, "--rdzv-conf", ",".join([f"is_host={int(number == 0)}", *meets]), *arguments]


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
