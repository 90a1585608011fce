"""The training loops that are compared: a program that `loop_process.Loop` starts, one loop in a process of its own.

A line on the standard input begins an epoch; a line of JSON is its seconds, its held-out loss and its peak GPU memory.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from loop_process import SIZE, Job, plain_network, vl_model

import vaelib as vl
from vaelib._images import even_parts
from vaelib._timing import timed
from vaelib.training.hardware import float32_products


class Task:
    """A job with its images and weights, inside the loop's process."""

    def __init__(self, job):
        self.job, self.device = job, torch.device(job.device)
        images = torch.load(Path(job.directory, "images.pt"), weights_only=True)
        held_out = len(images) - job.images if len(images) - job.images < 1024 else 1024
        self.train = vl.data.ImageDataset(images[held_out : held_out + job.images])
        self.x = self.resized(vl.data.ImageDataset(images[:held_out])).batch(slice(None)).to(self.device)
        self.weights = torch.load(Path(job.directory, "weights.pt"), weights_only=True)
        self.network = plain_network(job.network).to(self.device)
        self.network.load_state_dict(self.weights)

    def resized(self, dataset):
        return vl.data.dataset.resized(dataset, SIZE)

    def model(self):
        """The network as vaelib's model."""
        model = vl_model(self.job.network)
        for ours, theirs in zip(model.state_dict().values(), self.weights.values(), strict=True):
            ours.copy_(theirs)
        return model.to(self.device)

    def serve(self, one_round, loss):
        """Answer with the loss before any round, then after each."""
        self.answer(0.0, loss)
        while sys.stdin.readline():
            self.answer(self.timed(one_round), loss)

    def timed(self, call):
        """Seconds from an idle device to an idle device."""
        self.synchronize()
        return timed(lambda: (call(), self.synchronize()))[0][0]

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def answer(self, seconds, loss):
        found = {"seconds": seconds, "peak_device_mib": None}
        if self.device.type == "cuda":
            found["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
        with torch.random.fork_rng(), torch.no_grad(), float32_products(tf32=False):
            torch.manual_seed(0)
            found["loss"] = float(loss())  # without TF32, which torch has on for convolutions: losses are compared
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps(found), file=sys.__stdout__, flush=True)


def tutorial(task):
    """A DataLoader that opens one PIL image after the other, eager."""
    from PIL import Image
    from standalone_article import loss_sum, train_epoch
    from torchvision import transforms

    class Images(torch.utils.data.Dataset):
        resize = transforms.Compose([transforms.Resize(SIZE), transforms.ToTensor()])

        def __len__(self):
            return len(task.train)

        def __getitem__(self, index):
            return self.resize(Image.fromarray(task.train.images[index, 0].numpy())), 0

    loader = torch.utils.data.DataLoader(Images(), batch_size=task.job.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=1e-3)

    def one_round():
        train_epoch(task.network, optimizer, ((x.to(task.device), label) for x, label in loader))

    def loss():
        task.network.eval()
        return loss_sum(task.x, *task.network(task.x)) / len(task.x)

    task.serve(one_round, loss)


def pythae(task):
    """Its own trainer; images resized beforehand, as its datasets hold tensors."""
    import logging

    logging.disable()
    from peers import pythae_model
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    network, job = task.network, task.job

    model = pythae_model(network).to(task.device)
    images = task.resized(task.train).batch(slice(None))
    config = BaseTrainerConfig(
        output_dir=job.directory, per_device_train_batch_size=job.batch_size, learning_rate=1e-3, num_epochs=1
    )
    config.no_cuda = job.device == "cpu"
    trainer = BaseTrainer(model, BaseDataset(images, torch.ones(len(images))), training_config=config)
    trainer.prepare_training()
    network.load_state_dict(task.weights)  # its constructor ran a training batch, which moved the running statistics

    def loss():
        model.eval()
        return model({"data": task.x}).loss

    task.serve(lambda: trainer.train_step(1), loss)


def handwritten(task):
    """What one would write to be as fast as the Trainer: the same tricks, without a trainer."""
    from vaelib.training.cpu_convolutions import fast_convolutions

    model = task.model().to(memory_format=torch.channels_last)
    images = task.resized(task.train).images.to(task.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    objective = vl.Elbo()
    on_cpu = task.device.type == "cpu"
    # Every batch size has a graph of its own: CUDA graphs need fixed sizes.
    step = torch.compile(
        lambda x: objective(model, x).loss, dynamic=False, mode="default" if on_cpu else "reduce-overhead"
    )
    parts = even_parts(len(images), task.job.batch_size)

    def one_round():
        model.train()
        order = torch.randperm(len(images), device=task.device)
        for first, last in parts:
            optimizer.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            step(images[order[first:last]].float().div_(255)).backward()
            optimizer.step()

    def loss():
        model.eval()
        return objective(model, task.x).loss

    with fast_convolutions(model) if on_cpu else contextlib.nullcontext():
        task.serve(one_round, loss)


def trainer(task, **options):
    """`vl.Trainer`, one epoch a round."""

    class Gate:
        """Ends a round at the end of each epoch, and waits for the next one."""

        def on_start(self, run):
            self.wait(run, 0.0)

        def on_epoch(self, run):
            task.synchronize()
            self.wait(run, time.perf_counter() - self.started)

        def wait(self, run, seconds):
            run.model.eval()
            task.answer(seconds, lambda: vl.Elbo()(run.model, task.x).loss)
            if not sys.stdin.readline():
                run.stop_reason = "no more rounds"
            task.synchronize()
            self.started = time.perf_counter()

    vl.Trainer(
        max_epochs=1000,
        batch_size=task.job.batch_size,
        learning_rate=1e-3,
        lr_schedule="constant",
        callbacks=[Gate()],
        **options,
    ).fit(task.model(), task.resized(task.train), progress=False)


LOOPS = {
    "article": tutorial,
    "pythae": pythae,
    "handwritten": handwritten,
    "vaelib": lambda task: trainer(task, compile=True),
    "vaelib eager": lambda task: trainer(task, compile=False),
    "vaelib bf16": lambda task: trainer(task, compile=True, precision="bf16"),
}


def main():
    job = Job(**json.loads(sys.argv[1]))
    sys.stdout = sys.stderr  # lines of the protocol alone go to the standard output
    torch.set_num_threads(job.threads)
    LOOPS[job.loop](Task(job))


if __name__ == "__main__":
    main()
