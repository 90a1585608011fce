"""Training: vaelib's Trainer beside the tutorial's loop, pythae's trainer and a hand-written loop, interleaved.

All four train the tutorial's network from the same weights on the same pictures in batches of 64 with Adam at 1e-3.
Each runs in a process of its own, one at a time, and first proves that its loss on those weights is everybody's.
"""

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import vaelib as vl
from vaelib.benchmark.roofline import rates

EXAMPLES = Path(__file__).parent.parent / "examples"
FLOORS = Path(__file__).parent / "floors.toml"
LOOPS = ("article", "pythae", "handwritten", "vaelib")
THREADS = torch.get_num_threads()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

WORKER = '''
import json, sys, time, warnings

import torch, torch.nn.functional as F
from torch import nn

loop, directory, examples, threads, device = sys.argv[1:]
sys.path.insert(0, examples)
torch.set_num_threads(int(threads))
import standalone_article
import vaelib as vl

images = torch.load(directory + "/images.pt", weights_only=True)  # uint8 (N, 1, 28, 28)
held_out, train = (vl.data.ImageDataset(part) for part in images.split([1024, len(images) - 1024]))
x = vl.data.derive.resized(held_out, (32, 32)).batch(slice(None)).to(device)
network = standalone_article.ArticleVAE().to(device)
weights = torch.load(directory + "/weights.pt", weights_only=True)
network.load_state_dict(weights)


def as_vaelib():
    model = vl.presets.article_vae().to(device)
    for ours, theirs in zip(model.state_dict().values(), network.state_dict().values(), strict=True):
        ours.copy_(theirs)
    return model


def answer(seconds, loss):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            print(json.dumps({"seconds": seconds, "loss": float(loss())}), flush=True)


def article():
    """DataLoader, one PIL picture after the other, eager."""
    from PIL import Image
    from torchvision import transforms

    class Pictures(torch.utils.data.Dataset):
        resize = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
        def __len__(self): return len(train)
        def __getitem__(self, index): return self.resize(Image.fromarray(train.images[index, 0].numpy(), "L")), 0

    loader = torch.utils.data.DataLoader(Pictures(), batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    def one_round():
        return standalone_article.train_epoch(network, optimizer, ((p.to(device), l) for p, l in loader))
    def loss():
        network.eval()
        return standalone_article.loss_sum(x, *network(x)) / len(x)
    return one_round, loss


def pythae():
    """Its own trainer; pictures resized beforehand, as its datasets hold tensors."""
    import logging
    logging.disable()
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.network = network
        def forward(self, x):
            mu, logvar = self.network.encode(x)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.network = network
        def forward(self, z): return ModelOutput(reconstruction=self.network.decode(z))

    config = VAEConfig(input_dim=(1, 32, 32), latent_dim=20, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).to(device)
    pictures = vl.data.derive.resized(train, (32, 32)).batch(slice(None))
    config = BaseTrainerConfig(output_dir=directory, per_device_train_batch_size=64, learning_rate=1e-3, num_epochs=1)
    config.no_cuda = device == "cpu"
    trainer = BaseTrainer(model, BaseDataset(pictures, torch.ones(len(pictures))), training_config=config)
    trainer.prepare_training()
    network.load_state_dict(weights)  # its constructor ran a batch in training mode, which moved the running statistics
    def one_round():
        started = time.perf_counter()
        trainer.train_step(1)
        return time.perf_counter() - started
    def loss():
        model.eval()
        return model({"data": x}).loss
    return one_round, loss


def handwritten():
    """What one would write to be as fast: the same tricks, without a trainer."""
    from vaelib.training.convolutions import fast_convolutions
    from vaelib.training.flat import flattened
    model = as_vaelib().to(memory_format=torch.channels_last)
    pictures = vl.data.derive.resized(train, (32, 32)).images.to(device)
    optimizer = torch.optim.Adam(flattened(model), lr=1e-3, fused=True)
    objective = vl.Elbo()
    step = lambda x: objective(model, x).loss
    step = torch.compile(step)
    parts = vl.data.dataset.even_parts(len(pictures), 64)
    model.forms = fast_convolutions(model)  # kept, or it would end at once
    model.forms.__enter__() if device == "cpu" else None
    def one_round():
        model.train()
        started = time.perf_counter()
        order = torch.randperm(len(pictures), device=device)
        for first, last in parts:
            loss = step(pictures[order[first:last]].float().div_(255))
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
        float(loss)
        return time.perf_counter() - started
    def loss():
        model.eval()
        return objective(model, x).loss
    return one_round, loss


if loop == "vaelib":
    class Gate:
        """Ends a round at the end of each epoch, and waits for the next one."""
        def on_start(self, run): self.wait(run, 0.0)
        def on_epoch(self, run): self.wait(run, run.history[-1].seconds)
        def wait(self, run, seconds):
            run.model.eval()
            answer(seconds, lambda: vl.Elbo()(run.model, x).loss)
            if not sys.stdin.readline(): run.stop_reason = "no more rounds"
    vl.Trainer(
        max_epochs=1000, batch_size=64, learning_rate=1e-3, lr_schedule="constant",
        compile=True, callbacks=[Gate()],
    ).fit(as_vaelib(), vl.data.derive.resized(train, (32, 32)), progress=False)
else:
    one_round, loss = {"article": article, "pythae": pythae, "handwritten": handwritten}[loop]()
    answer(0.0, loss)
    while sys.stdin.readline():
        answer(one_round(), loss)
'''


class Worker:
    """A training loop in its own process: a line in, a round of training, its seconds and loss out."""

    def __init__(self, loop, directory, *arguments):
        command = [sys.executable, "-W", "ignore", "-c", WORKER, *map(str, (loop, directory, *arguments))]
        self.errors = Path(directory, f"{loop}.log").open("w+")  # noqa: SIM115  # pythae draws progress bars
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.rounds = []

    def read(self):
        """Waits for the seconds and loss of a round, at first for the loss before any."""
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(self.errors.read()[-4000:])
        self.rounds.append(json.loads(line))

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def seconds_to(loss, rounds):
    """Training time until the held-out loss was reached, linear within the round; infinity if never."""
    total = 0.0
    for before, after in itertools.pairwise(rounds):
        if after["loss"] <= loss:
            return total + after["seconds"] * (before["loss"] - loss) / (before["loss"] - after["loss"])
        total += after["seconds"]
    return float("inf")


def training_flops_per_image():
    """Of the tutorial's network: forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    model = vl.presets.article_vae()
    with FlopCounterMode(display=False) as counter:
        vl.Elbo()(model, torch.rand(64, 1, 32, 32)).loss.backward()
    return counter.get_total_flops() / 64


@pytest.mark.filterwarnings("ignore")
def test_training(benchmark, tmp_path):
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    if importlib.util.find_spec("pythae") is None:
        loops = tuple(loop for loop in LOOPS if loop != "pythae")
        print("pythae is not installed (pip install 'vaelib[bench]'): its row is missing")
    else:
        loops = LOOPS
    num_images = 6400 + 1024
    sys.path.insert(0, str(EXAMPLES))
    import standalone_article

    torch.manual_seed(0)
    torch.save(standalone_article.ArticleVAE().state_dict(), tmp_path / "weights.pt")
    torch.save(vl.data.shapes(num_images, image_size=28).images, tmp_path / "images.pt")
    workers = {loop: Worker(loop, tmp_path, EXAMPLES, THREADS, DEVICE) for loop in loops}
    try:
        for worker in workers.values():
            worker.read()
        first = [worker.rounds[0]["loss"] for worker in workers.values()]
        assert first == pytest.approx([first[0]] * len(first), rel=1e-5), "the loops compute different losses"
        for worker in workers.values():
            worker()  # compiles and warms up

        def others():
            for loop in loops[:-1]:
                workers[loop]()

        benchmark.group = "training, the tutorial's network, batch 64"
        benchmark.pedantic(workers["vaelib"], setup=others, rounds=9, iterations=1)
    finally:
        for worker in workers.values():
            worker.close()
    report(benchmark, workers, num_images - 1024)


def report(benchmark, workers, num_images):
    speeds = {loop: [num_images / entry["seconds"] for entry in worker.rounds[2:]] for loop, worker in workers.items()}
    target = max(worker.rounds[-1]["loss"] for worker in workers.values())
    times = {loop: seconds_to(target, [worker.rounds[0], *worker.rounds[2:]]) for loop, worker in workers.items()}
    rate, flops = rates(THREADS)[DEVICE] / 1e9, training_flops_per_image()
    rows = {}
    for loop, values in speeds.items():
        speed = statistics.median(values)
        ratio = statistics.median(v / o for v, o in zip(speeds["vaelib"], values, strict=True))
        rows[loop] = {
            "images_per_second": round(speed),
            "vaelib_is_faster_by": round(ratio, 3),
            "seconds_to_loss": round(times[loop], 2),
            "of_gemm_rate": round(speed * flops / 1e9 / rate, 3),
        }
        print(f"\n{loop:12}", rows[loop], end="")
    print(
        f"\nloss {target:.1f} nats, products {rate:.0f} GFLOP/s, {flops / 1e6:.2f} MFLOP per image, {THREADS} threads"
    )
    benchmark.extra_info.update(rows=rows, threads=THREADS, device=DEVICE, torch=torch.__version__, gemm_gflops=rate)
    for loop, floor in tomllib.loads(FLOORS.read_text())["training"].items():
        assert loop not in rows or rows[loop]["vaelib_is_faster_by"] >= floor, f"{loop}: {rows[loop]}, floor {floor}"
