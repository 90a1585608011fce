"""A run in the directory of its first argument that cannot write large files after its third epoch."""

import resource
import sys

import torch

import vaelib as vl


class Full:
    def on_epoch(self, run):
        if run.epoch == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


torch.manual_seed(0)
model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(16, 16))
vl.Trainer(max_epochs=5, batch_size=10, output_dir=sys.argv[1], callbacks=[Full(), vl.Pictures(every=100)]).fit(
    model, vl.data.shapes(30, image_size=8), progress=False
)
