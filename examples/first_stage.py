# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""A first stage for a latent generator: photographs to 16 x 16 x 4 latents, without and with a discriminator.

    python examples/first_stage.py --data folder/with/train/and/test

The folder holds `train` and `test` with photographs of at least 128 x 128 pixels; `shapes` are drawn if none is given.
Both models see the same images in the same number of steps. Prints for each the PSNR of test images, the energy in
the upper half of frequencies (theirs and that of the originals), and the rate in bits; writes `results.json` and
`first_stage.png`: originals, plain, adversarial. A run that was stopped resumes if the script is started again.
"""

import argparse
import json
import math
from pathlib import Path

import torch

import vaelib as vl

SIZE, SHOWN = 64, 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="a folder with train and test, or shapes")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=12, help="channels at the image's resolution")
    parser.add_argument("--out", type=Path, default=Path("runs/first_stage"), help="folder of both models")
    parser.add_argument("--quick", action="store_true", help="a few steps of a small model, to see that it runs")
    arguments = parser.parse_args()
    train, test = (images_of(arguments.data, split) for split in ("train", "test"))
    if arguments.quick:
        train, test, arguments.epochs, arguments.width = train[:64], test[:20], 2, 4

    x = test.float() / 255
    every = len(x) // SHOWN
    rows, results = [x[::every][:SHOWN]], {"originals": {"high_frequency_energy": energy(x)}}
    for name in ("plain", "adversarial"):
        model = trained(name, train, arguments)
        found = torch.cat([model.reconstruct(part) for part in x.split(32)])
        psnr = vl.evaluation.Estimate.of(-10 * (x - found).square().mean((1, 2, 3)).log10())
        kl = vl.evaluation.elbo(model, test, generator=torch.Generator().manual_seed(0)).kl.value
        bits = kl / math.log(2)
        results[name] = {"psnr": psnr.value, "high_frequency_energy": energy(found), "rate_in_bits": bits}
        rows.append(found[::every][:SHOWN])
        print(
            f"{name:12} PSNR {psnr} dB, {bits:.0f} bits, high-frequency energy {energy(found):.2e} of {energy(x):.2e}"
        )
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    vl.plots.save_grid(torch.cat(rows), arguments.out / "first_stage.png", columns=SHOWN)


def images_of(data, split):
    """8-bit images of 64 x 64: photographs at 128 x 128, each cut into four."""
    if data == "shapes":
        return vl.data.shapes(400, image_size=SIZE, seed=int(split == "test")).images.expand(-1, 3, -1, -1)
    whole = vl.data.load(data, split, image_size=2 * SIZE).images
    parts = whole.unfold(2, SIZE, SIZE).unfold(3, SIZE, SIZE).permute(0, 2, 3, 1, 4, 5)
    return parts.reshape(-1, *parts.shape[3:])


def energy(images):
    return vl.evaluation.high_frequency_energy(images).mean().item()


def trained(name, train, arguments):
    torch.manual_seed(0)
    model = vl.autoencoder_kl((3, SIZE, SIZE), factor=4, channels=4, width=arguments.width, residual_blocks=1)
    objective = vl.Elbo()
    if name == "adversarial":
        objective = vl.Adversarial(
            vl.PatchDiscriminator(3, width=16, num_layers=2),
            elbo=objective,
            perceptual=vl.perceptual_distance,
            start=0.6,
            ramp=0.2,
            optimizer={"betas": (0.5, 0.9), "lr_scale": 0.2},
        )
    trainer = vl.Trainer(
        objective,
        max_epochs=arguments.epochs,
        batch_size=8,
        learning_rate=1e-3,
        output_dir=arguments.out / name,
        callbacks=[vl.EMA(0.98), vl.Pictures(every=2)],
    )
    trainer.fit(model, vl.data.ImageDataset(train, flip=True), resume=True)
    return model.cpu().eval()


if __name__ == "__main__":
    main()
