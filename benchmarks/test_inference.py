"""Encode and decode: torch eager on CPU and CUDA beside onnxruntime, one process per backend and network."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import vaelib as vl

NETWORKS = {"article": vl.presets.article_vae, "default": lambda: vl.conv_vae((1, 32, 32))}
BACKENDS = ("torch-cpu", "torch-cuda", "onnxruntime-cpu")
THREADS = torch.get_num_threads()

WORKER = """
import json, sys
import numpy as np

backend, directory, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
if backend.startswith("torch"):
    import torch, vaelib as vl
    torch.set_num_threads(threads)
    device = backend.removeprefix("torch-")
    model = vl.load(directory, device=device)

    def run(operation, values):
        with torch.inference_mode():
            tensor = torch.from_numpy(values).to(device)
            result = model.encode(tensor)[0] if operation == "encode" else model.likelihood.mean(model.decode(tensor))
            return result.cpu().numpy()
else:
    from vaelib.runtime import OnnxVAE
    model = OnnxVAE(directory, threads=threads)

    def run(operation, values):
        return model.encode(values)[0] if operation == "encode" else model.decode(values)

values = None
for line in sys.stdin:
    command = json.loads(line)
    if "input" in command:
        operation, values = command["operation"], np.load(command["input"])
        np.save(command["output"], run(operation, values))
        for _ in range(10):
            run(operation, values)
    else:
        run(operation, values)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each network, with statistics that are not fresh, saved and exported."""
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        for _ in range(5):
            model(torch.rand(32, 1, 32, 32))
        directory = tmp_path_factory.mktemp(name)
        vl.save(model, directory)
        vl.export_onnx(model, directory)
        found[name] = model.eval(), directory
    return found


class Worker:
    """A backend in its own process, answering one line per line."""

    def __init__(self, *arguments):
        command = [sys.executable, "-c", WORKER, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def worker_of():
    """The worker of a backend and model; the one before it is closed, so that only one ever runs."""
    running = {}

    def find(*arguments):
        if arguments not in running:
            for worker in running.values():
                worker.close()
            running.clear()
            running[arguments] = Worker(*arguments, THREADS)
        return running[arguments]

    yield find
    for worker in running.values():
        worker.close()


@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("operation", ["encode", "decode"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inference(benchmark, models, worker_of, tmp_path, backend, network, operation, batch):
    if backend == "torch-cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, directory = models[network]
    generator = torch.Generator().manual_seed(batch)
    x = torch.rand(batch, 1, 32, 32, generator=generator)
    with torch.no_grad():
        z, _ = model.encode(x)
        values, expected = (x, z) if operation == "encode" else (z, model.likelihood.mean(model.decode(z)))
    np.save(tmp_path / "input.npy", values.numpy())

    worker = worker_of(backend, directory)
    files = {name: str(tmp_path / f"{name}.npy") for name in ("input", "output")}
    worker(operation=operation, **files)  # answers, then warms up
    error = ((torch.from_numpy(np.load(files["output"])) - expected).abs().max() / expected.abs().max()).item()
    assert error < (1e-3 if backend == "torch-cuda" else 1e-4)
    benchmark.group = f"{operation} {network} batch {batch}"
    benchmark.extra_info.update(backend=backend, threads=THREADS, relative_error=error, torch=torch.__version__)
    benchmark.pedantic(worker, rounds=50, iterations=1)
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = batch / benchmark.stats.stats.median
