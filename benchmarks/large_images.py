"""Memory and time of large images, whole and in tiles, by ``OnnxVAE``: ``python benchmarks/large_images.py``.

Each row is the fastest of three runs in a process of its own, which decodes one random latent map; memory is the peak
of that process, Python and libraries included.
"""

import json
import subprocess
import sys
import tempfile
import time

ROUNDS = 3
MODELS = {
    "conv_vae": "vl.conv_vae((3, 64, 64), latent_shape=(4, 8, 8), hidden_channels=(32, 64, 128), upsample='nearest')",
    "autoencoder_kl": "vl.autoencoder_kl((3, 64, 64), factor=8, channels=4, width=32)",
}
CASES = ((512, None), (2048, 512), (2048, 1024), (2048, None))


def export(model, directory):
    """The bundle of one of the models."""
    import vaelib as vl

    vl.export_onnx(eval(MODELS[model], {"vl": vl}), directory, dynamic_size=True)


def decode(directory, size, tile):
    """Seconds and MiB of one image of ``size`` pixels a side."""
    import numpy as np

    from vaelib.benchmark.worker import host_peak_mib
    from vaelib.runtime import OnnxVAE

    model = OnnxVAE(directory)
    z = np.random.default_rng(0).standard_normal(
        (1, model.latent_shape[0], *[size // model.spatial_multiple] * 2), np.float32
    )
    started = time.perf_counter()
    model.decode(z, tile=tile)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mib": host_peak_mib()}


def main(models=MODELS):
    """A table of every model and size."""
    for model in models:
        with tempfile.TemporaryDirectory() as directory:
            export(model, directory)
            rows = {case: [] for case in CASES}
            for _ in range(ROUNDS):
                for case, found in rows.items():
                    command = [sys.executable, __file__, "decode", directory, *map(str, case)]
                    found.append(json.loads(subprocess.check_output(command)))
        best = {case: {name: min(each[name] for each in found) for name in found[0]} for case, found in rows.items()}
        small, whole = best[512, None]["mib"], best[2048, None]["seconds"]
        for (size, tile), row in best.items():
            time_of, memory_of = row["seconds"] / whole, row["mib"] / small
            print(
                f"{model:>15} {size:>5} tile {tile or 'none':>5}: {row['seconds']:7.2f} s ({time_of:4.2f} of whole)"
                f" {row['mib']:7.0f} MiB ({memory_of:4.2f} of whole 512)",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["decode"]:
        print(json.dumps(decode(sys.argv[2], int(sys.argv[3]), None if sys.argv[4] == "None" else int(sys.argv[4]))))
    else:
        main(sys.argv[1:] or MODELS)
