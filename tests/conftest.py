import copy
import hashlib
import json
import os
import warnings
from pathlib import Path

import hypothesis
import onnx
import onnx_ir.passes.common
import pytest
import torch

import vaelib as vl

hypothesis.settings.register_profile("vaelib", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=600)
hypothesis.settings.load_profile("vaelib")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def mnist_root():
    """VAELIB_DATA with MNIST in it; where VAELIB_REQUIRE_DATA is set, its absence is a failure."""
    root = os.environ.get("VAELIB_DATA")
    if root is not None and (Path(root) / "MNIST").is_dir():
        return Path(root)
    if os.environ.get("VAELIB_REQUIRE_DATA"):
        pytest.fail(f"VAELIB_REQUIRE_DATA is set, but there is no MNIST below VAELIB_DATA={root}")
    pytest.skip("no MNIST below VAELIB_DATA")


class _Part(torch.nn.Module):
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs):
        return self.function(self.model, *inputs)


def _decoder(model, z):
    recon_params = model.decode(z)
    mean = recon_params if model.likelihood is None else model.likelihood.mean(recon_params)
    return mean, recon_params.clone()


def _vae(model, image, eps):
    mu, logvar = model.encode(image)
    z = mu + (0.5 * logvar).exp() * eps
    recon_params = model.decode(z)
    distortion = -model.likelihood.log_prob(image, recon_params)
    return model.likelihood.mean(recon_params), mu, logvar, distortion, model.prior.kl(mu, logvar, z).sum(1)


def _autoencoder(model, image):
    z = model.encode(image)
    return _decoder(model, z)[0], z.clone()


_VAE = {
    "encoder": (lambda model, x: model.encode(x), ["image"], ["mu", "logvar"]),
    "decoder": (_decoder, ["z"], ["mean", "recon_params"]),
    "vae": (_vae, ["image", "eps"], ["reconstruction", "mu", "logvar", "distortion", "kl"]),
}
_AUTOENCODER = {
    "encoder": (lambda model, x: model.encode(x), ["image"], ["z"]),
    "decoder": _VAE["decoder"],
    "autoencoder": (_autoencoder, ["image"], ["reconstruction", "z"]),
}


def _export_bundle(model, directory, spatial_multiple=None):
    """A bundle of schema "2" from torch alone: the stand-in for ``vl.export_onnx`` until it writes them."""
    model = copy.deepcopy(model).eval()
    shapes = {"image": model.image_shape, "z": model.latent_shape, "eps": model.latent_shape}
    axes = {0: torch.export.Dim("batch")}
    if spatial_multiple:
        axes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    facts = {
        "schema": "2",
        "version": vl.__version__,
        "kind": "VAE" if hasattr(model, "prior") else "AutoEncoder",
        "image_shape": json.dumps(model.image_shape),
        "image_range": "[0.0, 1.0]",
        "latent_shape": json.dumps(model.latent_shape),
        "spatial_multiple": json.dumps(spatial_multiple),
        "likelihood": type(model.likelihood).__name__,
        "prior": type(getattr(model, "prior", None)).__name__,
        "weights_sha256": hashlib.sha256(
            b"".join(v.numpy().tobytes() for v in model.state_dict().values())
        ).hexdigest(),
        "opset": "18",
        "validation": "{}",
        "config": "null",
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text("# A model\n")
    for part, (function, inputs, outputs) in (_VAE if hasattr(model, "prior") else _AUTOENCODER).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Part(model, function),
                tuple(torch.full((2, *shapes[name]), 0.5) for name in inputs),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=((axes,) * len(inputs),),
                opset_version=18,
                dynamo=True,
                verbose=False,
            )
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {f"vaelib.{name}": value for name, value in {**facts, "part": part}.items()})
        (directory / f"{part}.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    _sign_bundle(directory)


def _sign_bundle(directory):
    contents = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "manifest.json"}
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    kind = "AutoEncoder" if "autoencoder.onnx" in files else "VAE"
    manifest = {"files": files, "kind": kind, "schema": "2", "version": vl.__version__}
    (directory / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))


@pytest.fixture(scope="session")
def export_bundle():
    return _export_bundle


@pytest.fixture(scope="session")
def sign_bundle():
    """Writes the manifest that fits whatever the other files now hold."""
    return _sign_bundle
