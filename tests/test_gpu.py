"""Training on a GPU: what a run on the CPU gives, in every precision, and resumed to the bit."""

import copy

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from runs import Crash, CrashAt, weights

import vaelib as vl
from vaelib.errors import TrainingError
from vaelib.training import hardware

# A warning of a GPU's is shown, and fails nothing.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
"""How far float32 on a GPU may be from the CPU after some steps; products and convolutions sum in another order."""


def model_of(**options):
    torch.manual_seed(0)
    return vl.conv_vae((1, 16, 16), **{"latent_dim": 4, "hidden_channels": (8, 16), "norm": "group"} | options)


def images(count=96):
    return vl.data.shapes(count, image_size=16).images


def fit(model, *data, objective=None, **options):
    """The history of a run of one epoch in batches of 32, where `options` say nothing else."""
    options = {"max_epochs": 1, "batch_size": 32} | options
    return vl.Trainer(objective, **options).fit(model, *data, progress=False)


class Broken(vl.Elbo):
    """Whose loss is not finite at some steps, or at all."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def __call__(self, model, x, *, step=0, generator=None):
        terms = super().__call__(model, x, step=step, generator=generator)
        return terms._replace(loss=terms.loss * (float("nan") if step in self.steps or not self.steps else 1.0))


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """They take longer than runs as small as these."""
    monkeypatch.setattr("vaelib.plots.save_curves", lambda *_: None)


@pytest.fixture
def same_noise(one_source):
    """Draws on every device are those of one generator of the CPU; call it to start from the first one again."""
    return lambda: one_source.manual_seed(0)


@pytest.fixture
def fit_on_cpu(monkeypatch):
    """Trains on the CPU of a machine that has a GPU: accelerate chooses its device once a process."""

    def fit(trainer, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "1")
            AcceleratorState._reset_state(reset_partial_state=True)
            history = trainer.fit(*arguments, progress=False, **options)
        AcceleratorState._reset_state(reset_partial_state=True)
        return history

    return fit


def test_accelerate_takes_the_gpu(device):
    accelerator = hardware.make_accelerator("fp32")
    assert accelerator.device.type == device.type
    assert accelerator.num_processes == 1


def test_model_and_images_are_on_the_gpu(device):
    seen = []

    class Looks:
        def on_step(self, run):
            places = [*run.model.parameters(), *run.model.buffers(), run.examples]
            seen.append({value.device.type for value in places} | {m.device.type for m in run.optimization._buffers})

    class Where(vl.Elbo):
        def __call__(self, model, x, *, step=0, generator=None):
            seen.append({x.device.type})
            return super().__call__(model, x, step=step, generator=generator)

    model = model_of(norm="batch")
    fit(model, images(), objective=Where(), callbacks=[Looks()])
    assert seen == [{device.type}] * 6
    assert {value.device.type for value in model.state_dict().values()} == {device.type}
    assert not model.training


def test_a_run_gives_the_losses_of_the_cpu(device, same_noise, fit_on_cpu):
    start, found = model_of(), []
    for fit in (lambda trainer, *a: trainer.fit(*a, progress=False), fit_on_cpu):
        same_noise()
        model = copy.deepcopy(start)
        history = fit(vl.Trainer(max_epochs=2, batch_size=32, precision="fp32"), model, images(), images(32))
        found.append(torch.tensor([[*record.train, *record.val] for record in history]))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("precision", hardware.PRECISIONS)
def test_every_precision_trains(device, norm, precision):
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("only CUDA has it")
    model = model_of(norm=norm)
    history = fit(model, images(), images(32), max_epochs=3, precision=precision)
    assert history[-1].val.loss < history[0].val.loss
    assert history[-1].skipped <= 16  # of fp16, until its scale has come down
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_lower_precision_ends_near_the_full_one(cuda, precision):
    full, lower = (fit(model_of(), images(320), images(64), max_epochs=4, precision=p) for p in ("fp32", precision))
    assert lower[-1].val.loss == pytest.approx(full[-1].val.loss, rel=0.03)


def test_tf32_is_off_in_fp32_and_on_in_tf32(cuda):
    seen = []

    class Products(vl.Elbo):
        def __call__(self, model, x, *, step=0, generator=None):
            a = torch.linspace(0, 1, 512 * 512, device=x.device).view(512, 512).sqrt()
            exact = a.double() @ a.double()
            seen.append(((a @ a).double() - exact).norm() / exact.norm())
            return super().__call__(model, x, step=step, generator=generator)

    for precision in ("fp32", "tf32"):
        fit(model_of(), images(32), objective=Products(), precision=precision)
    assert seen[0] < 1e-6
    assert torch.cuda.get_device_capability() < (8, 0) or 1e-6 < seen[1] < 1e-3


OPTIONS = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "accumulated": {"accumulate": 2},
    "clipped": {"clip_norm": 1.0, "skip_norm": 1e6},
    "loader": {},
    "dropout": {},
    "fp16": {"precision": "fp16"},
    "sgd": {"optimizer": torch.optim.SGD, "learning_rate": 1e-5},
    "adamw": {"optimizer": "adamw"},
    "labels": {},
    "codes": {},
}
PARTS = {
    "dropout": lambda: {"dropout": 0.2},
    "labels": lambda: {"condition": vl.Labels(3, dropout=0.3)},
    "codes": lambda: {"latent_dim": None, "latent": vl.VectorQuantizer((2, 4, 4), 16, restart=0.5)},
}


def data_of(name, count=96):
    if name == "labels":
        return vl.data.ImageDataset(images(count), condition=torch.arange(count) % 3)
    if name != "loader" or count != 96:
        return images(count)
    whole = torch.utils.data.TensorDataset(images().float() / 255)
    return torch.utils.data.DataLoader(whole, 32, shuffle=True, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_bitwise_as_an_unbroken_one(device, tmp_path, name):
    if name == "fp16" and device.type == "cpu":
        pytest.skip("only CUDA has it")

    def run(directory, stop_at=None, resume=False):
        torch.manual_seed(0)
        model = model_of(**{"norm": "batch"} | PARTS.get(name, dict)())
        parts = [vl.EMA(0.9), vl.Checkpoints(every=1), vl.Pictures(every=9), CrashAt(stop_at)]
        trainer = vl.Trainer(max_epochs=2, batch_size=32, output_dir=directory, callbacks=parts, **OPTIONS[name])
        trainer.fit(model, data_of(name), data_of(name, 32), resume=resume, progress=False)
        return weights(model)

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(Crash):
        run(tmp_path / "broken", 5)
    assert torch.equal(run(tmp_path / "broken", resume=True), unbroken)


@pytest.mark.parametrize("latent", ["gaussian", "codes"])
def test_two_runs_are_alike_to_the_bit(device, latent):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        codes = {"latent_dim": None, "latent": vl.VectorQuantizer((4, 4, 4), 32, restart=0.5)}
        model = model_of(upsample="nearest", **(codes if latent == "codes" else {}))
        fit(model, images(), max_epochs=2)
        found.append(weights(model))
    assert torch.equal(*found)


def test_a_checkpoint_of_the_cpu_resumes_on_the_gpu(device, tmp_path, fit_on_cpu):
    def trainer(stop_at=None):
        parts = [vl.Checkpoints(every=1), vl.Pictures(every=9), CrashAt(stop_at)]
        return vl.Trainer(max_epochs=2, batch_size=32, output_dir=tmp_path, compile=False, callbacks=parts)

    with pytest.raises(Crash):
        fit_on_cpu(trainer(4), model_of(), images())
    AcceleratorState._reset_state(reset_partial_state=True)
    model = model_of()
    history = trainer().fit(model, images(), resume=True, progress=False)
    assert history[-1].step == 6
    assert next(model.parameters()).device.type == device.type


def test_accumulated_pieces_give_the_gradient_of_the_whole(device):
    model = vl.AutoEncoder(vl.ConvEncoder((1, 16, 16), 4, norm="group"), vl.ConvDecoder(4, (1, 16, 16), norm="group"))
    losses = []
    for accumulate in (1, 3):
        options = {"batch_size": 24, "precision": "fp32", "accumulate": accumulate}
        losses.append(fit(copy.deepcopy(model), images(24), images(24), **options)[-1].val.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_average_is_what_is_validated_and_kept(device):
    seen = []

    class Looks:
        def on_epoch(self, run):
            seen.append((weights(run.evaluated), weights(run.model)))

    model = model_of()
    fit(model, images(), batch_size=8, callbacks=[vl.EMA(0.5), Looks()])
    averaged, moved = seen[0]
    assert torch.equal(weights(model), averaged)
    assert not torch.equal(averaged, moved)
    assert {value.device.type for value in model.state_dict().values()} == {device.type}


def test_steps_that_are_not_finite_move_nothing(device):
    seen = []

    class Keeps:
        def on_step(self, run):
            seen.append(weights(run.model))

    history = fit(model_of(norm="batch"), images(), objective=Broken(1, 2), batch_size=16, callbacks=[Keeps()])
    assert history[-1].skipped == 2
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_a_run_whose_every_step_breaks_ends_with_the_name_of_the_term(device):
    with pytest.raises(TrainingError, match="loss not finite"):
        fit(model_of(), images(), objective=Broken(), batch_size=16)


def test_random_generators_come_back(device):
    def draws():
        return torch.rand(3), torch.rand(3, device=device).cpu()

    model = model_of(dropout=0.1)
    torch.manual_seed(5)
    expected = draws()
    torch.manual_seed(5)
    fit(model, images())
    assert all(torch.equal(*pair) for pair in zip(expected, draws(), strict=True))


def test_settings_of_products_come_back(device):
    def settings():
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic

    before = settings()
    for precision in ("tf32", "fp32"):
        fit(model_of(), images(32), precision=precision)
    assert settings() == before


def test_binarised_and_flipped_images_are_drawn_on_the_gpu(device):
    train = vl.data.ImageDataset(images(), dynamic=True, flip=True)
    history = fit(model_of(), train, train, max_epochs=2)
    assert history[-1].val.loss < history[0].train.loss


@pytest.fixture
def folder(tmp_path):
    for index, image in enumerate(images(64)):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index:03d}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_trains(device, folder, workers):
    stream = vl.data.stream(folder, "all", workers=workers)
    for x, _ in stream.fetch([torch.arange(8)], device):
        assert x.device.type == device.type
        torch.testing.assert_close(x.cpu(), images(64)[:8].float() / 255)
    history = fit(model_of(), stream, stream, max_epochs=2, batch_size=16)
    assert history[-1].num_images == 64
    assert history[-1].val.loss < history[0].train.loss


def test_batches_of_a_stream_come_through_pinned_memory(cuda, folder, monkeypatch):
    pinned, original = [], torch.Tensor.to

    def noted(images, *arguments, **options):
        pinned.append(images.is_pinned())
        return original(images, *arguments, **options)

    batches = vl.data.stream(folder, "all", workers=1).fetch([torch.arange(8)], cuda)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    next(batches)
    assert True in pinned


def test_images_that_do_not_fit_stay_in_memory(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    assert fit(model_of(), images(), images(32))[-1].num_images == 96


def test_a_step_waits_for_nothing(cuda):
    """CUDA itself raises where the host waits for the device; the losses are read every 50 steps and at the end."""

    class Strict:
        def on_step(self, run):
            torch.cuda.set_sync_debug_mode("error" if 3 <= run.step < 9 else "default")

    try:
        history = fit(model_of(), images(96), batch_size=8, callbacks=[Strict()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert history[-1].step == 12


def test_memory_does_not_grow_with_the_epochs(cuda):
    used = []

    class Memory:
        def on_epoch(self, run):
            used.append(torch.cuda.memory_allocated())

    fit(model_of(), images(), images(), max_epochs=5, callbacks=[Memory()])
    assert used[-1] <= used[1] + 2**16
