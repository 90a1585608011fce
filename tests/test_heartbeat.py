"""A process that falls silent ends the others, one that is slow does not; threads in the place of processes."""

import threading
import time

import pytest

from vaelib.training import hardware, processes
from vaelib.training.processes import Heartbeat


class Connection:
    """One process's to a store; `torch.distributed.HashStore` has no way to fall silent."""

    def __init__(self, contents):
        self.contents, self.answers = contents, threading.Event()
        self.answers.set()

    def set(self, key, value):
        self.answers.wait()
        self.contents[key] = value

    def multi_get(self, keys):
        self.answers.wait()
        if any(key not in self.contents for key in keys):
            raise RuntimeError("wait timeout")
        return [self.contents[key] for key in keys]


@pytest.fixture
def codes(monkeypatch):
    """Exit codes with which processes were ended."""
    monkeypatch.setattr(processes, "SILENCE", 0.6)
    monkeypatch.setattr(processes, "_LOOK", 0.02)
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    return codes


@pytest.fixture
def pair(codes):
    contents = {}
    connections = [Connection(contents) for _ in range(2)]
    beating = [Heartbeat(connection, rank, 2, group=7) for rank, connection in enumerate(connections)]
    yield beating, connections
    for connection in connections:
        connection.answers.set()
    for one in beating:
        one.leave()


def wait_for(codes):
    before = time.monotonic()
    while not codes and time.monotonic() - before < 20:
        time.sleep(0.01)
    return time.monotonic() - before


def test_whoever_beats_may_be_slow(pair, codes):
    with pair[0][0].watched():
        time.sleep(1.5)
    assert codes == []


@pytest.mark.parametrize("silent", [[1], [0, 1]], ids=["another", "the store"])
def test_silence_ends_the_process(pair, codes, caplog, silent):
    for number in silent:
        pair[1][number].answers.clear()
    with pair[0][0].watched():
        assert wait_for(codes) >= 0.5
    assert codes[0] == 1
    assert "No sign of life from process 1 of 2 for 1 seconds" in caplog.text
    assert "resume from the last checkpoint" in caplog.text


def test_outside_of_training_nobody_is_watched(pair, codes):
    pair[1][1].answers.clear()
    time.sleep(1.0)
    assert codes == []


def test_a_process_that_was_stopped_itself_hears_the_others_first(pair, codes, monkeypatch):
    """As after Ctrl-Z and `fg` of all: the clock has gone on, and nobody has beaten."""
    pair[1][0].answers.clear()
    pair[1][1].answers.clear()
    now = time.monotonic
    with pair[0][0].watched():
        monkeypatch.setattr(processes.time, "monotonic", lambda: now() + 100)
        for connection in pair[1]:
            connection.answers.set()
        time.sleep(0.5)
        assert codes == []


def test_a_store_that_outlives_restarts_is_reported(monkeypatch, caplog):
    class State:
        is_main_process = True

    monkeypatch.setattr(hardware, "PartialState", State)
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    hardware._warn_of_a_store_that_stays()
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every machine" in caplog.text
    caplog.clear()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # what that variable leads to
    hardware._warn_of_a_store_that_stays()
    assert caplog.text == ""


def test_without_an_address_there_is_a_warning(monkeypatch, caplog):
    class State:
        num_processes = 2

    monkeypatch.setattr(processes, "PartialState", State)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert processes.heartbeat.__wrapped__() is None
    assert "There is no MASTER_ADDR: a lost machine is noticed only after torch's timeout" in caplog.text
