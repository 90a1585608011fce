# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[onnx]"]
# ///
"""An autoencoder of diffusers: measured, trained on, exported, and given back.

    python examples/diffusers_autoencoder.py --model folder/of/a/pipeline/vae --data folder/of/photographs

Prints what the model reconstructs of test images before and after some steps on the training images, and the rate of
its latent in bits: with a KL weight of 1e-6 these are thousands. Writes the model as diffusers
opens it, and as a bundle that runs without torch. Without `--model`, a small untrained model takes its place, which is
enough to see each step; diffusers itself is not needed.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory with config.json and a safetensors file of diffusers'")
    parser.add_argument("--data", default="shapes", help="whatever vl.data.load takes; of the model's channels")
    parser.add_argument("--size", type=int, default=64, help="side of the images, a multiple of the model's factor")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/diffusers_autoencoder"))
    parser.add_argument("--quick", action="store_true", help="400 images of 16 x 16 once, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.epochs = 16, 1
    train, test = (vl.data.load(arguments.data, split, image_size=arguments.size) for split in ("train", "test"))
    if arguments.quick:
        train, test = train.subset(slice(400)), test.subset(slice(100))

    torch.manual_seed(0)
    if arguments.model is None:
        arguments.model = arguments.out / "theirs"
        own = vl.autoencoder_kl(train.image_shape, 4, width=8, residual_blocks=1, norm="group", groups=4)
        vl.to_diffusers(own, arguments.model)
    vae = vl.from_diffusers(arguments.model, image_size=arguments.size)
    report("as it came", vae, test)

    # The last part of latent diffusion's own loss: absolute differences and 1e-6 of the KL.
    vl.Trainer(vl.Elbo(beta=1e-6), max_epochs=arguments.epochs, batch_size=16, learning_rate=1e-3).fit(vae, train)
    vae.cpu().eval()
    report("trained on", vae, test)

    vl.to_diffusers(vae, arguments.out / "trained", like=arguments.model)
    again, images = vl.from_diffusers(arguments.out / "trained", image_size=arguments.size), test.batch(slice(8))
    print(
        f"written and read again: bitwise the same is {torch.equal(again.reconstruct(images), vae.reconstruct(images))}"
    )
    vl.export_onnx(vae, arguments.out / "bundle", dynamic_size=True)
    apart = torch.from_numpy(vl.runtime.OnnxVAE(arguments.out / "bundle").reconstruct(images.numpy()))
    print(f"the bundle without torch: at most {(apart - vae.reconstruct(images)).abs().max():.0e} apart")
    vl.plots.save_grid(torch.cat([images, vae.reconstruct(images)]), arguments.out / "images.png", columns=8)


def report(name, vae, test):
    psnr = vl.evaluation.reconstruction_quality(vae, test).psnr
    bound = vl.evaluation.elbo(vae, test, generator=torch.Generator().manual_seed(0))
    print(f"{name}: PSNR {psnr} dB, rate {bound.rate_bits.value:,.0f} bits per image")


if __name__ == "__main__":
    main()
