# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[onnx,metrics]"]
# ///
"""Somebody else's pretrained autoencoder: its layers written down, its weights loaded, shipped without torch.

    VAELIB_DATA=path/with/taef2/and/photos python examples/pretrained_weights.py

TAEF2 (MIT, github.com/madebyollin/taesd) makes 32 channels of 1/8 the size of a photograph. Its files hold weights
alone, so its two networks are written here as plain modules. Measures what the photographs lose, scales the latents to
mean 0 and deviation 1, and exports a bundle for any size, which reconstructs them without torch. Writes the bundle.
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import vaelib as vl
from vaelib.runtime import OnnxVAE

WIDTH, CHANNELS = 64, 32


class Block(nn.Module):
    """Three convolutions added to their input; in the middle of the network also a wide 1 x 1 branch before them."""

    def __init__(self, *, pool=False):
        super().__init__()
        layers = [layer for _ in range(3) for layer in (nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*layers[:-1])
        branch = nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False), nn.GroupNorm(4, 4 * WIDTH), nn.ReLU()
        self.pool = nn.Sequential(*branch, nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False)) if pool else None

    def forward(self, x):
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Clamp(nn.Module):
    """Keeps latents within 3, smoothly."""

    def forward(self, z):
        return 3 * torch.tanh(z / 3)


class Taef2Encoder(nn.Sequential):
    """Images in [0, 1] to latents an eighth their size."""

    def __init__(self):
        stages = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
        for pool in (False, False, True):
            halved = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)
            stages += [halved, *(Block(pool=pool) for _ in range(3))]
        super().__init__(*stages, nn.Conv2d(WIDTH, CHANNELS, 3, padding=1))


class Taef2Decoder(nn.Sequential):
    """Latents to images."""

    def __init__(self):
        stages = [Clamp(), nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.ReLU()]
        for pool in (True, False, False):
            doubled = nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
            stages += [*(Block(pool=pool) for _ in range(3)), *doubled]
        super().__init__(*stages, Block(), nn.Conv2d(WIDTH, 3, 3, padding=1))


def taef2(folder, image_size):
    """The pretrained model; an autoencoder without a likelihood takes what the decoder gives for the image."""
    encoder, decoder = Taef2Encoder(), Taef2Decoder()
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        network.load_state_dict(load_file(folder / f"{name}.safetensors"))
    shapes = {"image_shape": (3, image_size, image_size), "latent_shape": (CHANNELS, image_size // 8, image_size // 8)}
    return vl.AutoEncoder(encoder.float(), decoder.float(), **shapes).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("VAELIB_DATA")
    parser.add_argument(
        "--data", type=Path, default=data and Path(data), required=data is None, help="has taef2, photos"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained_weights"), help="folder of the bundle")
    parser.add_argument("--quick", action="store_true", help="few and small photographs, to see that it runs")
    arguments = parser.parse_args()
    size, count = (64, 16) if arguments.quick else (256, 64)
    train, test = (
        vl.data.load(arguments.data / "photos" / split, "all", image_size=size).subset(slice(count))
        for split in ("train", "test")
    )
    model = taef2(arguments.data / "taef2", size)

    quality = vl.evaluation.reconstruction_quality(model, test, batch_size=8)
    print(f"{count} photographs, {size} x {size}: PSNR {quality.psnr} dB, SSIM {quality.ssim}")
    statistics = vl.evaluation.latent_statistics(model, train, batch_size=8)
    model.scaling = statistics.scaling
    z = vl.evaluation.embed(model, train, batch_size=8)
    print(f"deviation of latents by channel: {statistics.deviation.min():.2f} to {statistics.deviation.max():.2f}")
    print(f"scaled, over all channels: {model.scaling(z).std():.3f}")

    parity = vl.export_onnx(model, arguments.out / "bundle", dynamic_size=True)
    worst = max(output.max_rel for outputs in parity.values() for output in outputs.values())
    print(f"exported to {arguments.out / 'bundle'}: at most {worst:.0e} of an output's scale from torch")

    runtime = OnnxVAE(arguments.out / "bundle")  # numpy and onnxruntime: this line needs no torch
    x = test.batch(slice(None))
    images = torch.cat([torch.from_numpy(runtime.reconstruct(part.numpy())) for part in x.split(8)])
    psnr = -10 * (images - x).square().mean((1, 2, 3)).log10()
    print(f"without torch: PSNR {psnr.mean():.2f} dB")
    detail = vl.evaluation.high_frequency_energy
    print(f"high-frequency energy kept: {100 * detail(images).mean() / detail(x).mean():.0f}%")


if __name__ == "__main__":
    main()
