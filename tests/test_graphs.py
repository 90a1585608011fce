"""CUDA graphs: what can be seen without CUDA, and what needs it."""

import contextlib

import pytest
import torch

import vaelib as vl
from vaelib.training.hardware import Graphed

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


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


@needs_cuda
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"accumulate": 2}, {"precision": "bf16"}])
def test_graphs_train_as_eager_steps_do(options):
    images = vl.data.shapes(320, image_size=16).images
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = vl.conv_vae((1, 16, 16), 4, hidden_channels=(8, 16), norm="group")
        history = vl.Trainer(max_epochs=4, batch_size=32, compile=compiled, **options).fit(
            model, images, images, progress=False
        )
        runs.append([record.val.loss for record in history])
    assert runs[1] == pytest.approx(runs[0], rel=0.05)  # inductor draws other noise
    assert runs[1][-1] < runs[1][0]


@needs_cuda
def test_graphs_leave_out_steps_that_are_not_finite():
    images = vl.data.shapes(320, image_size=16).images
    usual = images.float().mean() / 255

    class Sometimes(vl.Elbo):
        def __call__(self, model, x, *, step=0, generator=None):
            terms = super().__call__(model, x, step=step, generator=generator)
            return terms._replace(loss=terms.loss * torch.where(x.mean() > usual, torch.inf, 1.0))

    model = vl.conv_vae((1, 16, 16), 4, hidden_channels=(8,))
    history = vl.Trainer(objective=Sometimes(), max_epochs=2, batch_size=32, compile=True).fit(
        model, images, progress=False
    )
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 < history[-1].skipped < history[-1].step
