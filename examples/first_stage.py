# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""A first stage for a latent generator: photographs to 8 x 8 x 4 latents, without and with a discriminator.

    python examples/first_stage.py --data folder/with/train/and/test

The folder holds `train` and `test` with photographs of at least 128 x 128 pixels. Both models see the same steps.
Prints PSNR, the energy above half of the highest frequency, and nats for each; writes `first_stage.png` (originals,
plain, adversarial) and `results.json`. A run that was stopped resumes.
"""

import argparse
import json
from pathlib import Path

import torch

import vaelib as vl

SIZE = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="a folder with train and test; shapes if not given")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=32, help="channels of the widest images")
    parser.add_argument("--out", type=Path, default=Path("runs/first_stage"), help="folder of both models")
    parser.add_argument("--quick", action="store_true", help="a few steps of a small model, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.width = 1, 4
    train, test = images_of(arguments.data, "train"), images_of(arguments.data, "test")
    if arguments.quick:
        train, test = train[:64], test[:16]
    results, shown = {"images": {"high_frequency": energy(test)}}, [test[:: len(test) // 12][:12]]
    for name in ("plain", "adversarial"):
        model = trained(name, train, arguments)
        found = torch.cat([model.reconstruct(part) for part in test.split(32)])
        mse = (test - found).square().mean((1, 2, 3))
        psnr = vl.evaluation.Estimate.of(-10 * mse.log10())
        bound = vl.evaluation.elbo(model, test)
        results[name] = {"psnr": psnr.value, "high_frequency": energy(found), "rate_in_bits": bound.kl.value / 0.6931}
        shown.append(found[:: len(test) // 12][:12])
        print(f"{name:12} PSNR {psnr} dB, high-frequency energy {energy(found):.2e} of {energy(test):.2e}", flush=True)
        arguments.out.joinpath("results.json").write_text(json.dumps(results, indent=1))
    vl.plots.save_grid(torch.cat(shown), arguments.out / "first_stage.png", columns=12)


def images_of(data, split):
    """Photographs at 128 x 128, cut into four; floats in [0, 1]."""
    if data == "shapes":
        return (
            vl.data.shapes(256, image_size=SIZE, seed=int(split == "test")).images.float().expand(-1, 3, -1, -1) / 255
        )
    whole = vl.data.load(data, split, image_size=2 * SIZE).images
    parts = whole.unfold(2, SIZE, SIZE).unfold(3, SIZE, SIZE).permute(0, 2, 3, 1, 4, 5)
    return parts.reshape(-1, 3, SIZE, SIZE).float() / 255


def energy(images):
    return vl.evaluation.high_frequency_energy(images).mean().item()


def trained(name, train, arguments):
    torch.manual_seed(0)
    width = arguments.width
    model = vl.autoencoder_kl((3, SIZE, SIZE), factor=8, channels=4, width=width, norm="pixel", attention=False)
    objective = vl.Elbo()
    if name == "adversarial":
        judge = vl.PatchDiscriminator(3, width=width, num_layers=2)
        objective = vl.Adversarial(judge, elbo=objective, perceptual=vl.perceptual_distance, start=0.25, ramp=0.1)
    trainer = vl.Trainer(
        objective,
        max_epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=5e-4,
        clip_norm=None,
        output_dir=arguments.out / name,
        callbacks=[vl.EMA(0.99)],
    )
    trainer.fit(model, train, resume=True)
    return model.cpu().eval()


if __name__ == "__main__":
    main()
