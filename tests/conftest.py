import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import vaelib as vl

collect_ignore = ["programs"]  # which tests start, with arguments

# Two threads wait for each other at every small operation; where another process has a core, tests take 10x as long.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
if importlib.util.find_spec("hypothesis"):  # a machine with a GPU may have no more than the tests of it need
    import hypothesis

    hypothesis.settings.register_profile("vaelib", deadline=None, derandomize=True, max_examples=40)
    hypothesis.settings.register_profile("thorough", deadline=None, max_examples=600)
    hypothesis.settings.load_profile("vaelib")


def pytest_configure(config):
    # A Trainer takes the GPU that it finds. All tests but those marked gpu are of the CPU.
    if torch.accelerator.is_available() and "gpu" not in config.option.markexpr.split()[:1]:
        os.environ.setdefault("ACCELERATE_USE_CPU", "1")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """What a tiny VAE is exported to, once: tests that change its files copy them."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("tiny") / "bundle"
    vl.export_onnx(vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), upsample="nearest"), directory)
    return directory


@pytest.fixture(scope="session")
def odd_bundle(tmp_path_factory):
    """A VAE whose sizes are no power of two, and its bundle."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("odd") / "bundle"
    vae = vl.conv_vae((1, 9, 7), 3, hidden_channels=(8, 12), norm="group")
    vl.export_onnx(vae, directory)
    return vae, directory


@pytest.fixture(scope="session")
def device():
    """Where tests marked gpu run: on a GPU, or with VAELIB_GPU_TESTS=cpu on the CPU, to see that they are right."""
    for package in ("rich", "filelock"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if os.environ.get("VAELIB_GPU_TESTS") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda")


@pytest.fixture
def cuda(device):
    """The GPU of a test of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("only CUDA has it")
    return device


@pytest.fixture
def as_version_0_1():
    """Turns a model directory into what version 0.1 wrote: no checksums."""

    def convert(directory):
        path = Path(directory) / "config.json"
        content = {"format": "vaelib-model-1", "model": json.loads(path.read_text())["model"]}
        path.write_text(json.dumps(content, indent=2) + "\n")

    return convert


@pytest.fixture
def mnist_root():
    """VAELIB_DATA with MNIST in it; where VAELIB_REQUIRE_DATA is set, its absence is a failure."""
    root = os.environ.get("VAELIB_DATA")
    if root is not None and (Path(root) / "MNIST").is_dir():
        return Path(root)
    return without("DATA", f"there is no MNIST below VAELIB_DATA={root}")


def without(what, reason):
    """Skip, or fail where VAELIB_REQUIRE_``what`` is set."""
    if os.environ.get(f"VAELIB_REQUIRE_{what}"):
        pytest.fail(f"VAELIB_REQUIRE_{what} is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory):
    """A copy of examples/node with its package beside it; VAELIB_REQUIRE_NODE makes its absence a failure."""
    directory = tmp_path_factory.mktemp("node")
    example = Path(__file__).parent.parent / "examples" / "node"
    shutil.copytree(example, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            without("NODE", f"there is no {program}")
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=20000"]
    result = subprocess.run(["npm", "install", *options], cwd=directory, capture_output=True, text=True, timeout=170)
    if result.returncode != 0:
        without("NODE", f"npm cannot install onnxruntime-web: {result.stderr[-500:]}")
    return directory


@pytest.fixture(scope="session")
def chromium():
    """The program, or another that VAELIB_CHROMIUM names; VAELIB_REQUIRE_BROWSER makes its absence a failure."""
    found = os.environ.get("VAELIB_CHROMIUM") or shutil.which("chromium")
    return found or without("BROWSER", "there is no chromium, and VAELIB_CHROMIUM names no other")


@pytest.fixture(scope="session")
def sign_bundle():
    """Writes the manifest that fits whatever the other files now hold."""

    def sign(directory):
        contents = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}
        files = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in sorted(contents.items())}
        manifest = json.loads((directory / "manifest.json").read_text()) | {"files": files}
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return sign


class LinearGaussian:
    """x = W z + b + sigma noise with z ~ N(0, I): log p(x) and the posterior are known in closed form.

    W has orthogonal columns, so the exact posterior is a diagonal Gaussian and the ELBO can be tight.
    """

    def __init__(self, scale=1.0, middle=0.0, copies=1):
        """Images are ``scale`` times those of the first one, around ``middle``; 5 latents a copy."""
        self.image_shape, self.latent_dim = (1, 3, 4 * copies), 5 * copies
        generator, pixels = torch.Generator().manual_seed(7), 12 * copies
        basis, _ = torch.linalg.qr(torch.randn(pixels, self.latent_dim, generator=generator, dtype=torch.float64))
        self.sigma = 0.3 * scale
        self.scales = scale * torch.tensor([1.5, 1.0, 0.6, 0.3, 0.1] * copies, dtype=torch.float64)
        self.weight = basis * self.scales
        self.bias = middle + scale * torch.randn(pixels, generator=generator, dtype=torch.float64)
        self.variance = self.sigma**2 / (self.sigma**2 + self.scales**2)

    def log_prob(self, x):
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(len(self.bias), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1))

    def sample(self, count):
        z = torch.randn(count, self.latent_dim, dtype=torch.float64)
        x = z @ self.weight.T + self.bias
        x = x + self.sigma * torch.randn(x.shape, dtype=torch.float64)
        return x.view(count, *self.image_shape)

    def vae(self, shift=0.0, stretch=1.0):
        """With the exact posterior, or one that is off."""
        truth = self

        class Encoder(nn.Module):
            def forward(self, x):
                gain = truth.variance / truth.sigma**2
                mu = (x.flatten(1) - truth.bias) @ truth.weight * gain + shift
                return mu, (truth.variance * stretch).log().expand_as(mu)

        class Decoder(nn.Module):
            def forward(self, z):
                return (z @ truth.weight.T + truth.bias).view(-1, *truth.image_shape)

        return vl.VAE(
            Encoder(),
            Decoder(),
            likelihood=vl.Gaussian(self.sigma).double(),
            image_shape=self.image_shape,
            latent_shape=(self.latent_dim,),
        )

    def mean_elbo(self, vae, x, draws=4_000):
        total = 0.0
        for _ in range(draws // 100):
            terms = vl.Elbo()(vae, x.repeat(100, 1, 1, 1))
            total = total - (terms.reconstruction + terms.kl).view(100, -1).mean(0)
        return total / (draws // 100)


@pytest.fixture
def truth():
    return LinearGaussian()


@pytest.fixture
def truth_in_range():
    """With images in [0, 1], up to one in millions."""
    return LinearGaussian(scale=0.04, middle=0.5)


@pytest.fixture
def truth_of():
    """The same with more latents."""
    return lambda copies: LinearGaussian(scale=0.04, middle=0.5, copies=copies)


@pytest.fixture
def one_source(monkeypatch):
    """The generator, of the CPU, from which all draws of torch on every device come."""
    shared = torch.Generator()

    def drawn_by(draw):
        return lambda *shape, generator=None, device=None, dtype=None: draw(*shape, generator=shared, dtype=dtype).to(
            device or "cpu"
        )

    for name in ("rand", "randn", "randint"):
        monkeypatch.setattr(torch, name, drawn_by(getattr(torch, name)))
    return shared
