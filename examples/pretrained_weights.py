# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[onnx,metrics]"]
# ///
"""Somebody else's pretrained autoencoder: its layers written down, its weights loaded, shipped without torch.

    VAELIB_DATA=path/with/taef2/and/photos python examples/pretrained_weights.py

TAEF2 (MIT, github.com/madebyollin/taesd) makes 32 channels of 1/8 the size of a photograph, those that the diffusion
model FLUX.2 works on. Its files hold weights alone, so its two networks are written here as plain modules: any encoder
and decoder will do. Measures what the photographs lose, scales the latents to mean 0 and deviation 1, and exports a
bundle for any size, which reconstructs the same photographs without torch. Writes the bundle and an image of both.
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
        wide = 4 * WIDTH
        branch = (nn.Conv2d(WIDTH, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU())
        self.pool = nn.Sequential(*branch, nn.Conv2d(wide, WIDTH, 1, bias=False)) if pool else None

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Clamp(nn.Module):
    """Keeps latents within 3, smoothly."""

    def forward(self, z):
        return 3 * torch.tanh(z / 3)


@vl.register
class Taef2Encoder(nn.Module):
    """Images in [0, 1] to latents an eighth their size."""

    def __init__(self):
        super().__init__()
        stages = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
        for pool in (False, False, True):
            halved = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)
            stages += [halved, *(Block(pool=pool) for _ in range(3))]
        self.layers = nn.Sequential(*stages, nn.Conv2d(WIDTH, CHANNELS, 3, padding=1))

    def forward(self, x):
        return self.layers(x)


@vl.register
class Taef2Decoder(nn.Module):
    """Latents to images."""

    def __init__(self):
        super().__init__()
        stages = [Clamp(), nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.ReLU()]
        for pool in (True, False, False):
            doubled = nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
            stages += [*(Block(pool=pool) for _ in range(3)), *doubled]
        self.layers = nn.Sequential(*stages, Block(), nn.Conv2d(WIDTH, 3, 3, padding=1))

    def forward(self, z):
        return self.layers(z)


def taef2(folder, image_size):
    """The pretrained model; an autoencoder without a likelihood takes what the decoder gives for the image."""
    encoder, decoder = Taef2Encoder(), Taef2Decoder()
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        network.layers.load_state_dict(load_file(folder / f"{name}.safetensors"))
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
    text = vl.evaluation.text_reconstruction(model, num_images=4 if arguments.quick else 16, batch_size=4)
    detail = vl.evaluation.high_frequency_energy
    print(f"letters of 12 x 22 pixels read after reconstruction: {100 * text.accuracy.value:.0f}%")
    print(f"high-frequency energy kept: {100 * detail(images).mean() / detail(x).mean():.0f}%")
    vl.plots.save_pairs(x[:8], images[:8], arguments.out / "pairs.png")


if __name__ == "__main__":
    main()
