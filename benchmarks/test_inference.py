"""Encode and decode: torch eager, plain onnxruntime, OpenVINO and `OnnxVAE` on the CPU, interleaved, a process each.

All have the same weights and the same threads, and first prove that they give torch's numbers. "onnxruntime" is the
`InferenceSession.run` of a plain `torch.onnx.export`; OpenVINO reads the same file.
"""

import statistics
import subprocess
import sys
import time
import timeit
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vaelib as vl
from vaelib.benchmark.backends import BACKENDS, functions_of
from vaelib.benchmark.matrix import write_files
from vaelib.benchmark.worker import Worker

NETWORKS = {"article": vl.presets.article_vae, "default": lambda: vl.conv_vae((1, 32, 32))}
BATCHES = (1, 8, 16, 64, 256, 1024, 4096)
THREADS = torch.get_num_threads()
NAMES = [name for name in ("torch", "onnxruntime", "openvino", "OnnxVAE") if BACKENDS[name].missing() is None]
SECONDS = 0.15
"""Of one backend's turn in a round."""
ROUNDS = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each network, with statistics that are not fresh, and the files of all backends."""
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        for _ in range(5):
            model(torch.rand(32, 1, 32, 32))
        directory = tmp_path_factory.mktemp(name)
        write_files(model, directory)
        found[name] = model.eval(), directory
    return found


@pytest.fixture(scope="module")
def workers_of(models):
    """One worker per backend, for a network; those of the network before it are closed."""
    with ExitStack() as stack:
        running = {}

        def find(network):
            if network not in running:
                stack.close()
                running.clear()
                opened = {name: Worker(name, models[network][1], THREADS) for name in NAMES}
                running[network] = {name: stack.enter_context(worker) for name, worker in opened.items()}
            return running[network]

        yield find


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
        expected = functions_of(model)[operation](values)
    np.save(tmp_path / "inputs.npy", values.numpy()[None])

    workers = workers_of(network)
    for name, worker in workers.items():  # each answers, measures its plans, and warms up
        worker.begin(operation, tmp_path / "inputs.npy", tmp_path / "output.npy")
        error = np.abs(np.load(tmp_path / "output.npy") - expected.numpy()).max() / expected.abs().max().item()
        assert error < 1e-4, name

    times = {name: [] for name in workers}
    seconds = 0.0 if benchmark.disabled else SECONDS

    def turn(*names):
        for name in names:
            times[name] += workers[name].turn(seconds)

    benchmark.group = f"{operation} {network} batch {batch}"
    benchmark.pedantic(lambda: turn("OnnxVAE"), setup=lambda: turn(*NAMES[:-1]), rounds=ROUNDS, iterations=1)
    medians = {name: statistics.median(values) for name, values in times.items()}
    row = {name: batch / median for name, median in medians.items()}
    fraction = counter.get_total_flops() / medians["OnnxVAE"] / gemm_flops
    benchmark.extra_info.update(images_per_second=row, gemm_fraction=fraction, threads=THREADS, torch=torch.__version__)
    rates = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in row.items())
    ratios = ", ".join(f"{medians[name] / medians['OnnxVAE']:.2f} x {name}" for name in NAMES[:-1])
    overhead = (medians["OnnxVAE"] - medians["onnxruntime"]) * 1e6
    print(f"\n{network} {operation} batch {batch}: {rates}; OnnxVAE is {ratios}", end="")
    print(f", {overhead:+.1f} us a call beside onnxruntime, at {fraction:.0%} of the GEMM rate")
    if batch == 1:
        for name, values in times.items():
            percentiles = np.percentile(np.multiply(values, 1e6), [50, 90, 99])
            print(f"    {name}: p50 {percentiles[0]:.0f}, p90 {percentiles[1]:.0f}, p99 {percentiles[2]:.0f} us")


FIRST_ANSWER = {
    "torch": "import torch, vaelib as vl; model = vl.load(directory + '/model').eval()\n"
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
