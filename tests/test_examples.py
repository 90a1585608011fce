"""What of examples/ is fast to prove; .ci/run executes each script."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vaelib as vl

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
README = (EXAMPLES / "README.md").read_text()


@pytest.fixture(scope="module")
def standalone():
    spec = importlib.util.spec_from_file_location("standalone_vae", EXAMPLES / "standalone_vae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[1, 3], ids=["as torch starts", "posteriors far from the prior"])
def pair(standalone, request):
    """The plain model and vaelib's, of the same weights in double precision."""
    theirs = standalone.VAE(latent_dim=5).double()
    ours = vl.conv_vae((1, 28, 28), 5, hidden_channels=(32, 64), norm="none").double()
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.copy_(request.param * b)
            b.copy_(a)
    return theirs, ours


@pytest.fixture
def x():
    return torch.bernoulli(torch.rand(6, 1, 28, 28, dtype=torch.float64))


def seeded(function, *arguments, **options):
    torch.manual_seed(1)
    return function(*arguments, **options)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


def test_elbo_loss_is_that_of_plain_pytorch(standalone, x):
    """The formulas alone, on any tensors."""
    logits, mu, logvar = 3 * torch.randn_like(x), torch.randn(6, 5).double(), torch.randn(6, 5).double()
    terms = vl.elbo_loss(x, logits, mu, logvar)
    close(terms.reconstruction, standalone.distortion(x, logits))
    close(terms.kl, standalone.rate(mu, logvar))
    close(terms.loss, (terms.reconstruction + terms.kl).mean())
    assert terms.kl.min() > 0.1


def test_a_model_gives_the_nats_and_gradients_of_plain_pytorch(standalone, pair, x):
    """The same weights, the same draws: networks, reparameterisation, likelihood, KL and all gradients."""
    theirs, ours = pair
    expected = seeded(standalone.negative_elbo, theirs, x)
    terms = seeded(vl.Elbo(), ours, x)
    close(terms.reconstruction + terms.kl, expected)
    terms.loss.backward()
    expected.mean().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(a.grad, b.grad)
        assert a.grad.abs().max() > 1e-3


def test_the_plain_networks_are_parts_of_a_vae(standalone, pair, x):
    """Networks without a base class, as they are, in `vl.VAE`."""
    theirs, _ = pair

    class Encoder(torch.nn.Module):
        def forward(self, x):
            return theirs.encode(x)

    vae = vl.VAE(Encoder(), theirs.decoder, image_shape=(1, 28, 28), latent_shape=(5,))
    terms = seeded(vl.Elbo(), vae, x)
    close(terms.reconstruction + terms.kl, seeded(standalone.negative_elbo, theirs, x))


def test_the_networks_of_pretrained_weights_are_those_of_the_files(tmp_path):
    """As many numbers as the files of TAEF2 hold, keys by the index of a layer, an eighth of the size and back."""
    names = runpy.run_path(str(EXAMPLES / "pretrained_weights.py"))
    networks = {name: names[f"Taef2{name.title()}"]() for name in ("encoder", "decoder")}
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counts == {"encoder": 1_338_528, "decoder": 1_338_499}
    assert {"13.pool.3.weight", "14.bias"} < networks["encoder"].state_dict().keys()
    assert {"1.bias", "3.pool.1.weight", "17.weight", "19.bias"} < networks["decoder"].state_dict().keys()
    for name, network in networks.items():
        save_file(network.half().state_dict(), tmp_path / f"{name}.safetensors")
    model = names["taef2"](tmp_path, 32)
    assert model.embed(torch.rand(2, 3, 32, 32)).shape == (2, 32, 4, 4)
    assert model.reconstruct(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:`num_samples` 50 is too small")
def test_log_likelihood_is_that_of_plain_pytorch(standalone, pair, x):
    theirs, ours = pair
    with torch.no_grad():
        expected = seeded(standalone.log_likelihood, theirs, x, 50)
        bound = -standalone.negative_elbo(theirs, x)
    got = seeded(vl.evaluation.log_likelihood, ours, x, num_samples=50, batch_size=300)
    close(got.per_image, expected)
    assert expected.mean() > bound.mean()


@pytest.mark.filterwarnings("default")  # those of Lightning and Optuna as they are imported
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_says_what_a_script_does(script, monkeypatch, capsys):
    for package in re.findall(r"^import (lightning|optuna)$", script.read_text(), re.MULTILINE):
        pytest.importorskip(package)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--quick" in shown
    assert f"python examples/{script.name}" in shown


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_are_short_and_say_what_they_need(script):
    lines = script.read_text().splitlines()
    assert len(lines) < 120
    assert lines[0] == "# /// script"
    assert lines[2].startswith("# dependencies = [")


def test_the_standalone_scripts_know_nothing_of_vaelib():
    for script in EXAMPLES.glob("standalone_*.py"):
        assert not re.search(r"^(import|from) vaelib", script.read_text(), re.MULTILINE)


def test_the_table_names_every_script_and_no_other():
    named = re.findall(r"^\| `([\w/]+(?:\.py)?)` \|", README, re.MULTILINE)
    assert sorted(named) == sorted([*(script.name for script in SCRIPTS), "node/"])
