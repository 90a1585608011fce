"""Encode and decode: torch eager, plain onnxruntime, OpenVINO and `OnnxVAE` on the CPU, interleaved, a process each.

All have the same weights and the same threads, and first prove that they give torch's numbers. "Plain" is the
`InferenceSession.run` of a plain `torch.onnx.export`; OpenVINO reads the same file.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
import timeit
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vaelib as vl

NETWORKS = {"article": vl.presets.article_vae, "default": lambda: vl.conv_vae((1, 32, 32))}
BATCHES = (1, 8, 16, 64, 256, 1024, 4096)
THREADS = torch.get_num_threads()
BACKENDS = ("torch", "plain", *(["openvino"] if importlib.util.find_spec("openvino") else []), "vaelib")
SECONDS = 0.15
"""Of one backend's turn in a round."""
ROUNDS = 7

WORKER = """
import json, sys, time
import numpy as np

backend, directory, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
if backend == "torch":
    import torch, vaelib as vl
    torch.set_num_threads(threads)
    model = vl.load(directory)

    def run(operation, values):
        with torch.inference_mode():
            tensor = torch.from_numpy(values)
            result = model.encode(tensor)[0] if operation == "encode" else model.likelihood.mean(model.decode(tensor))
            return result.numpy()
elif backend == "plain":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        name: onnxruntime.InferenceSession(f"{directory}/plain-{name}.onnx", options, ["CPUExecutionProvider"])
        for name in ("encode", "decode")
    }

    def run(operation, values):
        return sessions[operation].run(None, {"x": values})[0]
elif backend == "openvino":
    import openvino
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = {
        name: openvino.Core().compile_model(f"{directory}/plain-{name}.onnx", "CPU", settings)
        for name in ("encode", "decode")
    }

    def run(operation, values):
        return compiled[operation](values)[0]
else:
    from vaelib.runtime import OnnxVAE
    model = OnnxVAE(directory, threads=threads)

    def run(operation, values):
        return model.encode(values)[0] if operation == "encode" else model.decode(values)

for line in sys.stdin:
    command = json.loads(line)
    if "input" in command:
        operation, values = command["operation"], np.load(command["input"])
        np.save(command["output"], run(operation, values))
    times = []
    run(operation, values)  # what another process put into the caches is not ours to pay for
    while len(times) < 2 or sum(times) < command["seconds"]:
        started = time.perf_counter()
        run(operation, values)
        times.append(time.perf_counter() - started)
    print(json.dumps(times), flush=True)
"""


class Plain(torch.nn.Module):
    """One direction of a model, as one would export it by hand."""

    def __init__(self, model, operation):
        super().__init__()
        self.model, self.operation = model, operation

    def forward(self, x):
        return self.model.encode(x) if self.operation == "encode" else self.model.likelihood.mean(self.model.decode(x))


def export_plain(model, operation, shape, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(model, operation).eval(),
            (torch.zeros(2, *shape),),
            path,
            input_names=["x"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each network, with statistics that are not fresh, saved and exported in both ways."""
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        for _ in range(5):
            model(torch.rand(32, 1, 32, 32))
        directory = tmp_path_factory.mktemp(name)
        vl.save(model, directory)
        vl.export_onnx(model, directory / "bundle")
        for operation, shape in (("encode", model.image_shape), ("decode", model.latent_shape)):
            export_plain(model, operation, shape, directory / f"plain-{operation}.onnx")
        found[name] = model.eval(), directory
    return found


class Worker:
    """A backend in its own process: a command in, the seconds of each call out."""

    def __init__(self, backend, directory):
        directory = directory / "bundle" if backend == "vaelib" else directory
        command = [sys.executable, "-c", WORKER, backend, str(directory), str(THREADS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.times = []

    def __call__(self, **command):
        time.sleep(0.01)  # until the threads of the one before have gone to sleep
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        self.times += json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def workers_of(models):
    """One worker per backend, for a network; those of the network before it are closed."""
    running = {}

    def find(network):
        if network not in running:
            close()
            running[network] = {backend: Worker(backend, models[network][1]) for backend in BACKENDS}
        return running[network]

    def close():
        for workers in running.values():
            for worker in workers.values():
                worker.close()
        running.clear()

    yield find
    close()


@pytest.fixture(scope="module")
def gemm_flops():
    """The machine's own rate of float32 products with these threads: the best of two libraries and three sizes.

    Each the median of 15 rounds; none of them alone bounds what onnxruntime's convolutions reach.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    rates = []
    for n in (256, 512, 1024):
        a, b = torch.rand(n, n), torch.rand(n, n)
        nodes = [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])]
        values = {name: onnx.helper.make_tensor_value_info(name, 1, [n, n]) for name in "abc"}
        constants = [onnx.numpy_helper.from_array(b.numpy(), "b")]
        graph = onnx.helper.make_graph(nodes, "product", [values["a"]], [values["c"]], constants)
        product = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(product.SerializeToString(), options, ["CPUExecutionProvider"])
        number = 1024**3 // n**3
        for call in (lambda a=a, b=b: a @ b, lambda session=session, a=a: session.run(None, {"a": a.numpy()})):
            rates.append(2 * n**3 * number / statistics.median(timeit.repeat(call, number=number, repeat=15)))
    print(f"\nproducts: {max(rates) / 1e9:.0f} GFLOP/s")
    return max(rates)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("operation", ["encode", "decode"])
@pytest.mark.parametrize("network", NETWORKS)
def test_inference(benchmark, models, workers_of, gemm_flops, tmp_path, network, operation, batch):
    if benchmark.disabled and batch not in (1, 64):
        pytest.skip("measured with --benchmark-only")
    model, _ = models[network]
    values = torch.rand(batch, *model.image_shape) if operation == "encode" else torch.randn(batch, *model.latent_shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = Plain(model, operation)(values)
    expected = expected[0] if operation == "encode" else expected
    np.save(tmp_path / "input.npy", values.numpy())

    workers = workers_of(network)
    for backend, worker in workers.items():  # each answers, measures its plans, and warms up
        files = {"input": str(tmp_path / "input.npy"), "output": str(tmp_path / f"{backend}.npy")}
        worker(operation=operation, seconds=0.0, **files)
        error = np.abs(np.load(files["output"]) - expected.numpy()).max() / expected.abs().max().item()
        assert error < 1e-4, backend
        worker.times.clear()

    seconds = 0.0 if benchmark.disabled else SECONDS

    def others():
        for backend in BACKENDS[:-1]:
            workers[backend](seconds=seconds)

    benchmark.group = f"{operation} {network} batch {batch}"
    benchmark.pedantic(lambda: workers["vaelib"](seconds=seconds), setup=others, rounds=ROUNDS, iterations=1)
    medians = {backend: statistics.median(worker.times) for backend, worker in workers.items()}
    row = {backend: batch / median for backend, median in medians.items()}
    fraction = counter.get_total_flops() / medians["vaelib"] / gemm_flops
    benchmark.extra_info.update(images_per_second=row, gemm_fraction=fraction, threads=THREADS, torch=torch.__version__)
    rates = ", ".join(f"{backend} {rate:,.0f}/s" for backend, rate in row.items())
    ratios = ", ".join(f"{medians[backend] / medians['vaelib']:.2f} x {backend}" for backend in BACKENDS[:-1])
    overhead = (medians["vaelib"] - medians["plain"]) * 1e6
    print(f"\n{network} {operation} batch {batch}: {rates}; vaelib is {ratios}", end="")
    print(f", {overhead:+.1f} us a call beside plain, at {fraction:.0%} of the GEMM rate")
    if batch == 1:
        for backend, worker in workers.items():
            percentiles = np.percentile(np.multiply(worker.times, 1e6), [50, 90, 99])
            print(f"    {backend}: p50 {percentiles[0]:.0f}, p90 {percentiles[1]:.0f}, p99 {percentiles[2]:.0f} us")


FIRST_ANSWER = {
    "torch": "import torch, vaelib as vl; model = vl.load(directory).eval()\n"
    "with torch.inference_mode(): model.likelihood.mean(model.decode(torch.zeros(1, *model.latent_shape)))",
    "vaelib": "import numpy as np; from vaelib.runtime import OnnxVAE; model = OnnxVAE(directory + '/bundle')\n"
    "model.decode(np.zeros((1, *model.latent_shape), np.float32))",
}


def first_answer(backend, directory):
    """Seconds and MiB of a process from its start to one picture."""
    code = (
        f"import sys; directory = sys.argv[1]\n{FIRST_ANSWER[backend]}\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, float(result.stdout) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc/self/status")
def test_first_answer(benchmark, models):
    directory = str(models["default"][1])
    found = {backend: [] for backend in FIRST_ANSWER}
    benchmark.group = "time to first answer"
    benchmark.pedantic(
        lambda: found["vaelib"].append(first_answer("vaelib", directory)),
        setup=lambda: found["torch"].append(first_answer("torch", directory)),
        rounds=5,
        iterations=1,
    )
    medians = {backend: np.median(values, axis=0) for backend, values in found.items()}
    print("\nto the first picture: " + ", ".join(f"{b} {s:.2f} s and {m:.0f} MiB" for b, (s, m) in medians.items()))
    assert medians["vaelib"][1] < medians["torch"][1]
