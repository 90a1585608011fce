"""CUDA graphs, as far as they can be seen without CUDA; tests/test_gpu_compile.py holds what needs it."""

import contextlib

import torch

from vaelib.training.hardware import Graphed


class RecordedGraph:
    """Stands in for a CUDA graph: a replay runs the captured call again, into the memory of its first result."""

    def replay(self):
        self.result.copy_(self.call())


def test_a_function_is_captured_once_and_replayed(monkeypatch):
    called = []

    def double(x):
        called.append(x)
        return 2 * x

    @contextlib.contextmanager
    def capture(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        yield
        graph.call, graph.result = lambda: 2 * called[-1], graphed._function.result

    def keeping(x):
        keeping.result = double(x)
        return keeping.result

    monkeypatch.setattr("vaelib.training.hardware._side_stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    graphed = Graphed(keeping)
    arguments = [torch.tensor(float(n)) for n in range(8)]
    assert [graphed(argument).item() for argument in arguments] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert len(called) == 4  # thrice to warm up, once to capture
    assert called[-1] is not arguments[3]  # the graph reads memory of its own
