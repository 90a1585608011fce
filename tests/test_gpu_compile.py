"""`compile=True` on a GPU: kernels of inductor, launched as CUDA graphs, give what eager steps give.

They come last: to compile takes longer than all other tests together.
"""

import copy
import shutil

import pytest
import torch
from runs import Crash, CrashAt
from torch._dynamo.utils import counters

import vaelib as vl
from vaelib.benchmark import matrix
from vaelib.training.hardware import compiled, float32_products

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _compiler(device):
    if device.type == "cpu" and shutil.which("g++") is None:
        pytest.skip("there is no g++")
    torch.compiler.reset()


def images(count=320):
    return vl.data.shapes(count, image_size=16).images


def model_of(**options):
    torch.manual_seed(0)
    return vl.conv_vae((1, 16, 16), **{"latent_dim": 4, "hidden_channels": (8,), "norm": "group"} | options)


PARTS = {
    "plain": dict,
    "labels": lambda: {"condition": vl.Labels(3, dropout=0.3)},
    "codes": lambda: {"latent_dim": None, "latent": vl.VectorQuantizer((2, 8, 8), 16, restart=0.5)},
}


def autoencoder():
    """It draws nothing, so that its compiled losses are those of eager steps."""
    torch.manual_seed(0)
    parts = vl.ConvEncoder((1, 16, 16), 4, hidden_channels=(8,)), vl.ConvDecoder(4, (1, 16, 16), hidden_channels=(8,))
    return vl.AutoEncoder(*parts)


def test_a_compiled_step_gives_the_eager_loss_and_gradient(device):
    model, x = autoencoder().to(device), images(32).to(device).float() / 255
    objective, found = vl.Reconstruction(), []
    with float32_products(tf32=False):
        for step in (lambda x: objective(model, x).loss, compiled(lambda x: objective(model, x).loss, device)):
            for _ in range(3):  # the first warms up, the second captures
                model.zero_grad()
                loss = step(x)
                loss.backward()
                values = [loss.detach().clone(), *(parameter.grad.clone() for parameter in model.parameters())]
            found.append(values)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_compiled_run_has_the_losses_of_an_eager_one(device, precision):
    found = []
    for compile in (False, True):
        trainer = vl.Trainer(max_epochs=3, batch_size=32, compile=compile, precision=precision)
        history = trainer.fit(autoencoder(), images(), images(64), progress=False)
        found.append([record.val.loss for record in history])
    assert found[1] == pytest.approx(found[0], rel=1e-3 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"accumulate": 2}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("parts", PARTS)
def test_graphs_train_as_eager_steps_do(device, options, parts):
    if device.type == "cpu" and options != {"accumulate": 2}:
        pytest.skip("one of them rehearses")
    runs = []
    for compile in (False, True):
        torch.manual_seed(0)
        data = images()
        if parts == "labels":
            data = vl.data.ImageDataset(data, condition=torch.arange(len(data)) % 3)
        trainer = vl.Trainer(max_epochs=3, batch_size=32, compile=compile, **options)
        history = trainer.fit(model_of(**PARTS[parts]()), data, data, progress=False)
        runs.append([record.val.loss for record in history])
    assert runs[1] == pytest.approx(runs[0], rel=0.05)  # inductor draws other noise
    assert runs[1][-1] < runs[1][0]


def test_fp16_is_compiled(cuda):
    trainer = vl.Trainer(max_epochs=2, batch_size=32, compile=True, precision="fp16")
    history = trainer.fit(model_of(), images(), images(), progress=False)
    assert history[-1].val.loss < history[0].val.loss


def test_graphs_skip_steps_that_are_not_finite(cuda):
    usual = images().float().mean().item() / 255

    class Sometimes(vl.Elbo):
        def __call__(self, model, x, *, step=0, generator=None):
            terms = super().__call__(model, x, step=step, generator=generator)
            return terms._replace(loss=terms.loss * torch.where(x.mean() > usual, torch.inf, 1.0))

    model = model_of(norm="batch")
    trainer = vl.Trainer(objective=Sometimes(), max_epochs=2, batch_size=32, compile=True)
    history = trainer.fit(model, images(), progress=False)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert 0 < history[-1].skipped < history[-1].step


def test_a_schedule_that_follows_the_step_is_not_captured_at_every_step(cuda):
    counters.clear()
    trainer = vl.Trainer(vl.Elbo(beta=vl.linear_warmup(30)), max_epochs=3, batch_size=32, compile=True)
    history = trainer.fit(model_of(), images(), images(), progress=False)
    assert history[-1].val.loss < history[0].train.loss * 2
    assert counters["stats"]["unique_graphs"] <= 12  # of 30 steps; 8 on the CPU, where the checks of beta cut it


def test_a_compiled_run_resumes_bitwise(device, tmp_path):
    def run(directory, stop_at=None, resume=False):
        model = model_of(norm="batch")
        parts = [vl.EMA(0.9), vl.Checkpoints(every=1), vl.Pictures(every=9), CrashAt(stop_at)]
        trainer = vl.Trainer(max_epochs=2, batch_size=32, compile=True, output_dir=directory, callbacks=parts)
        trainer.fit(model, images(256), resume=resume, progress=False)
        return [value.clone() for value in model.state_dict().values()]

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(Crash):
        run(tmp_path / "broken", 11)
    resumed = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(*pair) for pair in zip(resumed, unbroken, strict=True))


def test_a_model_is_as_it_was_after_a_compiled_run(device):
    model = autoencoder()
    vl.Trainer(max_epochs=1, batch_size=32, compile=True).fit(model, images(64), progress=False)
    again = copy.deepcopy(model)
    x = images(4).float().to(device) / 255
    torch.testing.assert_close(again.reconstruct(x), model.reconstruct(x))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_backends_of_the_benchmark_give_right_numbers(cuda):
    """The plain one and autocast; gpu_inference.py checks the numbers of all that it measures."""
    names = ["torch CUDA", "torch CUDA bf16"]
    found = matrix.measure(model_of(), backends=names, batches=(1, 8), seconds=0.0, rounds=1)
    assert not found.failed
    assert {row.backend for row in found.rows} == set(names)
    assert all(row.correct for row in found.rows)
