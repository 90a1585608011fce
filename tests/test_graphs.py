"""What a run does for CUDA, as far as it can be seen without; tests/test_gpu*.py hold what needs it."""

import types

import pytest
import torch

import vaelib as vl
from vaelib.errors import TrainingError
from vaelib.training import hardware
from vaelib.training.optimization import Optimization


def settings():
    """All that torch can be asked about TF32; "mixed" where its two interfaces disagree, and asking is an error."""
    places = (
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.matmul,
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
    )
    found = [place.fp32_precision for place in places]
    for ask in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.allow_tf32,
    ):
        try:
            found.append(ask())
        except RuntimeError:
            found.append("mixed")
    return found


BEFORE = {
    "torch's own": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "new": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new, convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("name", BEFORE)
def test_tf32_is_as_asked_for_whichever_interface_asks_and_comes_back(name, tf32):
    with hardware.float32_products(tf32=False):  # which gives back what the other tests are to find
        BEFORE[name]()
        before = settings()
        with hardware.float32_products(tf32=tf32):
            products, _, *convolutions, precision, old_products, old_convolutions = settings()
            assert [products, *convolutions] == ["tf32" if tf32 else "ieee"] * 3
            if "mixed" not in before:
                assert [old_products, old_convolutions] == [tf32, tf32]
                assert precision == ("high" if tf32 else "highest")
        assert settings() == before


def test_convolutions_on_cuda_are_deterministic_during_a_run(monkeypatch):
    assert not torch.backends.cudnn.deterministic
    with hardware.tuned(torch.nn.Conv2d(1, 1, 3), torch.device("cuda"), "bf16"):
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic


def test_random_states_of_the_cpu_are_enough_for_a_gpu():
    """A run that began on the CPU resumes on a GPU, whose generator stays as the seed has set it."""
    hardware.restore_random(hardware.random_states(torch.device("cpu")), torch.device("cuda"))


@pytest.fixture
def traced(monkeypatch):
    """The sizes and numbers that torch.compile leaves free in each graph; nothing is compiled for a processor."""
    free = []

    def backend(graph, inputs):
        free.append([value for value in inputs if isinstance(value, torch.SymInt)])
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options=None: compile(function, backend=backend))
    torch.compiler.reset()
    yield free
    torch.compiler.reset()


def test_every_batch_size_is_compiled_for_itself(traced):
    """60,000 images in batches of 64 come by 64 and by 63; for a size that is free there would be no CUDA graph."""
    history = vl.Trainer(max_epochs=2, batch_size=4, compile=True).fit(
        vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)), torch.rand(11, 1, 8, 8), progress=False
    )
    assert [record.num_images for record in history] == [11, 11]
    assert traced == [[], []]  # of 3 and of 4 images


def test_on_cuda_sizes_are_fixed_and_a_number_that_changes_is_not(traced, monkeypatch):
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    doubled = hardware.compiled(lambda x, step: x * step, torch.device("cuda"))
    for step, size in enumerate((4, 3, 4, 3, 4)):
        assert torch.equal(doubled(torch.ones(size, 2), step), torch.full((size, 2), float(step)))
    assert [len(free) for free in traced] == [0, 1, 1]  # the first is of the first step alone


def test_a_loss_scale_comes_down_by_more_steps_than_an_epoch_has():
    """fp16's begins at 65,536 and is halved by each step that overflows: no reason to end a run of short epochs."""
    terms, model = vl.objectives.ElboTerms(*torch.ones(3)), torch.nn.Linear(2, 1)
    scaler = torch.amp.GradScaler("cpu")
    around = types.SimpleNamespace(scaler=scaler, num_processes=1)
    optimization = Optimization(model, torch.optim.Adam(model.parameters()), lambda step: 1e-3, around, None, None)
    for step in range(20):
        assert optimization.skipped(terms, 3) == step
        optimization.begin(step)
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        model.weight.grad.fill_(torch.inf)
        assert not optimization.finish(terms.loss)
    assert scaler.get_scale() == 2.0**16 / 2**20
    with pytest.raises(TrainingError, match="20 steps in a row were skipped"):
        optimization.skipped(terms, 3)
