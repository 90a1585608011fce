# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[onnx]"]
# ///
"""A first stage trained on small images, used on large ones: in tiles, without seams, with the memory of one tile.

    python examples/large_images.py --data folder/of/photographs --image large.jpg

Trains `autoencoder_kl` on images of 64 x 64, exports it with free sizes, and reconstructs one large image by
`OnnxVAE`, whole and in tiles. Prints how far the two are apart, and the same of blended tiles, which a model with
group normalisation needs. Without `--image`, images of the test set side by side stand in for it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import vaelib as vl
from vaelib.runtime import OnnxVAE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="whatever vl.data.load takes")
    parser.add_argument("--image", type=Path, help="a large image, with the channels of the data")
    parser.add_argument("--tile", type=int, default=256, help="longest side of a tile in pixels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/large_images"))
    parser.add_argument("--quick", action="store_true", help="400 images, small tiles, one norm: to see that it runs")
    arguments = parser.parse_args()
    size, width, limit, side = (32, 8, 400, 5) if arguments.quick else (64, 32, None, 16)
    train, test = (vl.data.load(arguments.data, split, image_size=size) for split in ("train", "test"))
    if arguments.quick:
        arguments.epochs, arguments.tile, train = 1, 136, train.subset(slice(limit))

    if arguments.image is None:
        image = torch.cat([torch.cat([*test.batch(slice(i, i + side))], 2) for i in range(0, side**2, side)], 1)[None]
    else:
        image = vl.data.read_images([arguments.image], channels=train.image_shape[0]).float() / 255
    image = image[:, :, :-3].numpy()  # a height that is no multiple of the latent's cells is as good
    for norm, blend in (("pixel", False), ("group", True))[: 1 if arguments.quick else 2]:
        torch.manual_seed(0)
        vae = vl.autoencoder_kl(train.image_shape, 4, 2, width=width, residual_blocks=1, norm=norm, groups=4)
        vl.Trainer(vl.Elbo(beta=1e-3), max_epochs=arguments.epochs, learning_rate=1e-3).fit(vae, train)
        vae.cpu().eval()
        vl.export_onnx(vae, arguments.out / norm, dynamic_size=True)
        report(norm, OnnxVAE(arguments.out / norm), image, arguments.tile, blend)
    print(f"written to {arguments.out}")


def report(norm, model, image, tile, blend):
    results = {}
    for name, pixels in (("whole", max(image.shape[2:]) + 8), ("tiles", tile)):
        started = time.perf_counter()
        results[name] = model.reconstruct(image, tile=pixels, blend=blend)
        results[f"{name} s"] = time.perf_counter() - started
    apart = np.abs(results["whole"] - results["tiles"]).max()
    how = "blended" if blend else "exact"
    print(
        f"norm={norm}: {image.shape[2]} x {image.shape[3]} in {how} tiles of {tile}: at most {apart:.0e} from the whole"
        f" ({results['whole s']:.1f} s whole, {results['tiles s']:.1f} s in tiles)"
    )


if __name__ == "__main__":
    main()
