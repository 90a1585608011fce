"""Exports of large networks: proofs at small sizes and batches, as the card states, and what stays in memory."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import conversion, exporter, independence, parts, proof
from vaelib.export.graphs import MOST, Graph, free_sizes
from vaelib.export.parts import graphs_of

IMAGE = (3, 32, 64)


def small(**options):
    torch.manual_seed(0)
    return vl.autoencoder_kl(IMAGE, factor=2, width=4, residual_blocks=1, **options).eval()


def as_large(monkeypatch):
    """Every network counts as large."""
    monkeypatch.setattr(parts, "_MOST_VALUES", 1)


def test_the_largest_batch_of_a_proof_follows_from_what_layers_give(monkeypatch):
    model = small()
    whole = graphs_of(model)["vae"]
    values = []
    hooks = [
        module.register_forward_hook(lambda *given: values.append(given[2].numel() if torch.is_tensor(given[2]) else 0))
        for module in model.encoder.modules()
    ]
    model.encoder(torch.rand(1, *IMAGE))
    for hook in hooks:
        hook.remove()
    monkeypatch.setattr(parts, "_MOST_VALUES", 11 * sum(values))
    assert graphs_of(model)["vae"].most == 11
    as_large(monkeypatch)
    assert graphs_of(model)["vae"].most == 2
    assert (whole.most, whole.is_large) == (MOST, False)


@pytest.mark.parametrize(
    ("most", "batches"), [(64, [1, 3, 16, 40]), (40, [1, 3, 16, 40]), (14, [1, 3, 14]), (3, [1, 3]), (2, [1, 2])]
)
def test_a_batch_is_cut_however_small_it_is(most, batches):
    (first, of_first), (second, of_second) = proof._cuts(most)
    assert of_first == batches
    assert of_second == batches[-1:]
    assert first.chunk < batches[-1]
    assert first.workers == 2
    assert second.workers == 1


@pytest.mark.slow
def test_a_large_network_is_exported_and_the_card_says_how_it_was_proved(monkeypatch, tmp_path):
    as_large(monkeypatch)
    torch.manual_seed(0)
    vl.export_onnx(vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)), tmp_path)
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "over batches of 1 to 2, by onnxruntime with its optimisations off and on, rounded" in card


def test_a_faulty_graph_of_a_large_network_is_refused(monkeypatch, tmp_path):
    as_large(monkeypatch)
    torch.manual_seed(0)
    model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), norm="group")

    def faulty(graphs, opset):
        contents = conversion.convert(graphs, opset)
        list(graphs["encoder"].module.model.encoder.parameters())[-1].data += 0.01
        return contents

    monkeypatch.setattr(exporter, "convert", faulty)
    with pytest.raises(ExportError, match=r"The encoder's graph differs from torch.*at batch \d"):
        vl.export_onnx(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_graphs_of_any_size_are_proved_at_a_small_one():
    model = small()
    whole = graphs_of(model, dynamic_size=True)["vae"]
    assert whole.inputs == {"image": IMAGE, "noise": (4, 16, 32)}
    proved = whole.for_proof()
    assert proved.inputs == {"image": (3, 8, 8), "noise": (4, 4, 4)}
    assert proved.larger().inputs == {"image": (3, 10, 12), "noise": (4, 5, 6)}
    assert proof.how_proved(proved, "fp32").startswith("over batches of 1 to 16, for images of 8 x 8 and 10 x 12, by")
    decoder = graphs_of(small(), dynamic_size=True)["decoder"].for_proof()
    assert decoder.larger().inputs == {"z": (4, 5, 6)}
    fixed = Graph("encoder", nn.Identity(), {"image": IMAGE}, {"z": "raw"})
    assert fixed.for_proof() is fixed.larger() is fixed.at(1, 1) is fixed


def test_a_model_that_fails_at_a_small_size_is_proved_at_its_own():
    """A padding by reflection must be narrower than the map."""
    wide = nn.Sequential(nn.ReflectionPad2d(5), nn.Conv2d(3, 3, 11))
    model = vl.AutoEncoder(wide, copy.deepcopy(wide), image_shape=(3, 16, 12), latent_shape=(3, 16, 12))
    assert free_sizes(model) == (1, (16, 12))
    assert free_sizes(small()) == (2, (4, 4))


def test_the_prior_s_graph_holds_no_networks():
    model = small()
    model.prior = vl.LearnedGaussian(model.latent_shape)
    encoder = model.encoder
    names = {name for name, _ in graphs_of(model)["prior"].module.named_parameters()}
    assert names == {"model.latent.prior.mu", "model.latent.prior.logvar"}
    assert model.encoder is encoder


def test_what_layers_gave_is_forgotten_where_nobody_looks():
    model = small()
    for keep in (True, False):
        with independence._recorded(model.encoder, keep=keep) as (entered, ended):
            model.encoder(torch.rand(1, *IMAGE))
        assert not entered
        assert bool(ended) is keep


DECODE = """
import sys
sys.modules["torch"] = None
import numpy as np
from vaelib.runtime import OnnxVAE
model = OnnxVAE(sys.argv[1])
generator = np.random.default_rng(0)
large, small = (generator.standard_normal((1, 4, side, side), dtype=np.float32) for side in (64, 8))
np.savez(sys.argv[1] + "/decoded.npz", large=model.decode(large), small=model.decode(small), z=small)
"""


@pytest.mark.slow
def test_a_model_of_the_size_of_stable_diffusion_s_is_exported_and_decodes_512_x_512_without_torch(tmp_path):
    """84 million random weights, group norm and attention."""
    torch.manual_seed(0)
    options = {"norm": "group", "attention": True, "quant_conv": True}
    model = vl.autoencoder_kl((3, 512, 512), width=128, **options).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_653_863
    vl.export_onnx(model, tmp_path, dynamic_size=True)
    subprocess.run([sys.executable, "-c", DECODE, str(tmp_path)], timeout=1800, check=True)
    decoded = np.load(tmp_path / "decoded.npz")
    assert decoded["large"].shape == (1, 3, 512, 512)
    assert decoded["large"].std() > 0.01
    same = vl.autoencoder_kl((3, 64, 64), width=128, **options).eval()
    same.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        expected = same.decode_mean(torch.from_numpy(decoded["z"])).numpy()
    assert np.abs(decoded["small"] - expected).max() < 1e-5
