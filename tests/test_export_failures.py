"""A failed export is an ExportError of one readable paragraph, whatever torch or the model raised."""

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError

IMAGE = (1, 8, 8)


class Encoder(nn.Module):
    image_shape, latent_shape = IMAGE, (3,)

    def __init__(self, layer, function=lambda x: x):
        super().__init__()
        self.layer, self.function, self.linear = layer, function, nn.Linear(64, 6)

    def forward(self, x):
        return self.linear(self.function(self.layer(x)).flatten(1)).chunk(2, 1)


class Looping(nn.Module):
    def forward(self, x):
        while x.square().sum() > 1e9:
            x = x / 2
        return x


def with_values(name, value):
    layer = nn.Conv2d(1, 1, 1)
    setattr(layer, name, value)
    return layer


def with_sparse_buffer():
    layer = nn.Conv2d(1, 1, 1)
    layer.register_buffer("table", torch.eye(3).to_sparse())
    return layer


def draws(_):
    yield 1


NORMED = "parametrizations.weight_norm, or call remove_weight_norm first"
COPIED = "`model` must be one that can be copied to the CPU: "
INT = (
    "batch axis of 'image' must be free, got a fixed one: this model's encoder takes the length of a batch as a Python"
)
LINEAR = r"fails at a batch of 5, in `encoder.linear` \(Linear\): mat1 and mat2 must have the same dtype"
TORCH = "torch could not export this model's encoder: "
CASES = {
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Conv2d(1, 1, 1)), NORMED),
    "a tensor with a past": (
        lambda: with_values("past", 2 * torch.ones(3, requires_grad=True)),
        f"{COPIED}Only Tensors",
    ),
    "a generator": (lambda: with_values("draws", draws(0)), f"{COPIED}cannot pickle 'generator' object"),
    "no data": (lambda: nn.Conv2d(1, 1, 1, device="meta"), f"{COPIED}Cannot copy out of meta tensor"),
    "lazy": (lambda: nn.LazyConv2d(1, 1), "must have run once, so that .*; `encoder.layer.weight` has none"),
    "sparse": (with_sparse_buffer, "must hold dense tensors, got torch.sparse_coo in `encoder.layer.table`"),
    "a loop": (Looping, f"{TORCH}.* The code branches on a tensor's values"),
}
FUNCTIONS = {
    "length as int": (lambda x: x.view(int(x.shape[0]), -1), INT),
    "length in Python": (lambda x: torch.stack([*x]), INT),
    "no such operator": (
        lambda x: torch.erfinv(x / 2),
        f"{TORCH}No ONNX function found for .*ONNX has no such operator",
    ),
    "double": (lambda x: x.double(), LINEAR),
    "whole numbers": (lambda x: x.long(), LINEAR),
    "a larger latent": (
        lambda x: torch.cat([x, x]).view(-1, 128)[:, :64].repeat(2, 1),
        r"one `z` for each image, but this model's encoder gives the shape \(10, 3\) for a batch of 5",
    ),
}


@pytest.mark.filterwarnings("ignore:.*(weight_norm|WeightNorm).*")
@pytest.mark.parametrize("name", [*CASES, *FUNCTIONS])
def test_the_message_is_one_paragraph(name, tmp_path, capfd):
    layer, match = CASES.get(name, (nn.Identity, None))
    function, match = FUNCTIONS.get(name, (nn.Identity(), match))
    vae = vl.VAE(Encoder(layer(), function), vl.ConvDecoder(3, IMAGE, hidden_channels=(4,)))
    capfd.readouterr()
    with pytest.raises(ExportError, match=match) as caught:
        vl.export_onnx(vae, tmp_path)
    message = str(caught.value)
    assert len(message) <= 400
    assert not {"\n", "\x1b"} & set(message)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_what_torch_said_is_kept_as_the_cause(tmp_path):
    vae = vl.VAE(Encoder(Looping()), vl.ConvDecoder(3, IMAGE, hidden_channels=(4,)))
    with pytest.raises(ExportError) as caught:
        vl.export_onnx(vae, tmp_path)
    assert "torch.export" in str(caught.value.__cause__)


@pytest.mark.slow
def test_hooks_shared_weights_and_spectral_norm_are_exported(tmp_path):
    layer = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 1, 3, padding="same")), nn.Conv2d(1, 1, 1))
    layer[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    encoder = Encoder(layer)
    encoder.again = encoder.linear
    vl.export_onnx(vl.VAE(encoder, vl.ConvDecoder(3, IMAGE, hidden_channels=(4,))), tmp_path)
